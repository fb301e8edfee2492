// SPDX-License-Identifier: GPL-2.0-only

//! A tiny guest: its code, what its header asks of the machine, and what it is expected to do.

use std::fs;
use std::path::Path;

/// The state in which the guest's first instruction runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real mode, all segment bases zero.
    Real16,
    /// Protected mode without paging, flat 32-bit segments.
    Protected32,
    /// Long mode, the first 4 GiB mapped to themselves with 2 MiB pages.
    Long64,
}

/// Which interrupt controllers the kernel emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Irqchip {
    /// None: interrupts come from this program.
    None,
    /// The local APICs; the rest is this program's.
    Split,
    /// Local APICs, IOAPIC and PICs.
    Kernel,
}

/// The line that says that the VMM has interrupted the guest.
pub const INTERRUPTED: &str = "interrupted";

/// One guest, as its files describe it.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The files' base name.
    pub name: String,
    /// The flat binary that is loaded at [`crate::machine::LOAD`].
    pub code: Vec<u8>,
    /// The initial state.
    pub mode: Mode,
    /// The interrupt controllers.
    pub irqchip: Irqchip,
    /// Whether there is a PIT.
    pub pit: bool,
    /// Virtual CPUs.
    pub cpus: u32,
    /// For a guest that does not end: milliseconds after its last line, when the VMM interrupts it.
    pub limit: Option<u64>,
    /// Whether the guest goes on after a HLT that came to this program.
    pub after_hlt: bool,
    /// A feature that the guest is about: the CPUID leaf, and the bit of ECX.
    pub feature: Option<(u32, u32)>,
    /// A read-only slot at [`crate::machine::ROM`].
    pub rom: bool,
    /// Known bugs of emulators that may make it fail; see the file `excuses`.
    pub bugs: Vec<String>,
    /// The lines of the `.expect` file without comments.
    pub expected: Vec<String>,
}

impl Guest {
    /// Reads NAME.S, NAME.bin and NAME.expect.
    pub fn load(directory: &Path, name: &str) -> Result<Self, String> {
        let file = |end: &str| directory.join(format!("{name}.{end}"));
        let read = |end: &str| fs::read(file(end)).map_err(|e| format!("{name}.{end}: {e}"));
        let text =
            |end: &str| String::from_utf8(read(end)?).map_err(|e| format!("{name}.{end}: {e}"));
        let mut guest = Self {
            name: name.to_owned(),
            code: read("bin")?,
            mode: Mode::Long64,
            irqchip: Irqchip::None,
            pit: false,
            cpus: 1,
            limit: None,
            after_hlt: false,
            feature: None,
            rom: false,
            bugs: Vec::new(),
            expected: expected_lines(&text("expect").unwrap_or_default()),
        };
        for line in text("S")?.lines().map_while(|line| line.strip_prefix("//")) {
            if let Some((key, value)) = line.trim().split_once(": ") {
                guest.header(key, value.trim())?;
            }
        }
        Ok(guest)
    }

    /// How many lines there are before the VMM interrupts the guest.
    pub fn lines_before_interruption(&self) -> usize {
        let lines = self.expected.iter();
        lines.take_while(|line| *line != INTERRUPTED).count()
    }

    /// One `key: value` of the header. Prose has no such key, or one with a space or a capital.
    fn header(&mut self, key: &str, value: &str) -> Result<(), String> {
        match (key, value) {
            ("mode", "real16") => self.mode = Mode::Real16,
            ("mode", "protected32") => self.mode = Mode::Protected32,
            ("mode", "long64") => self.mode = Mode::Long64,
            ("irqchip", "none") => self.irqchip = Irqchip::None,
            ("irqchip", "split") => self.irqchip = Irqchip::Split,
            ("irqchip", "kernel") => self.irqchip = Irqchip::Kernel,
            ("pit", "yes") => self.pit = true,
            ("feature", "xsave") => self.feature = Some((1, 26)),
            ("feature", "avx") => self.feature = Some((1, 28)),
            ("feature", "pku") => self.feature = Some((7, 3)),
            ("feature", "svm") => self.feature = Some((0x8000_0001, 2)),
            ("rom", "yes") => self.rom = true,
            ("after-hlt", "continue") => self.after_hlt = true,
            ("cpus", count) => self.cpus = number(key, count)?,
            ("limit", milliseconds) => self.limit = Some(number(key, milliseconds)?),
            ("bug", name) => self.bugs.push(name.to_owned()),
            (key, _) if key.contains(|c: char| !c.is_ascii_lowercase() && c != '-') => {}
            _ => return Err(format!("{}.S: unknown header {key}: {value}", self.name)),
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, String> {
    value
        .parse()
        .map_err(|_| format!("{key}: {value} is not a number"))
}

fn expected_lines(text: &str) -> Vec<String> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim_end())
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Compares what a guest did with what was expected. In an expected line the word `*` stands for
/// any one word.
pub fn compare(expected: &[String], got: &[String]) -> Result<(), String> {
    for number in 0..expected.len().max(got.len()) {
        let (want, have) = (expected.get(number), got.get(number));
        let same = matches!((want, have), (Some(want), Some(have)) if matches(want, have));
        if !same {
            let end = || "(the end)".to_owned();
            let mut text = format!(
                "line {}: expected {}, got {}\nthe guest did:",
                number + 1,
                want.cloned().unwrap_or_else(end),
                have.cloned().unwrap_or_else(end)
            );
            for line in got.iter().take(number + 6) {
                text.push_str("\n  ");
                text.push_str(line);
            }
            return Err(text);
        }
    }
    Ok(())
}

fn matches(expected: &str, got: &str) -> bool {
    let mut words = got.split_whitespace();
    expected
        .split_whitespace()
        .all(|want| words.next().is_some_and(|have| want == "*" || want == have))
        && words.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        expected_lines(text)
    }

    #[test]
    fn comparing_finds_any_difference() {
        let want = lines("report 0x1 # one\n\nreport *\n");
        assert!(compare(&want, &lines("report 0x1\nreport 0x77")).is_ok());
        assert!(compare(&want, &lines("report 0x2\nreport 0x77")).is_err());
        assert!(compare(&want, &lines("report 0x1")).is_err());
        assert!(compare(&want, &lines("report 0x1\nreport 0x2\nreport 0x3")).is_err());
        assert!(compare(&want, &lines("report 0x1\nreport 0x2 0x3")).is_err());
        assert!(compare(&want, &[]).is_err());
    }
}
