// SPDX-License-Identifier: GPL-2.0-only

//! `pacifica check`: is this host ready, and if not, what is to be done?

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::ExitCode;

use kvm_ioctls::Kvm;

use crate::error::{Error, Result};
use crate::kvm;
use crate::outcome::STATUS_HOST_ERROR;

/// The oldest kernel that the module is made for.
const OLDEST_KERNEL: (u32, u32) = (7, 2);

/// One line of the report: what was looked at, what was found, and the remedy if it is not right.
#[derive(Debug)]
struct Line {
    what: &'static str,
    found: String,
    remedy: Option<String>,
}

impl Line {
    /// A line that is right if `ok`.
    fn new(
        what: &'static str,
        found: impl Into<String>,
        ok: bool,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            what,
            found: found.into(),
            remedy: (!ok).then(|| remedy.into()),
        }
    }

    /// A line from a step that may fail.
    fn from_step<T>(what: &'static str, result: &Result<T>, found: &str) -> Self {
        match result {
            Ok(_) => Self::new(what, found, true, ""),
            Err(error) => Self::new(
                what,
                error.to_string(),
                false,
                error.hint().unwrap_or_default(),
            ),
        }
    }

    /// A line for a step that could not be tried.
    fn untried(what: &'static str) -> Self {
        Self::new(what, "not tried", false, "Fix what is above first.")
    }

    /// Prints the line, and the remedy below it.
    fn print(&self) {
        let verdict = if self.remedy.is_none() { "ok" } else { "NO" };
        println!("{verdict}  {:<22} {}", self.what, self.found);
        if let Some(remedy) = self.remedy.as_deref().filter(|remedy| !remedy.is_empty()) {
            println!("    -> {remedy}");
        }
    }
}

/// Looks at everything, prints a line for each, and succeeds only if all is right.
pub(crate) fn check(node: &Path) -> ExitCode {
    let mut lines = processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
    lines.push(kernel(
        &fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default(),
    ));
    lines.extend(modules(node, |module| {
        Path::new("/sys/module").join(module).exists()
    }));
    lines.extend(device(node));
    lines.iter().for_each(Line::print);
    if lines.iter().all(|line| line.remedy.is_none()) {
        println!("This host is ready.");
        ExitCode::SUCCESS
    } else {
        println!("This host is not ready.");
        ExitCode::from(STATUS_HOST_ERROR)
    }
}

/// The value of a field of `/proc/cpuinfo`, from its first processor.
fn field<'a>(cpuinfo: &'a str, name: &str) -> &'a str {
    let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    fields
        .find(|(key, _)| key.trim() == name)
        .map_or("", |(_, value)| value.trim())
}

/// The processor's lines.
fn processor(cpuinfo: &str) -> Vec<Line> {
    let vendor = field(cpuinfo, "vendor_id");
    let flags = field(cpuinfo, "flags");
    let has = |flag| flags.split_whitespace().any(|word| word == flag);
    let found = |flag| if has(flag) { "there" } else { "not there" };
    vec![
        Line::new(
            "processor vendor",
            if vendor.is_empty() { "unknown" } else { vendor },
            matches!(vendor, "AuthenticAMD" | "HygonGenuine"),
            "AMD-V is there on AMD processors only. Try the emulated host: `make demo`.",
        ),
        Line::new(
            "SVM (AMD-V)",
            found("svm"),
            has("svm"),
            "Enable SVM in the firmware's setup; in a virtual machine, enable nested virtualization.",
        ),
        Line::new(
            "nested paging (NPT)",
            found("npt"),
            has("npt"),
            "This processor is too old, or a virtual machine hides the feature.",
        ),
    ]
}

/// The kernel's line.
fn kernel(release: &str) -> Line {
    let release = release.trim();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => (0, 0),
    };
    let (major, minor) = OLDEST_KERNEL;
    Line::new(
        "kernel version",
        release,
        version >= OLDEST_KERNEL,
        format!("Boot Linux {major}.{minor} or newer; Debian 13 has it in backports."),
    )
}

/// The lines about modules.
fn modules(node: &Path, loaded: impl Fn(&str) -> bool) -> Vec<Line> {
    let found = |module| {
        if loaded(module) {
            "loaded"
        } else {
            "not loaded"
        }
    };
    if node.ends_with("kvm") {
        let remedy = "Run `modprobe kvm_amd`.";
        return vec![Line::new(
            "module kvm_amd",
            found("kvm_amd"),
            loaded("kvm_amd"),
            remedy,
        )];
    }
    vec![
        Line::new(
            "module kvm_amd",
            found("kvm_amd"),
            !loaded("kvm_amd"),
            "It holds SVM: stop its guests and run `modprobe -r kvm_amd`.",
        ),
        Line::new(
            "module pacifica",
            found("pacifica"),
            loaded("pacifica"),
            "Run `make load` in the source tree, or `modprobe pacifica`.",
        ),
    ]
}

