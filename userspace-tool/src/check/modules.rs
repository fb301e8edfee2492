// SPDX-License-Identifier: GPL-2.0-only

//! The modules: KVM beside Pacifica, and Pacifica with its version.

use std::fs;
use std::path::Path;

use crate::error::TAKE_TURNS;

use super::Line;

/// This program's version. The module of the same sources has the same one.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What is loaded, and what could be.
#[derive(Debug, Default)]
pub(super) struct Modules {
    kvm_amd: bool,
    /// KVM takes SVM when it is loaded, not with its first virtual machine.
    at_load: bool,
    /// A file says that it shall not, the next time.
    configured: bool,
    /// Pacifica is loaded.
    pub(super) pacifica: bool,
    /// The version of the loaded one.
    version: Option<String>,
    /// There is one for the running kernel.
    installed: bool,
    /// DKMS has its sources.
    dkms: bool,
}

/// Whether a directory has a file of the module, compressed or not.
fn has_module(directory: &Path) -> bool {
    let mut entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.any(|entry| {
        let name = entry.file_name();
        name.to_string_lossy()
            .split_once('.')
            .is_some_and(|(name, ending)| {
                name == "pacifica" && matches!(ending, "ko" | "ko.xz" | "ko.zst" | "ko.gz")
            })
    })
}

/// Whether a line of modprobe's configuration turns the parameter off.
fn turns_off(line: &str) -> bool {
    let mut words = line.split_whitespace();
    (words.next(), words.next()) == (Some("options"), Some("kvm"))
        && words.any(|word| {
            matches!(
                word.strip_prefix("enable_virt_at_load="),
                Some("0" | "n" | "N")
            )
        })
}

/// Whether modprobe's configuration turns the parameter off.
fn configured() -> bool {
    let directories = [
        "/etc/modprobe.d",
        "/run/modprobe.d",
        "/usr/lib/modprobe.d",
        "/lib/modprobe.d",
    ];
    let files = directories
        .into_iter()
        .flat_map(fs::read_dir)
        .flatten()
        .flatten();
    let mut texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
    texts.any(|text| text.lines().any(turns_off))
}

impl Modules {
    /// What there is on this host.
    pub(super) fn found(release: &str) -> Self {
        let read = |path: &str| {
            let text = fs::read_to_string(Path::new("/sys/module").join(path)).ok()?;
            Some(text.trim().to_owned())
        };
        let loaded = |name| Path::new("/sys/module").join(name).exists();
        let directory = Path::new("/lib/modules").join(release);
        Self {
            kvm_amd: loaded("kvm_amd"),
            at_load: read("kvm/parameters/enable_virt_at_load").is_none_or(|text| text != "N"),
            configured: configured(),
            pacifica: loaded("pacifica"),
            version: read("pacifica/version"),
            installed: ["updates", "updates/dkms"]
                .iter()
                .any(|below| has_module(&directory.join(below))),
            dkms: Path::new("/var/lib/dkms/pacifica").exists(),
        }
    }

    /// Whether a node is Pacifica's: `/dev/kvm` is when KVM is not loaded (`kvm_node=1`).
    pub(super) fn is_pacifica(&self, node: &Path) -> bool {
        !node.ends_with("kvm") || (self.pacifica && !self.kvm_amd)
    }

    /// The modules' lines.
    pub(super) fn lines(&self, node: &Path) -> Vec<Line> {
        if self.is_pacifica(node) {
            return vec![self.kvm_amd_line(), self.pacifica_line()];
        }
        const WHAT: &str = "module kvm_amd";
        vec![if self.kvm_amd {
            Line::ok(WHAT, "loaded")
        } else {
            Line::no(WHAT, "not loaded", "`modprobe kvm_amd`")
        }]
    }

    /// KVM may be loaded, too, if it leaves SVM alone until it has a virtual machine.
    fn kvm_amd_line(&self) -> Line {
        const WHAT: &str = "module kvm_amd";
        match (self.kvm_amd, self.at_load) {
            (false, _) => Line::ok(WHAT, "not loaded"),
            (true, false) => Line::ok(
                WHAT,
                "loaded; it has SVM only while it has virtual machines",
            ),
            (true, true) => Line::no(
                WHAT,
                "loaded, and holds SVM (enable_virt_at_load)",
                if self.configured {
                    "The option for it is set. Load it anew: `modprobe -r kvm_amd && modprobe kvm_amd`, or reboot."
                } else {
                    TAKE_TURNS
                },
            ),
        }
    }

