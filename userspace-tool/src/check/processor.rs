// SPDX-License-Identifier: GPL-2.0-only

//! The processor: AMD-V and nested paging.

use super::Line;

/// What works on any x86-64 machine.
const EMULATED: &str = "`make demo` in the source tree boots an emulated AMD-V host on any machine";

/// The value of a field of `/proc/cpuinfo`, from its first processor.
fn field<'a>(cpuinfo: &'a str, name: &str) -> &'a str {
    let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    fields
        .find(|(key, _)| key.trim() == name)
        .map_or("", |(_, value)| value.trim())
}

/// The processor's lines; the advice depends on whether this is a virtual machine.
pub(super) fn lines(cpuinfo: &str) -> Vec<Line> {
    const VENDOR: &str = "processor vendor";
    const SVM: &str = "SVM (AMD-V)";
    const NPT: &str = "nested paging (NPT)";
    let flags = field(cpuinfo, "flags");
    let has = |flag| flags.split_whitespace().any(|word| word == flag);
    let vendor = match field(cpuinfo, "vendor_id") {
        "" => "unknown",
        vendor => vendor,
    };
    if !matches!(vendor, "AuthenticAMD" | "HygonGenuine") {
        let next = format!("Only AMD and Hygon processors have AMD-V: {EMULATED}.");
        return vec![
            Line::no(VENDOR, vendor, next),
            Line::untried(SVM),
            Line::untried(NPT),
        ];
    }
    let feature = |what, flag, next: [String; 2]| match (has(flag), next) {
        (true, _) => Line::ok(what, "there"),
        (false, [virtual_machine, _]) if has("hypervisor") => Line::no(
            what,
            "not there; this is a virtual machine",
            virtual_machine,
        ),
        (false, [_, real]) => Line::no(what, "not there", real),
    };
    vec![
        Line::ok(VENDOR, vendor),
        feature(
            SVM,
            "svm",
            [
                format!("Turn nested virtualization on for it, on its host (KVM with QEMU: `-cpu host`). Or {EMULATED}."),
                format!("Turn SVM (AMD-V) on in the firmware's setup: `systemctl reboot --firmware-setup`. If it is on, this processor has none: {EMULATED}."),
            ],
        ),
        feature(
            NPT,
            "npt",
            [
                format!("Give it nested paging, on its host (KVM with QEMU: `-cpu host`). Or {EMULATED}."),
                format!("It comes with SVM. If SVM is there, this processor has none (AMD's first with it are of 2007): {EMULATED}."),
            ],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::verdicts;
    use super::super::Verdict::{No, Ok};
    use super::*;

    const CPUINFO: &str =
        "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu svm npt lm\n\nprocessor\t: 1\n";

    #[test]
    fn processors() {
        assert_eq!(verdicts(&lines(CPUINFO)), [Ok, Ok, Ok]);
        assert_eq!(
            verdicts(&lines(&CPUINFO.replace("svm npt", "svm_lock"))),
            [Ok, No, No]
        );
        assert_eq!(
            verdicts(&lines("vendor_id: GenuineIntel\nflags: vmx")),
            [No; 3]
        );
        assert_eq!(verdicts(&lines("")), [No; 3]);
    }

    #[test]
    fn the_advice_fits_the_machine() {
        let real = &lines(&CPUINFO.replace("svm", ""))[1];
        assert!(real.next.contains("--firmware-setup"), "{real:?}");
        let inner = &lines(&CPUINFO.replace("svm", "hypervisor"))[1];
        assert!(inner.next.contains("nested"), "{inner:?}");
        let other = &lines("vendor_id: GenuineIntel")[0];
        assert!(other.next.contains("make demo"), "{other:?}");
    }
}
