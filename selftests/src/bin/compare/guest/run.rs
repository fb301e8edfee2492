// SPDX-License-Identifier: GPL-2.0-only

//! Runs a guest until something ends it, and is its devices meanwhile.

use std::fmt::Write;
use std::time::{Duration, Instant};

use kvm_bindings::*;
use selftests::kvm::{number, Errno};

use super::Machine;
use crate::probe::{Probe, NO_END};

/// No probe needs as many exits.
const MOST_EXITS: usize = 40;

impl Machine {
    /// Runs the guest to an HLT, or to what else ends it; devices answer meanwhile. Whether the
    /// machine is as good as before.
    pub(crate) fn run(&self, probe: &mut Probe, limit: Duration) -> Result<bool, String> {
        let mut trace = String::new();
        let start = Instant::now();
        let _alarm = Alarm::start();
        let mut exits = 0;
        while exits < MOST_EXITS {
            match self.vcpu.run() {
                Ok(_) => {}
                // With interrupt controllers in the kernel a guest sleeps there.
                Err(Errno(libc::EINTR)) if self.halted()? => {
                    probe.put("exit", "halted");
                    probe.put("trace", trace);
                    return Ok(true);
                }
                Err(Errno(libc::EINTR)) if start.elapsed() < limit => continue,
                Err(Errno(libc::EINTR)) => {
                    probe.put("exit", NO_END);
                    return Ok(false);
                }
                Err(Errno(other)) => {
                    probe.put("exit", format!("errno-{other}"));
                    probe.put("trace", trace);
                    return Ok(false);
                }
            }
            exits += 1;
            let shared = self.vcpu.shared();
            match shared.exit_reason {
                KVM_EXIT_MMIO => self.mmio(&mut trace),
                KVM_EXIT_IO => self.port(&shared, &mut trace),
                reason => {
                    probe.put("exit", exit_name(&shared));
                    probe.put("trace", trace);
                    let broken = [KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR];
                    return Ok(!broken.contains(&reason));
                }
            }
        }
        probe.put("exit", "endless");
        probe.put("trace", trace);
        Ok(false)
    }

    fn halted(&self) -> Result<bool, String> {
        let state: kvm_mp_state = self.vcpu.handle.get(number::GET_MP_STATE)?;
        Ok(state.mp_state == KVM_MP_STATE_HALTED)
    }

    fn mmio(&self, trace: &mut String) {
        // SAFETY: The exit reason says which part of the union is meant.
        let access = unsafe { self.vcpu.shared().__bindgen_anon_1.mmio };
        let length = (access.len as usize).min(8);
        let address = access.phys_addr;
        if access.is_write != 0 {
            let _ = write!(trace, "w{address:x}:{:02x?};", &access.data[..length]);
        } else {
            let _ = write!(trace, "r{address:x}:{length};");
            let data = std::array::from_fn(|at| (address as u8).wrapping_add(at as u8) ^ 0x5a);
            self.vcpu
                .share(|shared| shared.__bindgen_anon_1.mmio.data = data);
        }
    }

    fn port(&self, shared: &kvm_run, trace: &mut String) {
        // SAFETY: As above.
        let io = unsafe { shared.__bindgen_anon_1.io };
        for index in 0..io.count as usize {
            let size = usize::from(io.size).min(4);
            let offset = io.data_offset as usize + index * size;
            if u32::from(io.direction) == KVM_EXIT_IO_IN {
                self.vcpu
                    .page()
                    .write(offset, &[0xa1, 0xa2, 0xa3, 0xa4][..size]);
                let _ = write!(trace, "in{:x}:{size};", io.port);
            } else {
                let data = self.vcpu.page().read(offset, size);
                let _ = write!(trace, "out{:x}:{data:02x?};", io.port);
            }
        }
    }
}

fn exit_name(shared: &kvm_run) -> String {
    // SAFETY: The exit reason says which part of the union is meant.
    unsafe {
        let parts = &shared.__bindgen_anon_1;
        match shared.exit_reason {
            KVM_EXIT_HLT => "hlt".into(),
            KVM_EXIT_SHUTDOWN => "shutdown".into(),
            KVM_EXIT_IRQ_WINDOW_OPEN => "window".into(),
            KVM_EXIT_INTERNAL_ERROR => format!("internal-{}", parts.internal.suberror),
            KVM_EXIT_FAIL_ENTRY => "fail-entry".into(),
            KVM_EXIT_DEBUG => {
                let arch = parts.debug.arch;
                // KVM leaves DR7 as it was there.
                format!("debug-{:x}:{:x}:{:x}", arch.exception, arch.pc, arch.dr6)
            }
            other => format!("exit-{other}"),
        }
    }
}

/// Signals that end a `KVM_RUN`, again and again until it is dropped.
struct Alarm;

impl Alarm {
    const EVERY: i64 = 3_000;

    fn start() -> Self {
        extern "C" fn nothing(_: libc::c_int) {}
        // SAFETY: The handler does nothing, so it may run at any time.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut());
        }
        Self::set(Self::EVERY);
        Self
    }

    fn set(microseconds: i64) {
        let time = libc::timeval {
            tv_sec: 0,
            tv_usec: microseconds,
        };
        let timer = libc::itimerval {
            it_interval: time,
            it_value: time,
        };
        // SAFETY: The structure is this function's own.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) };
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        Self::set(0);
    }
}
