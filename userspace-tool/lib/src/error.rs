// SPDX-License-Identifier: GPL-2.0-only

//! What can go wrong.

use std::io;

/// An error of this library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device cannot do this: it is KVM's, or that of an older module.
    #[error("this device has no snapshots")]
    Missing,
    /// A vCPU is in an ioctl, most likely `KVM_RUN`: nothing was done. Stop it, and try again.
    #[error("a vCPU is in an ioctl")]
    Busy,
    /// The VM has what a snapshot does not have: dirty rings, or a VFIO device.
    #[error("a VM with dirty rings or a VFIO device has no snapshots")]
    Unsupported,
    /// So many slices of guest memory live that can be written through: nothing was done. Devices
    /// must be stopped first.
    #[error("{0} slices of guest memory are in use")]
    SlicesInUse(usize),
    /// The limit of the snapshot: nothing is lost, and there is more room after a reset, or with a
    /// higher limit.
    #[error("the limit of the snapshot is reached")]
    Limit,
    /// A vCPU of the snapshot has no descriptor any more, or the VM has gone back to an instant
    /// before it.
    #[error("the snapshot, or a vCPU that it is of, is gone")]
    Gone,
    /// The process has so many threads, and `fork(2)` would take one along: nothing was done.
    #[error("{0} threads")]
    Threads(usize),
    /// Guest memory is shared with other processes, and so would be with a child: nothing was done.
    #[error("guest memory is not private")]
    SharedMemory,
    /// Anything else.
    #[error("{ioctl}: {error}")]
    Ioctl {
        /// The name of the ioctl.
        ioctl: &'static str,
        /// Its error.
        error: io::Error,
    },
}

/// What most functions here answer.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The error of an ioctl. The numbers are those that `docs/abi.md` gives.
    pub(crate) fn new(ioctl: &'static str, error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOTTY) => Self::Missing,
            Some(libc::EBUSY) => Self::Busy,
            Some(libc::EOPNOTSUPP) => Self::Unsupported,
            Some(libc::ENOSPC) => Self::Limit,
            Some(libc::ENXIO) => Self::Gone,
            _ => Self::Ioctl { ioctl, error },
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Ioctl { error, .. } => error,
            Error::Limit => io::Error::from_raw_os_error(libc::ENOSPC),
            other => io::Error::other(other),
        }
    }
}

/// Whether `KVM_RUN` ended because the snapshot has no room for old contents. The guest goes on
/// where it was, after a [reset](crate::Snapshot::reset) or with a
/// [higher limit](crate::Snapshot::set_limit).
pub fn is_limit(error: &kvm_ioctls::Error) -> bool {
    error.errno() == libc::ENOSPC
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_reasons() {
        let of = |number| Error::new("PACIFICA_RESET", io::Error::from_raw_os_error(number));
        assert!(matches!(of(libc::EBUSY), Error::Busy));
        assert!(matches!(of(libc::ENOSPC), Error::Limit));
        assert!(matches!(of(libc::ENOTTY), Error::Missing));
        let text = of(libc::EIO).to_string();
        assert!(text.starts_with("PACIFICA_RESET: "), "{text}");
        assert!(is_limit(&kvm_ioctls::Error::new(libc::ENOSPC)));
        assert!(!is_limit(&kvm_ioctls::Error::new(libc::EINTR)));
    }
}
