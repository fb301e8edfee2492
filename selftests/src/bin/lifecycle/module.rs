// SPDX-License-Identifier: GPL-2.0-only

//! Loading and unloading kernel modules, and reading the kernel's log.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use kvm_bindings::KVM_CAP_IRQCHIP;
use selftests::kvm::{Answer, Errno, Handle};
pub(crate) use selftests::modules::{can_load_kvm, load_kvm, unload_kvm};
use selftests::modules::{insmod, unload};
use selftests::tap::equal;

/// The module under test.
pub(crate) struct Module {
    /// Its device.
    pub(crate) device: String,
    name: &'static str,
    file: &'static str,
}

impl Module {
    /// The module behind a device.
    pub(crate) fn of(device: &str) -> Self {
        let device = device.to_owned();
        if device.ends_with("/kvm") {
            Self {
                device,
                name: "kvm_amd",
                file: "/lab/kvm/kvm-amd.ko",
            }
        } else {
            Self {
                device,
                name: "pacifica",
                file: "/lab/pacifica.ko",
            }
        }
    }

    /// Whether the module is the kernel's own.
    pub(crate) fn is_kvm(&self) -> bool {
        self.name == "kvm_amd"
    }

    /// Whether it has in-kernel interrupt controllers.
    pub(crate) fn has_irqchip(&self) -> bool {
        Handle::open(&self.device).is_ok_and(|device| device.extension(KVM_CAP_IRQCHIP) > 0)
    }

    /// How often the module is in use.
    pub(crate) fn users(&self) -> Option<u32> {
        let text = fs::read_to_string(format!("/sys/module/{}/refcnt", self.name)).ok()?;
        text.trim().parse().ok()
    }

    /// Loads it.
    pub(crate) fn load(&self) -> Result<(), String> {
        insmod(self.file, &[])
    }

    /// Loads it with a parameter.
    pub(crate) fn load_with(&self, parameter: &str) -> Result<(), String> {
        insmod(self.file, &[parameter])
    }

    /// Loads it by one system call, which answers its error.
    pub(crate) fn try_load(&self) -> Answer {
        let file = File::open(self.file).map_err(|_| Errno::last())?;
        // SAFETY: The descriptor is the file's, and the parameters are a string that ends in zero.
        let answer =
            unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
        if answer == 0 {
            Ok(0)
        } else {
            Err(Errno::last())
        }
    }

    /// Unloads it, unless it is in use.
    pub(crate) fn unload(&self) -> Result<(), Errno> {
        unload(self.name)
    }
}

/// EFER (APM vol. 2, 3.1.7), its bit SVME, and VM_HSAVE_PA (APM vol. 2, 15.30.4).
const EFER: u64 = 0xc000_0080;
const EFER_SVME: u64 = 1 << 12;
const VM_HSAVE_PA: u64 = 0xc001_0117;

/// On each CPU that is online, whether SVM is turned on and whether VMRUN has its page.
pub(crate) fn svm() -> Result<Vec<(bool, bool)>, String> {
    if !Path::new("/dev/cpu/0/msr").exists() {
        insmod("/lab/msr.ko", &[])?;
    }
    let mut cpus = Vec::new();
    for cpu in 0.. {
        let Ok(file) = File::open(format!("/dev/cpu/{cpu}/msr")) else {
            break;
        };
        let read = |number| {
            let mut value = [0; 8];
            let read = file.read_exact_at(&mut value, number);
            read.map_err(|e| format!("MSR {number:#x} of CPU {cpu}: {e}"))?;
            Ok::<_, String>(u64::from_le_bytes(value))
        };
        cpus.push((read(EFER)? & EFER_SVME != 0, read(VM_HSAVE_PA)? != 0));
    }
    if cpus.is_empty() {
        return Err("no CPU shows its MSRs".into());
    }
    Ok(cpus)
}

/// Empties the kernel's log.
pub(crate) fn clear_kernel_log() -> Result<(), String> {
    // SAFETY: Type 5 (SYSLOG_ACTION_CLEAR) takes no buffer.
    let answer = unsafe { libc::syscall(libc::SYS_syslog, 5, 0, 0) };
    equal("clearing the kernel's log", answer, 0)
}

/// The kernel's log.
pub(crate) fn kernel_log() -> String {
    Command::new("dmesg")
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default()
}
