// SPDX-License-Identifier: GPL-2.0-only

//! Event descriptors (eventfd(2)).

use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

use crate::error::{Error, Result};

/// A new one, which no program inherits that this one starts, and which a read does not wait for.
pub(crate) fn new() -> Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(|error| Error::system("eventfd", error))
}

/// One for [`nix::poll::PollFd`].
pub(crate) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: The descriptor is open for as long as the eventfd is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{fcntl, FcntlArg, FdFlag};

    #[test]
    fn no_other_program_gets_it() {
        let event = new().unwrap();
        let flags = fcntl(borrow(&event), FcntlArg::F_GETFD).unwrap();
        assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
        assert!(event.read().is_err());
    }
}
