// SPDX-License-Identifier: GPL-2.0-only

//! The table of known differences of the random probes: `known`, beside this file.

use crate::probe::Probe;

const TABLE: &str = include_str!("known");

/// What the field `after` stands for: all that is asked when the guest has run.
const AFTER: &[&str] = &[
    "exit", "trace", "rip", "flags", "regs", "segments", "control", "dr6", "dr7", "events",
    "stack", "top", "shared",
];

struct Row {
    kind: String,
    /// The answers that may differ.
    fields: Vec<String>,
    /// What the question or the answers must have.
    words: Vec<String>,
    line: String,
    /// A random run may not meet it.
    rare: bool,
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

    /// The answers that differ and that no row excuses.
    pub(crate) fn new_ones(
        &mut self,
        kind: &str,
        theirs: &Probe,
        ours: &Probe,
    ) -> Vec<&'static str> {
        let (theirs_words, ours_words) = (answers("kvm", theirs), answers("here", ours));
        let has = |word: &String| {
            let same = |there: &str| match (word.strip_prefix('*'), word.strip_suffix('*')) {
                (Some(_), Some(_)) => there.contains(word.trim_matches('*')),
                (None, Some(start)) => there.starts_with(start),
                _ => there == word,
            };
            theirs.question.split(' ').any(same)
                || theirs_words
                    .iter()
                    .chain(&ours_words)
                    .any(|word| same(word))
        };
        let mut names: Vec<_> = ours.answer.iter().chain(&theirs.answer).collect();
        names.dedup_by_key(|(name, _)| *name);
        let mut differ: Vec<&'static str> = names
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| theirs.get(name) != ours.get(name))
            .collect();
        differ.sort_unstable();
        differ.dedup();
        for row in self.0.iter_mut().filter(|row| row.kind == kind) {
            if differ.is_empty() || !row.words.iter().all(has) {
                continue;
            }
            let before = differ.len();
            differ.retain(|name| !row.fields.iter().any(|field| covers(field, name)));
            row.met |= differ.len() < before;
        }
        differ
    }

    /// Fails if a row was not met that every run of the first seed meets.
    pub(crate) fn all_met(&self) -> Result<(), String> {
        let unmet = self.0.iter().filter(|row| !row.met && !row.rare);
        let lines: Vec<_> = unmet.map(|row| row.line.as_str()).collect();
        match lines.is_empty() {
            true => Ok(()),
            false => Err(lines.join("\n")),
        }
    }
}

/// Whether a field of a row stands for this one.
fn covers(field: &str, name: &str) -> bool {
    match field {
        "*" => true,
        "after" => AFTER.contains(&name),
        _ => field == name,
    }
}

/// `SIDE.FIELD=VALUE` for each answer.
fn answers(side: &str, probe: &Probe) -> Vec<String> {
    let each = probe.answer.iter();
    each.map(|(name, value)| format!("{side}.{name}={value}"))
        .collect()
}

/// `KIND[?] FIELD[,FIELD]... WORD[+WORD]... REASON`
fn row(line: &str) -> Row {
    let mut words = line.splitn(4, ' ');
    let mut next = || words.next().unwrap_or_default().trim();
    let (kind, fields, wanted, reason) = (next(), next(), next(), next());
    assert!(!reason.is_empty(), "{line}: no reason");
    let list = |text: &str, by: char| text.split(by).map(str::to_owned).collect();
    Row {
        kind: kind.trim_end_matches('?').to_owned(),
        fields: list(fields, ','),
        words: list(wanted, '+'),
        line: line.to_owned(),
        rare: kind.ends_with('?'),
        met: false,
    }
}
