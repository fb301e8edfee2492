// SPDX-License-Identifier: GPL-2.0-only

//! Runs a guest until something ends it, and is its devices meanwhile.

use std::time::{Duration, Instant};

use kvm_bindings::*;
use selftests::accesses;
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
                KVM_EXIT_MMIO => accesses::mmio(&self.vcpu, &mut trace),
                KVM_EXIT_IO => accesses::port(&self.vcpu, &mut trace),
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
