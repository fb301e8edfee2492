// SPDX-License-Identifier: GPL-2.0-only

//! When branch predictors are flushed.

use svm::predictors::LastGuest;

#[test]
fn every_change_of_guest_flushes() {
    let mut cpu = LastGuest::default();
    // The first one, too: the last VM of another owner may have ended just before, and SVM with it.
    assert!(cpu.changes_to(1));
    assert!(!cpu.changes_to(1));
    assert!(cpu.changes_to(2));
    assert!(cpu.changes_to(1));
    assert!(!cpu.changes_to(1));
    cpu = LastGuest::default();
    assert!(cpu.changes_to(1));
    assert!(LastGuest::default().changes_to(0));
}
