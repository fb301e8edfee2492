// SPDX-License-Identifier: GPL-2.0-only

//! What is asked, and what is answered.

use std::collections::BTreeMap;
use std::fmt;

/// How an MSR is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    Get,
    Set,
    Rdmsr,
    Wrmsr,
}

impl Access {
    /// Its name in the file `known`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Set => "set",
            Self::Rdmsr => "rdmsr",
            Self::Wrmsr => "wrmsr",
        }
    }
}

/// One question: an access of an MSR, with a value if it is a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) index: u32,
    pub(crate) access: Access,
    pub(crate) value: u64,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x} {}", self.index, self.access.name())?;
        match self.access {
            Access::Set | Access::Wrmsr => write!(f, " {:x}", self.value),
            _ => Ok(()),
        }
    }
}

/// The answer: refused, or what is read then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Refused,
    Value(u64),
    /// Done, and what is read cannot be compared.
    Done,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => write!(f, "refused"),
            Self::Value(value) => write!(f, "{value:x}"),
            Self::Done => write!(f, "done"),
        }
    }
}

pub(crate) type Outcomes = BTreeMap<Key, Outcome>;
