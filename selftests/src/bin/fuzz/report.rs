// SPDX-License-Identifier: GPL-2.0-only

//! What the rounds, which are processes of their own, tell the program that started them.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::table::{Ioctl, IOCTLS};

/// So many failures are shown.
pub(crate) const SHOWN: u32 = 20;
/// The reasons of exits that are counted.
const REASONS: usize = 48;

#[derive(Default)]
struct Count {
    succeeded: AtomicU32,
    failed: AtomicU32,
}

/// Counters in memory that all of them share.
pub(crate) struct Report {
    counts: &'static [Count],
    exits: &'static [AtomicU32],
    failures: &'static AtomicU32,
}

/// Zeroed memory that children share and nobody gives back.
fn shared<T>(count: usize) -> &'static [T] {
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let length = count * size_of::<T>();
    // SAFETY: A new mapping at an address of the kernel's choice touches no other object.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    // SAFETY: The mapping is that long and stays; zeros are valid counters.
    unsafe { std::slice::from_raw_parts(at.cast(), count) }
}

impl Report {
    pub(crate) fn new() -> Self {
        Self {
            counts: shared(IOCTLS.len()),
            exits: shared(REASONS),
            failures: &shared::<AtomicU32>(1)[0],
        }
    }

    /// An ioctl was called.
    pub(crate) fn count(&self, ioctl: &Ioctl, succeeded: bool) {
        let index = IOCTLS
            .iter()
            .position(|other| other.name == ioctl.name && other.kind == ioctl.kind);
        let count = &self.counts[index.unwrap_or(0)];
        let number = if succeeded {
            &count.succeeded
        } else {
            &count.failed
        };
        number.fetch_add(1, Relaxed);
    }

    /// A guest exited for this reason.
    pub(crate) fn exit(&self, reason: u32) {
        if let Some(count) = self.exits.get(reason as usize) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// Something is wrong.
    pub(crate) fn fail(&self, text: &str) {
        if self.failures.fetch_add(1, Relaxed) < SHOWN {
            println!("# {text}");
        }
    }

    pub(crate) fn failures(&self) -> u32 {
        self.failures.load(Relaxed)
    }

    /// How many calls there were.
    pub(crate) fn calls(&self) -> u32 {
        let of = |count: &Count| count.succeeded.load(Relaxed) + count.failed.load(Relaxed);
        self.counts.iter().map(of).sum()
    }

    /// Says what was reached; answers which ioctls of the module never succeeded.
    pub(crate) fn summary<'a>(&self, known: &[&'a str]) -> Vec<&'a str> {
        let exits: Vec<String> = self
            .exits
            .iter()
            .enumerate()
            .filter(|(_, count)| count.load(Relaxed) != 0)
            .map(|(reason, count)| format!("{reason}: {}", count.load(Relaxed)))
            .collect();
        println!("# exits by reason: {}", exits.join(", "));
        // Some are there for files of several kinds; they have one number.
        let mut rarest: Vec<(u32, &str)> = known
            .iter()
            .map(|name| {
                let all = IOCTLS.iter().zip(self.counts);
                let same = all.filter(|(ioctl, _)| ioctl.name == *name);
                (
                    same.map(|(_, count)| count.succeeded.load(Relaxed)).sum(),
                    *name,
                )
            })
            .collect();
        rarest.sort_unstable();
        println!(
            "# least often succeeded: {:?}",
            &rarest[..rarest.len().min(6)]
        );
        let never = rarest.iter().filter(|(count, _)| *count == 0);
        let never = never.map(|(_, name)| *name).collect();
        println!("# {} ioctls", self.calls());
        never
    }
}
