// SPDX-License-Identifier: GPL-2.0-only

//! The table of known differences of the random probes: `known`, beside this file.

use crate::probe::Probe;

const TABLE: &str = include_str!("known");

/// What the field `after` stands for: all that is asked when the guest has run.
const AFTER: &[&str] = &[
    "exit", "trace", "rip", "flags", "regs", "segments", "control", "dr6", "dr7", "events",
    "stack", "top", "shared",
];

/// Words about the accesses to devices: the module's guest made those of KVM's, and perhaps more;
/// KVM's guest made those of the module's, and then read.
const HERE_GOES_ON: &str = "here-goes-on";
const KVM_READS_ON: &str = "kvm-reads-on";

/// Begins a word with the bytes of an instruction, or with the name of one.
const CODE: &str = "code=";

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
        let said = [answers("kvm", theirs), answers("here", ours)].concat();
        let has = |word: &String| match word.strip_prefix('!') {
            Some(word) => !meets(word, theirs, ours, &said),
            None => meets(word, theirs, ours, &said),
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

/// Whether the question or the answers, `said`, have this word.
fn meets(word: &str, theirs: &Probe, ours: &Probe, said: &[String]) -> bool {
    let (kvm, here) = (theirs.get("trace"), ours.get("trace"));
    match word {
        HERE_GOES_ON => here.starts_with(kvm),
        KVM_READS_ON => kvm.strip_prefix(here).is_some_and(only_reads),
        _ => {
            let question = theirs.question.split(' ');
            let mut words = question.chain(said.iter().map(String::as_str));
            words.any(
                |there| match (word.strip_prefix(CODE), there.strip_prefix(CODE)) {
                    (Some(pattern), Some(code)) => matches(&by_bytes(pattern), &by_bytes(code)),
                    _ => matches(word, there),
                },
            )
        }
    }
}

/// The bytes of an instruction, or of a pattern, with a mark before each, so that no half of one
/// meets a half of another.
fn by_bytes(code: &str) -> String {
    let mut marked = String::new();
    let mut is_first_half = true;
    for half in code.chars() {
        if half == '*' {
            is_first_half = true;
        } else {
            if is_first_half {
                marked.push('.');
            }
            is_first_half = !is_first_half;
        }
        marked.push(half);
    }
    marked
}

/// Whether there are accesses, and all of them are reads.
fn only_reads(trace: &str) -> bool {
    let mut accesses = trace.split_terminator(';').peekable();
    accesses.peek().is_some() && accesses.all(|access| access.starts_with('r'))
}

/// Whether `there` is `pattern`, in which `*` stands for anything.
fn matches(pattern: &str, there: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == there;
    };
    let Some(mut left) = there.strip_prefix(start) else {
        return false;
    };
    let mut parts: Vec<_> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        match left.split_once(part) {
            Some((_, behind)) => left = behind,
            None => return false,
        }
    }
    left.ends_with(end)
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
