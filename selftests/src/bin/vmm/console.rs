// SPDX-License-Identifier: GPL-2.0-only

//! What a guest writes to its serial port: lines of its programs and messages of its kernel.

/// What a guest's kernel says when it was hurt.
const COMPLAINTS: &[&str] = &[
    "WARNING:",
    "BUG:",
    "Oops",
    "Call Trace",
    "Kernel panic",
    "rcu: INFO",
    "soft lockup",
];

/// What a program of the guest says that found a fault.
const FAILURE: &str = ": FAILED: ";

/// What this kernel says at every start on this CPU, `harmless` of selftests/lab/check-log.
const HARMLESS: &str = "Speculative Return Stack Overflow: WARNING: See https://";

/// The console of a guest, up to its last whole line: what comes after that may still grow.
pub(crate) struct Console {
    /// Everything.
    pub(crate) text: String,
    /// The lines of programs.
    pub(crate) lines: Vec<String>,
}

impl Console {
    /// The console that these bytes are.
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes).replace('\r', "");
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        let lines = without_messages(whole).lines().map(str::to_owned).collect();
        Self { text, lines }
    }

    /// A complaint of the kernel or of a program.
    pub(crate) fn complaint(&self) -> Option<String> {
        let text = self.text.replace(HARMLESS, "");
        let kernel = COMPLAINTS.iter().find(|word| text.contains(**word));
        let program = self.lines.iter().find(|line| line.contains(FAILURE));
        kernel.map(ToString::to_string).or(program.cloned())
    }

    /// The last so many lines.
    pub(crate) fn last(&self, count: usize) -> String {
        let lines: Vec<_> = self.text.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}

/// The text without the kernel's messages, each a line `[   12.345678] ...`. One may be in the
/// middle of a program's line.
fn without_messages(text: &str) -> String {
    let mut rest = text;
    let mut kept = String::new();
    while let Some(at) = rest.find('[') {
        let (before, from) = rest.split_at(at);
        kept.push_str(before);
        rest = match (is_message(from), from.find('\n')) {
            (true, Some(end)) => &from[end + 1..],
            (true, None) => "",
            (false, _) => {
                kept.push('[');
                &from[1..]
            }
        };
    }
    kept + rest
}

/// Whether a message begins here: brackets with seconds and microseconds.
fn is_message(text: &str) -> bool {
    let time = text
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
        .and_then(|(time, _)| time.trim_start().split_once('.'));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    time.is_some_and(|(seconds, fraction)| {
        digits(seconds) && fraction.len() == 6 && digits(fraction)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        Console::new(text.as_bytes()).lines
    }

    #[test]
    fn a_line_counts_once_it_is_whole() {
        assert!(lines("ready: 7.2, 2").is_empty());
        assert_eq!(
            lines("a\r\nready: 7.2, 2 CPU, 300 MiB\r\nlo"),
            ["a", "ready: 7.2, 2 CPU, 300 MiB"]
        );
    }

    #[test]
    fn messages_of_the_kernel_do_not_break_lines() {
        let text = "[    1.000000] a [x]\r\nready: 7.2[   12.345678] b\r\n[  12.345679] c\r\n, 2 CPU\r\n[x] [1.5] d\n";
        assert_eq!(lines(text), ["ready: 7.2, 2 CPU", "[x] [1.5] d"]);
        assert!(lines("[    1.000000] a\n[    1.00").is_empty());
    }

    #[test]
    fn complaints() {
        let complaint = |text: &str| Console::new(text.as_bytes()).complaint();
        assert_eq!(complaint("[    1.000000] Speculative Return Stack Overflow: WARNING: See https://x\nload: done\n"), None);
        assert_eq!(
            complaint("[    1.000000] WARNING: CPU: 1\n").as_deref(),
            Some("WARNING:")
        );
        assert_eq!(
            complaint("load: FA[    1.000000] a\nILED: x\n").as_deref(),
            Some("load: FAILED: x")
        );
    }
}
