// SPDX-License-Identifier: GPL-2.0-only

//! Child processes that run guests and die.

use std::sync::atomic::{AtomicU64, Ordering};

use selftests::memory::PAGE;
use selftests::patience::until;

/// A number that a child counts up and its parent reads.
pub(crate) struct Counter(*mut AtomicU64);

impl Counter {
    fn new() -> Self {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: A new mapping at an address of the kernel's choice touches no other object.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, protection, flags, -1, 0) };
        assert_ne!(page, libc::MAP_FAILED);
        Self(page.cast())
    }

    fn cell(&self) -> &AtomicU64 {
        // SAFETY: The mapping lives as long as this object, and zeros are an `AtomicU64`.
        unsafe { &*self.0 }
    }

    /// Counts one up.
    pub(crate) fn add(&self) {
        self.cell().fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // SAFETY: The mapping is this object's own.
        unsafe { libc::munmap(self.0.cast(), PAGE) };
    }
}

/// A child process. One that is dropped is killed.
pub(crate) struct Child {
    pid: i32,
    counter: Counter,
}

impl Child {
    /// Starts a child that does `work` and ends.
    pub(crate) fn start(work: impl FnOnce(&Counter)) -> Self {
        let counter = Counter::new();
        // SAFETY: This program has no other thread now that holds a lock.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork");
        if pid == 0 {
            work(&counter);
            // SAFETY: Ends this process at once.
            unsafe { libc::_exit(0) }
        }
        Self { pid, counter }
    }

    /// How far the child has counted.
    pub(crate) fn count(&self) -> u64 {
        self.counter.cell().load(Ordering::SeqCst)
    }

    /// Waits until the child has counted to `target`.
    pub(crate) fn wait_for(&self, target: u64) -> Result<(), String> {
        until("the guest goes on", || self.count() >= target)
            .map_err(|error| format!("{error}: it stands at {} of {target}", self.count()))
    }

    /// Kills the child and waits for its end.
    pub(crate) fn kill(self) -> Result<(), String> {
        // SAFETY: Both calls concern this object's own child only.
        let ended = || unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), libc::WNOHANG) != 0 };
        // SAFETY: As above.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        until(&format!("process {} dies", self.pid), ended)?;
        std::mem::forget(self);
        Ok(())
    }

    /// Lets the child live when this program ends.
    pub(crate) fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: Both calls concern this object's own child only.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}
