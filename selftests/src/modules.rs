// SPDX-License-Identifier: GPL-2.0-only

//! Kernel modules in the emulated host: the kernel's own KVM beside the one under test.

use std::ffi::CString;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::kvm::Errno;
use crate::tap::skipped;

/// Loads a module with parameters.
pub fn insmod(file: &str, parameters: &[&str]) -> Result<(), String> {
    let output = Command::new("insmod")
        .arg(file)
        .args(parameters)
        .output()
        .map_err(|e| format!("insmod: {e}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!(
            "insmod {file}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    }
}

/// Unloads a module, unless it is in use.
pub fn unload(name: &str) -> Result<(), Errno> {
    let name = CString::new(name).map_err(|_| Errno(libc::EINVAL))?;
    // SAFETY: The name is a string that ends in zero.
    let answer = unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) };
    if answer == 0 {
        Ok(())
    } else {
        Err(Errno::last())
    }
}

fn is_loaded(name: &str) -> bool {
    Path::new("/sys/module").join(name).join("refcnt").exists()
}

/// The kernel's KVM modules in the order in which they are loaded.
fn kvm_modules() -> Vec<String> {
    let order = fs::read_to_string("/lab/kvm/order").unwrap_or_default();
    order.lines().map(str::to_owned).collect()
}

/// Skips the test where the modules are another kernel's: the debug kernel has none.
pub fn can_load_kvm() -> Result<(), String> {
    let first = kvm_modules().into_iter().next().unwrap_or_default();
    match insmod(&format!("/lab/kvm/{first}"), &[]) {
        Err(error) if error.contains("invalid module format") => {
            skipped("the modules of KVM are another kernel's")
        }
        other => other.and_then(|()| unload_kvm()),
    }
}

/// Loads kvm_amd and what it needs, with parameters of `kvm.ko`.
pub fn load_kvm(parameters: &[&str]) -> Result<(), String> {
    for file in kvm_modules() {
        if !is_loaded(&file.trim_end_matches(".ko").replace('-', "_")) {
            let parameters = if file == "kvm.ko" { parameters } else { &[] };
            insmod(&format!("/lab/kvm/{file}"), parameters)?;
        }
    }
    Ok(())
}

/// Unloads them.
pub fn unload_kvm() -> Result<(), String> {
    for file in kvm_modules().iter().rev() {
        let name = file.trim_end_matches(".ko").replace('-', "_");
        if is_loaded(&name) {
            unload(&name).map_err(|error| format!("unloading {name}: {error:?}"))?;
        }
    }
    Ok(())
}
