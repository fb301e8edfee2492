// SPDX-License-Identifier: GPL-2.0-only

//! `pacifica run --summary`: what a run came to, with what the module has counted
//! (`KVM_GET_STATS_FD` of each processor).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use kvm_bindings::KVMIO;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

use crate::outcome::Outcome;

ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// The counter of all exits.
const ALL: &str = "exits";
/// How many reasons are shown.
const SHOWN: usize = 6;

/// The files with the counters of a virtual machine's processors. They outlive it.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counters(Vec<Arc<File>>);

impl Counters {
    /// Adds a processor's, if the module counts.
    pub(crate) fn add(&mut self, vcpu: &VcpuFd) {
        // SAFETY: The ioctl takes no argument, and answers a new descriptor or an error.
        let fd = unsafe { ioctl(&vcpu.as_raw_fd(), KVM_GET_STATS_FD()) };
        if fd >= 0 {
            // SAFETY: The descriptor is new: nothing else owns it.
            self.0.push(Arc::new(unsafe { File::from_raw_fd(fd) }));
        }
    }
}

impl Counters {
    /// What all processors have counted until now, added up.
    pub(crate) fn read(&self) -> io::Result<BTreeMap<String, u64>> {
        let mut counts = BTreeMap::new();
        for file in &self.0 {
            for (name, value) in parse(&contents(file)?).unwrap_or_default() {
                let count: &mut u64 = counts.entry(name).or_default();
                *count = count.saturating_add(value);
            }
        }
        Ok(counts)
    }
}

/// All that such a file has now, from its beginning.
fn contents(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let mut piece = [0; 4096];
        match file.read_at(&mut piece, bytes.len() as u64)? {
            0 => return Ok(bytes),
            count => bytes.extend(&piece[..count]),
        }
    }
}

/// A run so far.
#[derive(Debug)]
pub(crate) struct Summary {
    start: Instant,
    counts: BTreeMap<String, u64>,
}

impl Summary {
    /// The run begins.
    pub(crate) fn begin() -> Self {
        Self {
            start: Instant::now(),
            counts: BTreeMap::new(),
        }
    }

    /// Adds what a virtual machine has come to.
    pub(crate) fn add(&mut self, counters: &Counters) -> io::Result<()> {
        for (name, value) in counters.read()? {
            let count = self.counts.entry(name).or_default();
            *count = count.saturating_add(value);
        }
        Ok(())
    }

    /// The run as lines of text.
    pub(crate) fn text(&self, outcome: &Outcome) -> String {
        let seconds = self.start.elapsed().as_secs_f64();
        let exits = exits(&self.counts)
            .unwrap_or_else(|| "the module does not count this guest's exits".into());
        format!("pacifica: the guest {outcome} after {seconds:.1} s\npacifica: {exits}\n")
    }
}

/// All exits, and the most frequent reasons: the counters `exit_REASON` of Pacifica, `REASON_exits`
/// of KVM.
fn exits(counts: &BTreeMap<String, u64>) -> Option<String> {
    let all = *counts.get(ALL)?;
    let mut reasons: Vec<_> = counts
        .iter()
        .filter_map(|(name, count)| Some((reason(name)?, *count)))
        .filter(|(_, count)| *count > 0)
        .collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    reasons.truncate(SHOWN);
    let shown = reasons
        .iter()
        .fold(0, |sum: u64, (_, count)| sum.saturating_add(*count));
    let rest = all.saturating_sub(shown);
    if rest > 0 {
        reasons.push(("of other kinds".into(), rest));
    }
    let list: Vec<_> = reasons
        .iter()
        .map(|(name, count)| format!("{} {name}", grouped(*count)))
        .collect();
    Some(format!(
        "{} exits to the module: {}",
        grouped(all),
        list.join(", ")
    ))
}

/// The reason in a counter's name.
fn reason(name: &str) -> Option<String> {
    let reason = name
        .strip_prefix("exit_")
        .or_else(|| name.strip_suffix("_exits"))?;
    Some(reason.replace('_', " "))
}

/// The number with commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The counters in such a file: `struct kvm_stats_header`, descriptors, values (the KVM API,
/// `KVM_GET_STATS_FD`). Nothing if the file is not made like that.
fn parse(bytes: &[u8]) -> Option<Vec<(String, u64)>> {
    /// The size of `struct kvm_stats_desc` without the name.
    const DESCRIPTOR: usize = 16;
    let slice = |at: usize, length: usize| bytes.get(at..at.checked_add(length)?);
    let word = |at: usize| {
        let word = u32::from_ne_bytes(slice(at, 4)?.try_into().ok()?);
        usize::try_from(word).ok()
    };
    let (name_size, count) = (word(4)?, word(8)?);
    let (descriptors, data) = (word(16)?, word(20)?);
    let mut counters = Vec::new();
    for index in 0..count {
        let at =
            (DESCRIPTOR.checked_add(name_size)?.checked_mul(index)?).checked_add(descriptors)?;
        let name = slice(at.checked_add(DESCRIPTOR)?, name_size)?;
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name_size);
        let value = slice(data.checked_add(word(at.checked_add(8)?)?)?, 8)?;
        counters.push((
            String::from_utf8_lossy(&name[..end]).into_owned(),
            u64::from_ne_bytes(value.try_into().ok()?),
        ));
    }
    Some(counters)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with these counters, with names of 20 bytes.
    fn file(counters: &[(&str, u64)]) -> Vec<u8> {
        let count = counters.len() as u32;
        let mut bytes: Vec<u8> = [0, 20, count, 24, 32, 32 + 36 * count]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        bytes.extend(b"kvm-1\0\0\0");
        for (index, (name, _)) in counters.iter().enumerate() {
            // Flags; exponent and size; offset; bucket size.
            for word in [0, 1 << 16, 8 * index as u32, 0] {
                bytes.extend(word.to_ne_bytes());
            }
            let mut padded = name.as_bytes().to_vec();
            padded.resize(20, 0);
            bytes.extend(padded);
        }
        bytes.extend(counters.iter().flat_map(|(_, value)| value.to_ne_bytes()));
        bytes
    }

    fn map(counters: &[(&str, u64)]) -> BTreeMap<String, u64> {
        parse(&file(counters)).unwrap().into_iter().collect()
    }

    #[test]
    fn counters_are_found() {
        assert_eq!(
            parse(&file(&[("exits", 7), ("exit_io", u64::MAX)])),
            Some(vec![("exits".into(), 7), ("exit_io".into(), u64::MAX)])
        );
    }

    #[test]
    fn a_file_that_is_cut_or_wrong_has_none() {
        let whole = file(&[("exits", 7), ("exit_io", 8)]);
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), None, "{length}");
        }
        for at in 0..24 {
            let mut wrong = whole.clone();
            wrong[at] = 0xff;
            // It only must not panic.
            let _ = parse(&wrong);
        }
    }

    #[test]
    fn the_most_frequent_reasons_come_first() {
        let counts = map(&[
            ("exits", 12_345),
            ("exit_io", 300),
            ("exit_nested_fault", 12_000),
            ("exit_cr", 0),
            ("to_user", 200),
        ]);
        assert_eq!(
            exits(&counts).unwrap(),
            "12,345 exits to the module: 12,000 nested fault, 300 io, 45 of other kinds"
        );
        let kvm = map(&[("exits", 5), ("io_exits", 5)]);
        assert_eq!(exits(&kvm).unwrap(), "5 exits to the module: 5 io");
        assert_eq!(exits(&map(&[("pages_4k", 1)])), None);
    }

    #[test]
    fn thousands() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
