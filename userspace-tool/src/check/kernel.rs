// SPDX-License-Identifier: GPL-2.0-only

//! The kernel: is its series one that the module was tried on, and will it take the module?

use std::fs;
use std::process::Command;

use super::{Line, Verdict};

/// The series that the module was tried on, one a line.
const SERIES: &str = include_str!("../../../packaging/kernels");

/// Where a kernel comes from that the module fits.
const BACKPORTS: &str =
    "Debian 13: `apt install -t trixie-backports linux-image-amd64 linux-headers-amd64`, then reboot. Others: docs/install.md.";

/// The firmware's variable: four bytes of attributes, and one that is 1 if Secure Boot is on (UEFI
/// 2.10, 3.3).
const SECURE_BOOT: &str =
    "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// What the running kernel says about itself.
#[derive(Debug, Default)]
pub(super) struct Kernel {
    /// As `uname -r` has it.
    pub(super) release: String,
    /// As `uname -v` has it.
    version: String,
    /// Its configuration, where it is readable.
    config: Option<String>,
    /// Why it takes signed modules only, if so.
    signed_only: Option<&'static str>,
}

/// A series: major and minor number.
type Series = (u32, u32);

/// The series of a release such as `7.2.12+deb13-amd64`.
fn series(release: &str) -> Option<Series> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next()?, numbers.next()?) {
        (Ok(major), Ok(minor)) => Some((major, minor)),
        _ => None,
    }
}

/// The lines of the list that are no comment.
fn listed() -> impl Iterator<Item = &'static str> {
    let lines = SERIES.lines().filter_map(|line| line.split('#').next());
    lines.map(str::trim).filter(|line| !line.is_empty())
}

/// Whether the kernel's lockdown keeps unsigned modules out: the chosen word is in brackets, and
/// all but `none` do.
fn locked_down(lockdown: &str) -> bool {
    lockdown.contains('[') && !lockdown.contains("[none]")
}

/// The running kernel's configuration.
fn config(release: &str) -> Option<String> {
    fs::read_to_string(format!("/boot/config-{release}"))
        .ok()
        .or_else(|| {
            let output = Command::new("gzip")
                .args(["-dc", "/proc/config.gz"])
                .output()
                .ok()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            output.status.success().then_some(text)
        })
}

/// Why the running kernel takes signed modules only, if so.
fn signed_only() -> Option<&'static str> {
    let read = |path: &str| fs::read_to_string(path).ok();
    if read("/sys/module/module/parameters/sig_enforce").is_some_and(|text| text.trim() == "Y") {
        return Some("module.sig_enforce");
    }
    let reason = "Secure Boot or lockdown";
    match read("/sys/kernel/security/lockdown") {
        Some(lockdown) => locked_down(&lockdown).then_some(reason),
        // Not readable: distributions lock the kernel down when Secure Boot is on.
        None => (fs::read(SECURE_BOOT).ok()?.get(4) == Some(&1)).then_some(reason),
    }
}

impl Kernel {
    /// What runs here.
    pub(super) fn running() -> Self {
        let read = |name: &str| {
            let text = fs::read_to_string(format!("/proc/sys/kernel/{name}"));
            text.unwrap_or_default().trim().to_owned()
        };
        let release = read("osrelease");
        Self {
            config: config(&release),
            version: read("version"),
            signed_only: signed_only(),
            release,
        }
    }

    /// Whether the configuration has this line; `None` if it is not known.
    fn configured(&self, line: &str) -> Option<bool> {
        let config = self.config.as_ref()?;
        Some(config.lines().any(|other| other == line))
    }

    /// The kernel's lines. What it takes is no question when the module is loaded.
    pub(super) fn lines(&self, loaded: bool) -> Vec<Line> {
        let mut lines = vec![self.series_line()];
        if lines[0].verdict == Verdict::No {
            return lines;
        }
        let realtime = self.version.contains("PREEMPT_RT")
            || self.configured("CONFIG_PREEMPT_RT=y") == Some(true);
        if realtime {
            let next = format!("Boot another flavour of it. {BACKPORTS}");
            lines.push(Line::no(
                "preemption",
                "PREEMPT_RT, which the module does not support",
                next,
            ));
        }
        if !loaded {
            if self.configured("CONFIG_RUST=y") == Some(false) {
                lines.push(Line::no(
                    "Rust in the kernel",
                    "CONFIG_RUST is off",
                    BACKPORTS,
                ));
            }
            if let Some(reason) = self.signed_only {
                lines.push(Line::unsure(
                    "module signature",
                    format!("required ({reason})"),
                    "With DKMS, once: `mokutil --import /var/lib/dkms/mok.pub`, reboot, and confirm the key on the firmware's screen.",
                ));
            }
        }
        lines
    }

