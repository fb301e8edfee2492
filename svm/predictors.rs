// SPDX-License-Identifier: GPL-2.0-only

//! Who has trained a CPU's branch predictors: one guest must not steer the speculation of another
//! one.

/// The guest CPU that ran last on a CPU. The default is none: the first vCPU comes after programs
/// of the host, or after a guest of a time when SVM was on before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastGuest(Option<u64>);

impl LastGuest {
    /// The vCPU of this serial number, which no other one ever has, is about to run here. True if
    /// the predictors must be flushed first (IBPB, APM vol. 2, 3.2.9).
    #[inline]
    pub fn changes_to(&mut self, serial: u64) -> bool {
        let changes = self.0 != Some(serial);
        if changes {
            self.0 = Some(serial);
        }
        changes
    }
}