    /// Pacifica must be loaded, and should be of this program's sources.
    fn pacifica_line(&self) -> Line {
        const WHAT: &str = "module pacifica";
        if !self.pacifica {
            return Line::no(
                WHAT,
                "not loaded",
                match (self.installed, self.dkms) {
                    (true, _) => "`modprobe pacifica`",
                    (false, true) => "DKMS has not built it for this kernel: `dkms autoinstall` does, or says why not.",
                    (false, false) => "in the source tree: `make load`, or for good `make debs` and `apt install ./build/debs/*.deb` (docs/install.md)",
                },
            );
        }
        let version = self.version.as_deref().unwrap_or("unknown");
        if version == VERSION {
            return Line::ok(WHAT, format!("loaded, version {version}"));
        }
        Line::unsure(
            WHAT,
            format!("loaded, version {version}, but this program is {VERSION}"),
            if self.installed {
                "`modprobe -r pacifica && modprobe pacifica`; if that changes nothing, install both of one version."
            } else {
                "`make && make unload load` in the source tree"
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::verdicts;
    use super::super::Verdict::{No, Ok, Unsure};
    use super::*;

    const NODE: &str = "/dev/pacifica";

    fn loaded() -> Modules {
        Modules {
            pacifica: true,
            version: Some(VERSION.into()),
            at_load: true,
            ..Modules::default()
        }
    }

    #[test]
    fn kvm_may_stay_if_it_takes_turns() {
        let lines = |kvm_amd, at_load| {
            let modules = Modules {
                kvm_amd,
                at_load,
                ..loaded()
            };
            verdicts(&modules.lines(Path::new(NODE)))
        };
        assert_eq!(lines(false, true), [Ok, Ok]);
        assert_eq!(lines(true, false), [Ok, Ok]);
        assert_eq!(lines(true, true), [No, Ok]);
    }

    #[test]
    fn the_option_comes_before_modprobe() {
        let modules = Modules {
            kvm_amd: true,
            ..loaded()
        };
        let next = &modules.kvm_amd_line().next;
        let (option, remove) = (next.find("enable_virt_at_load=0"), next.find("modprobe -r"));
        assert!(option.is_some() && option < remove, "{next}");
        assert!(turns_off("options kvm enable_virt_at_load=0"));
        assert!(turns_off(
            "  options  kvm halt_poll_ns=0 enable_virt_at_load=N"
        ));
        assert!(!turns_off("# options kvm enable_virt_at_load=0"));
        assert!(!turns_off("options kvm_amd enable_virt_at_load=0"));
        assert!(!turns_off("options kvm enable_virt_at_load=1"));
    }

    #[test]
    fn how_to_load_it() {
        let next = |installed, dkms| {
            let modules = Modules {
                installed,
                dkms,
                ..Modules::default()
            };
            modules.pacifica_line().next
        };
        assert!(next(true, true).contains("modprobe pacifica"));
        assert!(next(false, true).contains("dkms autoinstall"));
        assert!(next(false, false).contains("make load"));
    }

    #[test]
    fn versions_that_differ() {
        for version in [None, Some("0.0.1".to_owned())] {
            let modules = Modules {
                version,
                ..loaded()
            };
            assert_eq!(verdicts(&[modules.pacifica_line()]), [Unsure]);
        }
    }

    #[test]
    fn whose_dev_kvm_is() {
        let node = Path::new("/dev/kvm");
        let with = |kvm_amd, pacifica| Modules {
            kvm_amd,
            pacifica,
            version: Some(VERSION.into()),
            ..Modules::default()
        };
        assert_eq!(verdicts(&with(true, true).lines(node)), [Ok]);
        assert_eq!(verdicts(&with(false, false).lines(node)), [No]);
        assert_eq!(verdicts(&with(false, true).lines(node)), [Ok, Ok]);
    }

    #[test]
    fn modules_are_found_compressed_or_not() {
        let directory =
            std::env::temp_dir().join(format!("pacifica-modules-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let with = |name: &str| {
            let path = directory.join(name);
            fs::write(&path, "").unwrap();
            let found = has_module(&directory);
            fs::remove_file(path).unwrap();
            found
        };
        let found = [
            "pacifica.ko",
            "pacifica.ko.xz",
            "pacifica.ko.zst",
            "pacifica.mod",
            "kvm.ko",
        ]
        .map(with);
        fs::remove_dir(&directory).unwrap();
        assert_eq!(found, [true, true, true, false, false]);
    }
}
