// SPDX-License-Identifier: GPL-2.0-only

//! The names of the guest's functions, as `nm` prints them.

use std::collections::BTreeMap;
use std::path::Path;

use crate::Outcome;

/// Functions by their addresses.
#[derive(Default)]
pub(crate) struct Symbols(BTreeMap<u64, String>);

impl Symbols {
    /// Reads what `nm` printed.
    pub(crate) fn read(file: &Path) -> Outcome<Self> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| format!("{}: {error}", file.display()))?;
        let line = |line: &str| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let function = words.next()?.eq_ignore_ascii_case("t");
            Some((address, words.next()?.to_owned())).filter(|_| function)
        };
        Ok(Self(text.lines().filter_map(line).collect()))
    }

    /// The function that an address is in.
    pub(crate) fn name(&self, address: u64) -> String {
        match self.0.range(..=address).next_back() {
            Some((_, name)) => name.clone(),
            None => format!("{address:#x}"),
        }
    }
}
