// SPDX-License-Identifier: GPL-2.0-only

//! Children of this program: copies of it, made by fork(2).

use std::panic::{catch_unwind, AssertUnwindSafe};

/// A child that is to be waited for.
pub struct Child(libc::pid_t);

impl Child {
    /// One that does `work` and ends. To be called while this process has one thread.
    pub fn start(work: impl FnOnce() -> Result<(), String>) -> Result<Self, String> {
        // SAFETY: There is one thread, so nobody else holds a lock that the child needs.
        match unsafe { libc::fork() } {
            -1 => Err(format!("fork: {}", std::io::Error::last_os_error())),
            0 => {
                let done = catch_unwind(AssertUnwindSafe(work));
                let result = done.unwrap_or_else(|_| Err("a panic".into()));
                if let Err(error) = &result {
                    println!("# child: {error}");
                }
                // SAFETY: Ends the child at once, without what the parent wants done at its end.
                unsafe { libc::_exit(i32::from(result.is_err())) }
            }
            child => Ok(Self(child)),
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: The child was not waited for yet, so it is this process' own.
        unsafe { libc::kill(self.0, signal) };
    }

    fn status(self) -> i32 {
        let mut status = 0;
        // SAFETY: The variable is valid for the write.
        unsafe { libc::waitpid(self.0, &mut status, 0) };
        status
    }

    /// Waits for its end, which should be a good one.
    pub fn join(self) -> Result<(), String> {
        match self.status() {
            0 => Ok(()),
            status => Err(format!("a child ended with status {status:#x}")),
        }
    }

    /// Ends it.
    pub fn kill(self) {
        self.signal(libc::SIGKILL);
        self.status();
    }
}
