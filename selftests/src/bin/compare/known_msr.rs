// SPDX-License-Identifier: GPL-2.0-only

//! The table of known differences of MSRs: `known.msr`, beside this file.

use crate::access::Key;

const TABLE: &str = include_str!("known.msr");

struct Row {
    first: u32,
    last: u32,
    accesses: Vec<String>,
    line: String,
    met: bool,
}

/// The rows, and which of them were met.
pub(crate) struct Known(Vec<Row>);

impl Known {
    pub(crate) fn load() -> Self {
        let lines = TABLE.lines();
        Self(
            lines
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(row)
                .collect(),
        )
    }

    /// Whether a row names this difference.
    pub(crate) fn excuses(&mut self, key: &Key) -> bool {
        let found = self.0.iter_mut().find(|row| {
            (row.first..=row.last).contains(&key.index)
                && row.accesses.iter().any(|name| name == key.access.name())
        });
        match found {
            Some(row) => {
                row.met = true;
                true
            }
            None => false,
        }
    }

    /// Fails if a row was not met.
    pub(crate) fn all_met(&self) -> Result<(), String> {
        let unmet = self.0.iter().filter(|row| !row.met);
        let lines: Vec<_> = unmet.map(|row| row.line.as_str()).collect();
        match lines.is_empty() {
            true => Ok(()),
            false => Err(lines.join("\n")),
        }
    }
}

/// `INDEX[-INDEX] ACCESS[,ACCESS]... REASON`
fn row(line: &str) -> Row {
    let mut words = line.splitn(3, ' ');
    let range = words.next().unwrap_or_default();
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let accesses = words.next().unwrap_or_default();
    let reason = words.next().unwrap_or_default().trim();
    assert!(!reason.is_empty(), "{line}: no reason");
    let number = |text| u32::from_str_radix(text, 16).unwrap_or_else(|e| panic!("{line}: {e}"));
    Row {
        first: number(first),
        last: number(last),
        accesses: accesses.split(',').map(str::to_owned).collect(),
        line: line.to_owned(),
        met: false,
    }
}
