// SPDX-License-Identifier: GPL-2.0-only

//! One random question and its answer, in words.

use std::fmt::Display;
use std::time::Duration;

use selftests::kvm::Handle;

use crate::random::Random;

/// What a guest that has not come back after its time answers in the field `exit`.
pub(crate) const NO_END: &str = "no-end";

/// A question, and each thing that was answered under its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Probe {
    /// Words, by which a row of the table of known differences finds it.
    pub(crate) question: String,
    pub(crate) answer: Vec<(&'static str, String)>,
}

impl Probe {
    /// One more word of the question.
    pub(crate) fn word(&mut self, word: impl Display) {
        if !self.question.is_empty() {
            self.question.push(' ');
        }
        self.question += &word.to_string();
    }

    /// One more thing that was answered.
    pub(crate) fn put(&mut self, field: &'static str, value: impl Display) {
        self.answer.push((field, value.to_string()));
    }

    /// What was answered under this name.
    pub(crate) fn get(&self, field: &str) -> &str {
        let found = self.answer.iter().find(|(name, _)| *name == field);
        found.map_or("-", |(_, value)| value)
    }

    /// Whether the guest was still running when its time was over.
    pub(crate) fn no_end(&self) -> bool {
        self.get("exit") == NO_END
    }
}

/// A kind of random probes, on one device.
pub(crate) trait Subject {
    /// What this random sequence asks, and the answer; a guest gets so long.
    fn ask(&mut self, random: &mut Random, limit: Duration) -> Result<Probe, String>;
}

/// Makes a kind ready on a device.
pub(crate) type Open = fn(Handle) -> Box<dyn Subject>;