    /// The line about the series.
    fn series_line(&self) -> Line {
        const WHAT: &str = "kernel version";
        let release = self.release.as_str();
        let Some(this) = series(release) else {
            return Line::no(WHAT, format!("unknown: {release:?}"), BACKPORTS);
        };
        let tried: Vec<Series> = listed().filter_map(series).collect();
        if tried.contains(&this) {
            return Line::ok(WHAT, release);
        }
        if tried.iter().all(|&other| this < other) {
            return Line::no(WHAT, format!("{release}, too old"), BACKPORTS);
        }
        let names = listed().collect::<Vec<_>>().join(" and ");
        Line::unsure(
            WHAT,
            format!("{release}, not tried"),
            format!("The module was tried on {names}; if it builds here, it may work. {BACKPORTS}"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::verdicts;
    use super::super::Verdict::{No, Ok, Unsure};
    use super::*;

    fn kernel(release: &str) -> Kernel {
        Kernel {
            release: release.into(),
            ..Kernel::default()
        }
    }

    fn first(release: &str) -> Verdict {
        verdicts(&kernel(release).lines(false))[0]
    }

    #[test]
    fn the_list_is_sound() {
        assert!(listed().count() > 0);
        for name in listed() {
            let (major, minor) = series(name).unwrap();
            assert_eq!(name, format!("{major}.{minor}"));
            assert_eq!(first(&format!("{name}.12+deb13-cloud-amd64")), Ok);
            assert_eq!(first(&format!("{name}-rc1")), Ok);
        }
    }

    #[test]
    fn series_that_are_not_in_the_list() {
        for (release, verdict) in [
            ("99.0.0", Unsure),
            ("6.12.48+deb13-amd64", No),
            ("7", No),
            ("", No),
        ] {
            assert_eq!(first(release), verdict, "{release}");
        }
        let old = kernel("6.12.48+deb13-amd64").series_line();
        assert!(old.next.contains("-t trixie-backports"), "{old:?}");
    }

    #[test]
    fn configurations() {
        let with = |version: &str, config: Option<&str>, loaded| {
            let kernel = Kernel {
                version: version.into(),
                config: config.map(str::to_owned),
                ..kernel(listed().next().unwrap())
            };
            verdicts(&kernel.lines(loaded))
        };
        let smp = "#1 SMP PREEMPT_DYNAMIC Debian";
        assert_eq!(with(smp, None, false), [Ok]);
        assert_eq!(with(smp, Some("CONFIG_RUST=y\n"), false), [Ok]);
        let off = "# CONFIG_RUST is not set\nCONFIG_RUSTC_VERSION=0\n";
        assert_eq!(with(smp, Some(off), false), [Ok, No]);
        assert_eq!(with("#1 SMP PREEMPT_RT Debian", None, false), [Ok, No]);
        let realtime = "CONFIG_RUST=y\nCONFIG_PREEMPT_RT=y\n";
        assert_eq!(with("#1 SMP", Some(realtime), true), [Ok, No]);
    }

    #[test]
    fn signatures() {
        assert!(locked_down("none [integrity] confidentiality\n"));
        assert!(locked_down("none integrity [confidentiality]\n"));
        assert!(!locked_down("[none] integrity confidentiality\n"));
        assert!(!locked_down(""));
        let kernel = Kernel {
            signed_only: Some("module.sig_enforce"),
            ..kernel(listed().next().unwrap())
        };
        assert_eq!(verdicts(&kernel.lines(false)), [Ok, Unsure]);
        assert_eq!(verdicts(&kernel.lines(true)), [Ok]);
    }
}
