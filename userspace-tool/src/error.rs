// SPDX-License-Identifier: GPL-2.0-only

//! What can go wrong on the host, and what the user can do about it.

use std::io;
use std::path::{Path, PathBuf};

/// How KVM and Pacifica both stay loaded, and whichever has the first virtual machine has SVM.
pub(crate) const TAKE_TURNS: &str = "For both to stay loaded and take turns, as root: \
    `echo options kvm enable_virt_at_load=0 >/etc/modprobe.d/pacifica.conf`, \
    then `modprobe -r kvm_amd && modprobe kvm_amd`, or reboot. To do without KVM: `modprobe -r kvm_amd`.";

/// A failure of this program or of the host. Guests do not cause these: see [`crate::outcome`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The device node is not there.
    #[error("there is no {}", .0.display())]
    NodeAbsent(PathBuf),
    /// The device node may not be opened.
    #[error("no permission to open {}", .0.display())]
    NodeDenied(PathBuf),
    /// The device node cannot be opened for another reason.
    #[error("cannot open {}: {error}", node.display())]
    NodeOpen {
        /// The device node.
        node: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The node is there, but it does not speak the KVM API.
    #[error("{} does not speak version 12 of the KVM API (it answers {version})", node.display())]
    ApiVersion {
        /// The device node.
        node: PathBuf,
        /// What it answered.
        version: i32,
    },
    /// Another hypervisor holds the processor's virtualization.
    #[error("cannot make a virtual machine: SVM is in use by another hypervisor")]
    SvmBusy,
    /// The module lacks a capability.
    #[error("{} lacks the capability {capability}", node.display())]
    Capability {
        /// The device node.
        node: PathBuf,
        /// The capability's name in the KVM API.
        capability: &'static str,
    },
    /// A request to the module failed.
    #[error("{request} failed: {error}")]
    Kvm {
        /// What was asked for.
        request: &'static str,
        /// Why it failed.
        error: io::Error,
    },
    /// More processors than the module supports.
    #[error("{asked} processors asked for, but the module supports at most {limit}")]
    TooManyCpus {
        /// What the user asked for.
        asked: u32,
        /// What there is.
        limit: usize,
    },
    /// A file cannot be opened or read.
    #[error("cannot read the {what} {}: {error}", path.display())]
    File {
        /// What the file was to be.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// What describes the machine does not.
    #[error("cannot understand the machine {}: {reason}", path.display())]
    Machine {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A machine cannot be made.
    #[error("{what} failed: {reason}")]
    Image {
        /// What was being done.
        what: String,
        /// Why it failed.
        reason: String,
    },
    /// A machine that runs cannot be asked, or does not do it.
    #[error("the machine {name}: {error}")]
    Control {
        /// Its name.
        name: String,
        /// Why not.
        error: io::Error,
    },
    /// Another program uses the disk, and one of both writes to it.
    #[error("the disk {} is in use by another program", .0.display())]
    DiskInUse(PathBuf),
    /// A fork cannot have a disk of its own.
    #[error("no copy of the disk {}: {reason}", path.display())]
    NoCopy {
        /// The disk.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// A network device cannot be plugged in.
    #[error("cannot use the {what}: {error}")]
    Network {
        /// What it was to be plugged into.
        what: String,
        /// Why not.
        error: io::Error,
    },
    /// Disks and networks interrupt.
    #[error("disks and networks need interrupt controllers")]
    DevicesWithoutInterrupts,
    /// More devices than there are places.
    #[error("{asked} devices asked for, but there is room for {limit}")]
    TooManyDevices {
        /// What the user asked for.
        asked: usize,
        /// What there is.
        limit: usize,
    },
    /// The file is no kernel that can be started.
    #[error("{} is not a kernel that can be started: {reason}", path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The guest has too little memory for the kernel.
    #[error("the kernel needs {need_mib} MiB of memory, but the guest has {have_mib} MiB")]
    KernelTooLarge {
        /// How much memory the kernel needs to start.
        need_mib: u64,
        /// How much there is.
        have_mib: u64,
    },
    /// The guest has too little memory for the initrd.
    #[error("the initrd of {initrd_mib} MiB does not fit in memory beside the kernel: {room_mib} MiB are free")]
    InitrdTooLarge {
        /// The size of the initrd.
        initrd_mib: u64,
        /// The room that there is.
        room_mib: u64,
    },
    /// The command line is too long or holds a NUL.
    #[error("the kernel command line is not usable: {0}")]
    CommandLine(String),
    /// The host cannot give the guest its memory.
    #[error("cannot allocate {mib} MiB of guest memory: {reason}")]
    Memory {
        /// How much.
        mib: u64,
        /// Why not.
        reason: String,
    },
    /// An access to guest memory that should have been possible.
    #[error("cannot write {what} to guest memory: {reason}")]
    GuestMemory {
        /// What was to be written.
        what: &'static str,
        /// Why not.
        reason: String,
    },
    /// The console cannot be set up.
    #[error("cannot set up the console {what}: {error}")]
    Console {
        /// Which one.
        what: String,
        /// Why not.
        error: io::Error,
    },
    /// A file is no machine that was saved.
    #[error("cannot restore {}: {reason}", path.display())]
    Saved {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A machine that was saved wants what the user has not allowed.
    #[error("cannot restore {}: it wants {wants}", path.display())]
    Consent {
        /// The file.
        path: PathBuf,
        /// What it wants.
        wants: String,
    },
    /// A state cannot be put back.
    #[error("the state is not this machine's: {0}")]
    State(String),
    /// A file cannot be written.
    #[error("cannot write {}: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// A system call that should not fail did.
    #[error("{call} failed: {error}")]
    System {
        /// What was called.
        call: &'static str,
        /// Why it failed.
        error: io::Error,
    },
}

impl Error {
    /// Wraps a failed request to the module. `EBUSY` has one meaning only.
    pub(crate) fn kvm(request: &'static str, error: vmm_sys_util::errno::Error) -> Self {
        match nix::errno::Errno::from_raw(error.errno()) {
            nix::errno::Errno::EBUSY => Error::SvmBusy,
            _ => Error::Kvm {
                request,
                error: error.into(),
            },
        }
    }

    /// Wraps a failed system call.
    pub(crate) fn system(call: &'static str, error: impl Into<io::Error>) -> Self {
        Error::System {
            call,
            error: error.into(),
        }
    }

    /// What the user should do next: a command, or an option.
    pub(crate) fn hint(&self) -> Option<String> {
        Some(match self {
            Error::NodeAbsent(node) => absent(node, has_amd_v()).into(),
            Error::NodeDenied(_) => {
                "Run as root, or add yourself to the group kvm (`adduser $USER kvm`) and log in again.".into()
            }
            Error::NodeOpen { .. } | Error::ApiVersion { .. } => {
                "Name the hypervisor's node with --device, for example --device /dev/kvm.".into()
            }
            Error::SvmBusy => {
                format!("End the other one's virtual machines. KVM may hold SVM without any. {TAKE_TURNS}")
            }
            Error::Capability { .. } => "Is the module of another version than this program? `pacifica check` tells.".into(),
            Error::Kvm { .. } => "`dmesg` may have the module's reason; `pacifica check` looks at the host.".into(),
            Error::TooManyCpus { .. } => "Ask for fewer with --cpus.".into(),
            Error::File { what, .. } => format!("Name another file with --{what}."),
            Error::Machine { .. } => {
                "`pacifica run --print-config` with options writes such a file; `pacifica run --help` has the words.".into()
            }
            Error::Image { .. } => {
                "It needs Debian's packages mmdebstrap and e2fsprogs, a mirror that answers (--mirror), and a directory that is not there yet.".into()
            }
            Error::Control { .. } => {
                "`pacifica ps` lists those that run; one has a name if it was started with --name, and a name belongs to one.".into()
            }
            Error::DiskInUse(_) => {
                "End the other one. Several machines can have one disk if all say --disk FILE,ro.".into()
            }
            Error::NoCopy { .. } => {
                "A machine can be forked whose disks are files, or are only read (--disk FILE,ro).".into()
            }
            Error::Network { .. } => {
                "--net passt needs Debian's package passt, but no rights; --net tap=NAME needs a TAP device that is yours \
                 (as root: `ip tuntap add NAME mode tap user USER`)."
                    .into()
            }
            Error::DevicesWithoutInterrupts => "Leave --irqchip none away.".into(),
            Error::TooManyDevices { .. } => "Ask for fewer with --disk and --net.".into(),
            Error::NotAKernel { .. } => {
                "Give a bzImage (on Debian /boot/vmlinuz-*) or a 64-bit ELF image for x86 with --kernel.".into()
            }
            Error::KernelTooLarge { need_mib, .. } => format!("Give more with --memory {need_mib}M or above."),
            Error::InitrdTooLarge { .. } | Error::GuestMemory { .. } => "Give the guest more with --memory.".into(),
            Error::CommandLine(_) => "Give another with --append.".into(),
            Error::Memory { .. } => "Ask for less with --memory.".into(),
            Error::Console { .. } => "Choose another with --console: stdio, none, or a file.".into(),
            Error::Saved { .. } | Error::State(_) => {
                "`pacifica save` writes such files. One that is damaged cannot be mended.".into()
            }
            Error::Consent { .. } => {
                "Name all disks with --disk FILE[,ro] and all networks with --net WHAT, in their order; or say --trust if \
                 you know who has written the file."
                    .into()
            }
            Error::Write { .. } => "Name another file; a file that was there is as it was.".into(),
            Error::System { .. } => "`pacifica check` looks at the host; as root more is allowed.".into(),
        })
    }
}

/// What to do without a node. The source tree has an emulated machine for those without AMD-V.
fn absent(node: &Path, amd_v: bool) -> &'static str {
    if !amd_v {
        "This machine shows no AMD-V. `make demo` in the source tree runs a guest on an emulated one; `pacifica check` says more."
    } else if node.ends_with("kvm") {
        "Run `modprobe kvm_amd`, then `pacifica check --device /dev/kvm`."
    } else {
        "Load the module: `make load` in the source tree, or `modprobe pacifica`; then `pacifica check`."
    }
}

/// Whether this machine's processor has AMD-V and shows it.
fn has_amd_v() -> bool {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|line| line.split_whitespace().any(|flag| flag == "svm"))
}

/// The result of whatever can fail on the host.
pub(crate) type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_amd_v_there_is_the_demo() {
        for node in ["/dev/pacifica", "/dev/kvm"] {
            assert!(absent(Path::new(node), false).contains("`make demo`"));
        }
        assert!(absent(Path::new("/dev/pacifica"), true).contains("`make load`"));
        assert!(absent(Path::new("/dev/kvm"), true).contains("`modprobe kvm_amd`"));
    }
}