/// Whether the node is there and is a device.
fn look_at(node: &Path) -> Result<()> {
    match fs::metadata(node) {
        Ok(metadata) if metadata.file_type().is_char_device() => Ok(()),
        Ok(_) => Err(Error::NodeOpen {
            node: node.into(),
            error: std::io::Error::other("it is not a character device"),
        }),
        Err(_) => Err(Error::NodeAbsent(node.into())),
    }
}

/// The device node's lines: each step needs the one before it.
fn device(node: &Path) -> Vec<Line> {
    const EXISTS: &str = "device node";
    const OPENS: &str = "permission";
    const SPEAKS: &str = "API version";
    const WORKS: &str = "making a machine";
    let exists = look_at(node);
    let mut lines = vec![Line::from_step(
        EXISTS,
        &exists,
        &node.display().to_string(),
    )];
    let kvm = exists.and_then(|()| kvm::open(node));
    match &kvm {
        Ok(kvm) => {
            lines.push(Line::from_step(OPENS, &Ok(()), "granted"));
            lines.push(Line::from_step(
                SPEAKS,
                &Ok(()),
                &kvm::API_VERSION.to_string(),
            ));
            lines.push(Line::from_step(WORKS, &make_machine(kvm, node), "works"));
        }
        Err(Error::ApiVersion { .. }) => {
            lines.push(Line::from_step(OPENS, &Ok(()), "granted"));
            lines.push(Line::from_step(SPEAKS, &kvm, ""));
            lines.push(Line::untried(WORKS));
        }
        Err(Error::NodeAbsent(_)) => lines.extend([OPENS, SPEAKS, WORKS].map(Line::untried)),
        Err(_) => {
            lines.push(Line::from_step(OPENS, &kvm, ""));
            lines.extend([SPEAKS, WORKS].map(Line::untried));
        }
    }
    lines
}

/// Makes a virtual machine with one processor, and drops it.
fn make_machine(kvm: &Kvm, node: &Path) -> Result<()> {
    kvm::require(kvm, node, false)?;
    let vm = kvm
        .create_vm()
        .map_err(|error| Error::kvm("KVM_CREATE_VM", error))?;
    vm.create_vcpu(0)
        .map_err(|error| Error::kvm("KVM_CREATE_VCPU", error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str =
        "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu svm npt lm\n\nprocessor\t: 1\n";

    fn verdicts(lines: &[Line]) -> Vec<bool> {
        lines.iter().map(|line| line.remedy.is_none()).collect()
    }

    #[test]
    fn processors() {
        assert_eq!(verdicts(&processor(CPUINFO)), [true, true, true]);
        assert_eq!(
            verdicts(&processor(&CPUINFO.replace("svm npt", "svm_lock"))),
            [true, false, false]
        );
        assert_eq!(
            verdicts(&processor("vendor_id: GenuineIntel\nflags: vmx")),
            [false; 3]
        );
        assert_eq!(verdicts(&processor("")), [false; 3]);
    }

    #[test]
    fn kernels() {
        for (release, ok) in [
            ("7.2.12+deb13-cloud-amd64\n", true),
            ("7.3-rc1", true),
            ("8.0.0", true),
            ("6.12.48+deb13-amd64", false),
            ("7", false),
            ("", false),
        ] {
            assert_eq!(kernel(release).remedy.is_none(), ok, "{release}");
        }
    }

    #[test]
    fn only_one_hypervisor_at_a_time() {
        let node = Path::new("/dev/pacifica");
        assert_eq!(
            verdicts(&modules(node, |module| module == "pacifica")),
            [true, true]
        );
        assert_eq!(
            verdicts(&modules(node, |module| module == "kvm_amd")),
            [false, false]
        );
        assert_eq!(
            verdicts(&modules(Path::new("/dev/kvm"), |module| module == "kvm_amd")),
            [true]
        );
    }

    #[test]
    fn an_absent_node_fails_every_step() {
        assert_eq!(
            verdicts(&device(Path::new("/dev/there is none"))),
            [false; 4]
        );
        assert!(verdicts(&device(Path::new("/dev/null")))[0]);
    }
}
