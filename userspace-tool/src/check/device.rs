// SPDX-License-Identifier: GPL-2.0-only

//! The device node: each step needs the one before it.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use kvm_ioctls::Kvm;

use crate::error::{Error, Result};
use crate::kvm;

use super::Line;

/// A line from a step that may fail.
fn from_step<T>(what: &'static str, result: &Result<T>, found: &str) -> Line {
    match result {
        Ok(_) => Line::ok(what, found),
        Err(error) => Line::no(
            what,
            error.to_string(),
            error
                .hint()
                .unwrap_or_else(|| "`dmesg | grep pacifica` may say why.".into()),
        ),
    }
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

/// The node's lines.
pub(super) fn lines(node: &Path) -> Vec<Line> {
    const EXISTS: &str = "device node";
    const OPENS: &str = "permission";
    const SPEAKS: &str = "API version";
    const WORKS: &str = "making a machine";
    let exists = look_at(node);
    let mut lines = vec![from_step(EXISTS, &exists, &node.display().to_string())];
    let kvm = exists.and_then(|()| kvm::open(node));
    match &kvm {
        Ok(kvm) => {
            lines.push(Line::ok(OPENS, "granted"));
            lines.push(Line::ok(SPEAKS, kvm::API_VERSION.to_string()));
            lines.push(from_step(WORKS, &make_machine(kvm, node), "works"));
        }
        Err(Error::ApiVersion { .. }) => {
            lines.push(Line::ok(OPENS, "granted"));
            lines.push(from_step(SPEAKS, &kvm, ""));
            lines.push(Line::untried(WORKS));
        }
        Err(Error::NodeAbsent(_)) => lines.extend([OPENS, SPEAKS, WORKS].map(Line::untried)),
        Err(_) => {
            lines.push(from_step(OPENS, &kvm, ""));
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
    use super::super::verdicts;
    use super::super::Verdict;
    use super::*;

    #[test]
    fn an_absent_node_fails_every_step() {
        assert_eq!(
            verdicts(&lines(Path::new("/dev/there is none"))),
            [Verdict::No; 4]
        );
        assert_eq!(verdicts(&lines(Path::new("/dev/null")))[0], Verdict::Ok);
    }
}
