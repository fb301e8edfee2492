// SPDX-License-Identifier: GPL-2.0-only

//! The pause filter's count: how it grows and shrinks.

use proptest::prelude::*;
use svm::pause::PauseFilter;

#[test]
fn by_default_it_doubles_and_begins_again() {
    let filter = PauseFilter::DEFAULT;
    let mut count = filter.count;
    let mut seen = Vec::new();
    for _ in 0..6 {
        seen.push(count);
        count = filter.grown(count);
    }
    assert_eq!(seen, [3000, 6000, 12000, 24000, 48000, 65535]);
    assert_eq!(filter.shrunk(count), 3000);
}

#[test]
fn factors_are_below_the_count_and_sums_from_there_on() {
    let filter = PauseFilter {
        count: 100,
        grow: 100,
        shrink: 3,
        max: 350,
        ..PauseFilter::DEFAULT
    };
    assert_eq!(
        [100, 200, 300].map(|old| filter.grown(old)),
        [200, 300, 350]
    );
    assert_eq!(
        [900, 300, 299].map(|old| filter.shrunk(old)),
        [300, 100, 100]
    );
    let filter = PauseFilter {
        grow: 0,
        shrink: 150,
        ..filter
    };
    assert_eq!(
        (filter.grown(300), filter.shrunk(300), filter.shrunk(200)),
        (100, 150, 100)
    );
}

#[test]
fn the_least_is_more_than_the_most() {
    let filter = PauseFilter {
        count: 100,
        max: 50,
        ..PauseFilter::DEFAULT
    };
    assert_eq!((filter.grown(100), filter.shrunk(100)), (100, 100));
}

proptest! {
    #[test]
    fn it_stays_between_the_least_and_the_most(
        count in 1..1000_u16, grow: u16, shrink: u16, more: u16, old: u16,
    ) {
        let max = count.saturating_add(more);
        let filter = PauseFilter { count, grow, shrink, max, ..PauseFilter::DEFAULT };
        let old = old.clamp(count, max);
        prop_assert!((count..=max).contains(&filter.grown(old)));
        prop_assert!((count..=max).contains(&filter.shrunk(old)));
    }
}
