// SPDX-License-Identifier: GPL-2.0-only

//! The clock of a VM, and the TSC that its vCPUs share (Documentation/virt/kvm/api.rst).

use crate::host;
use crate::irq::mailbox::{Mailbox, Tsc};
use crate::irq::vcpu_table::VcpuTable;
use crate::linux::{self, IrqLock};
use crate::uapi::{self, UserArg};
use kernel::ffi::c_long;
use kernel::prelude::*;
use kernel::sync::Mutex;
use svm::features::SvmFeatures;
use x86::pvclock::Scale;
use x86::tsc::{TscOrigin, TscRate};

/// The clock of a VM and the TSC that its vCPUs share.
///
/// While the host's TSC is stable the guest's time is a function of it alone, the same for
/// KVM_GET_CLOCK and for what every vCPU computes from its page: nanoseconds at [`Base::tsc`], and
/// from there on ticks of the TSC.
#[pin_data]
pub(crate) struct VmClock {
    #[pin]
    state: IrqLock<State>,
    /// Held while a vCPU publishes its TSC.
    #[pin]
    publishing: Mutex<()>,
}

#[derive(Clone, Copy)]
struct State {
    base: Base,
    /// The rate of the TSC of new vCPUs.
    rate: TscRate,
    /// Where the TSC of new vCPUs begins, and of those whose TSC is set to nearly the same.
    origin: TscOrigin,
    /// What of [`host::tsc_lost`] is in it already.
    tsc_lost: u64,
    /// The VMM has set the TSC.
    tsc_is_set: bool,
}

/// The guest's time at one instant.
#[derive(Clone, Copy)]
pub(crate) struct Base {
    /// The host's TSC.
    pub(crate) tsc: u64,
    /// The guest's nanoseconds.
    pub(crate) ns: u64,
    /// The host's nanoseconds since boot.
    boot: u64,
    /// How often the host had been suspended: since then the TSC may have stopped.
    resumes: u32,
}

impl Base {
    /// The guest's time is `ns` now.
    fn new(ns: u64) -> Self {
        Self {
            tsc: linux::rdtsc(),
            ns,
            boot: linux::boot_ns(),
            resumes: host::resumes(),
        }
    }

    /// The guest's nanoseconds when the host's TSC is `tsc`.
    fn ns_at(&self, tsc: u64) -> u64 {
        let passed = ticks_to_ns(tsc.saturating_sub(self.tsc));
        self.ns.wrapping_add(passed)
    }
}

impl State {
    /// The base to compute with: another one where the TSC cannot tell the time since the last.
    fn base(&mut self) -> Base {
        if !linux::tsc_stable() || self.base.resumes != host::resumes() {
            let passed = linux::boot_ns().wrapping_sub(self.base.boot);
            self.base = Base::new(self.base.ns.wrapping_add(passed));
        }
        self.base
    }

    /// The offset of a TSC of this rate, with what the host's TSC has lost since it was set.
    fn tsc_offset(&mut self, rate: TscRate) -> u64 {
        let lost = host::tsc_lost();
        let more = lost.wrapping_sub(self.tsc_lost);
        self.origin.host = self.origin.host.wrapping_sub(more);
        self.tsc_lost = lost;
        self.origin.offset(rate.ratio)
    }

    fn set_tsc_offset(&mut self, rate: TscRate, offset: u64) {
        self.origin = TscOrigin::of(rate.ratio, offset, linux::rdtsc());
        self.tsc_lost = host::tsc_lost();
        self.tsc_is_set = true;
    }
}

/// What a snapshot has of a clock.
pub(crate) struct ClockState(State);

impl VmClock {
    /// A clock and a TSC that begin at zero.
    pub(crate) fn new() -> impl PinInit<Self> {
        let base = Base::new(0);
        let state = State {
            base,
            rate: TscRate::host(linux::tsc_khz()),
            origin: TscOrigin {
                host: base.tsc,
                guest: 0,
            },
            tsc_lost: host::tsc_lost(),
            tsc_is_set: false,
        };
        pin_init!(Self {
            state <- IrqLock::new(state, c"pacifica_clock", kernel::static_lock_class!()),
            publishing <- kernel::new_mutex!((), "pacifica::publishing"),
        })
    }

    /// The rate of a new vCPU's TSC.
    pub(crate) fn rate(&self) -> TscRate {
        self.state.lock().rate
    }

    /// The VMM sets it.
    pub(crate) fn set_rate(&self, rate: TscRate) {
        self.state.lock().rate = rate;
    }

    /// The offset of a TSC of this rate that begins with all others.
    pub(crate) fn tsc_offset(&self, rate: TscRate) -> u64 {
        self.state.lock().tsc_offset(rate)
    }

    /// The offset of a TSC that had the rate `old` and this offset, and gets another rate: what it
    /// is ahead of the others stays.
    pub(crate) fn rated_offset(&self, rate: TscRate, old: TscRate, offset: u64) -> u64 {
        let mut state = self.state.lock();
        // What the host's TSC has lost is in the origin then.
        state.tsc_offset(rate);
        state.origin.at_ratio(rate.ratio, old.ratio, offset)
    }

    /// The VMM sets a vCPU's TSC offset, and the coming ones follow.
    pub(crate) fn set_tsc_offset(&self, rate: TscRate, offset: u64) {
        self.state.lock().set_tsc_offset(rate, offset);
    }

    /// The offset for a TSC that the VMM sets to `value`, which exactly would be `offset`. A VMM
    /// that sets one vCPU after the other means them to be equal: less than a second apart counts
    /// as that, and so does zero.
    pub(crate) fn sync_tsc(&self, rate: TscRate, value: u64, offset: u64) -> u64 {
        let second = u64::from(rate.khz).wrapping_mul(1000);
        let mut state = self.state.lock();
        let ahead = offset.wrapping_sub(state.tsc_offset(rate));
        let near = ahead.wrapping_add(second) < second.wrapping_mul(2);
        if value != 0 && !(state.tsc_is_set && near) {
            state.set_tsc_offset(rate, offset);
        }
        state.tsc_offset(rate)
    }

    /// A vCPU has another TSC. All write their clocks anew if what these say of the TSCs is another
    /// now: that they are the same. One vCPU at a time, so that each sees what it changes.
    pub(crate) fn publish_tsc(&self, mailbox: &Mailbox, tsc: Tsc, vcpus: &VcpuTable) {
        let _guard = self.publishing.lock();
        let matched = vcpus.clocks_match();
        mailbox.set_tsc(tsc);
        if linux::tsc_stable() && vcpus.clocks_match() != matched {
            vcpus.update_clocks();
        }
    }

    /// The guest's time at an instant not long ago.
    pub(crate) fn base(&self) -> Base {
        self.state.lock().base()
    }

    /// The guest's nanoseconds.
    pub(crate) fn now(&self) -> u64 {
        let base = self.state.lock().base();
        base.ns_at(linux::rdtsc())
    }

    /// All of it, for a snapshot.
    pub(crate) fn save(&self) -> ClockState {
        let mut state = self.state.lock();
        state.base();
        let rate = state.rate;
        state.tsc_offset(rate);
        ClockState(*state)
    }

    /// It is as it was, but for the time, unless so much of it is taken back.
    pub(crate) fn put_back(&self, old: &ClockState, passed: Option<Passed>) {
        let mut state = old.0;
        if let Some(passed) = passed {
            let base = &mut state.base;
            base.tsc = base.tsc.wrapping_add(passed.tsc);
            base.boot = base.boot.wrapping_add(passed.boot);
            base.resumes = host::resumes();
            state.origin.host = state.origin.host.wrapping_add(passed.tsc);
            state.tsc_lost = host::tsc_lost();
        }
        *self.state.lock() = state;
    }

    /// KVM_GET_CLOCK.
    pub(crate) fn get(&self, arg: UserArg) -> Result<c_long> {
        let mut data = uapi::kvm_clock_data::default();
        let base = self.state.lock().base();
        match linux::real_at_tsc() {
            Some((tsc, real)) if linux::tsc_stable() => {
                data.flags = uapi::KVM_CLOCK_TSC_STABLE
                    | uapi::KVM_CLOCK_REALTIME
                    | uapi::KVM_CLOCK_HOST_TSC;
                (data.host_tsc, data.realtime) = (tsc, real);
                data.clock = base.ns_at(tsc);
            }
            _ => data.clock = base.ns_at(linux::rdtsc()),
        }
        arg.write(&data)?;
        Ok(0)
    }

    /// KVM_SET_CLOCK. With the real time of the value, what has passed since is added.
    pub(crate) fn set(&self, arg: UserArg, vcpus: &VcpuTable) -> Result<c_long> {
        let data: uapi::kvm_clock_data = arg.read()?;
        // The others come from KVM_GET_CLOCK and have no effect.
        if data.flags & !FLAGS != 0 {
            return Err(EINVAL);
        }
        let passed = match data.flags & uapi::KVM_CLOCK_REALTIME {
            0 => 0,
            _ => real_ns().saturating_sub(data.realtime),
        };
        self.state.lock().base = Base::new(data.clock.wrapping_add(passed));
        vcpus.update_clocks();
        Ok(0)
    }
}

/// What the host's clocks show.
#[derive(Clone, Copy)]
pub(crate) struct Instant {
    tsc: u64,
    ns: u64,
    boot: u64,
}

/// How long it was.
#[derive(Clone, Copy)]
pub(crate) struct Passed {
    /// Ticks of the host's TSC.
    pub(crate) tsc: u64,
    /// Nanoseconds of the monotonic clock.
    pub(crate) ns: u64,
    /// Of the one that counts what the host was suspended for, too.
    pub(crate) boot: u64,
}

impl Instant {
    pub(crate) fn now() -> Self {
        Self {
            tsc: linux::rdtsc(),
            ns: linux::now(),
            boot: linux::boot_ns(),
        }
    }

    /// What has passed since.
    pub(crate) fn passed(&self) -> Passed {
        let now = Self::now();
        Passed {
            tsc: now.tsc.wrapping_sub(self.tsc),
            ns: now.ns.wrapping_sub(self.ns),
            boot: now.boot.wrapping_sub(self.boot),
        }
    }
}

/// The flags of KVM_GET_CLOCK and KVM_SET_CLOCK.
pub(crate) const FLAGS: u32 =
    uapi::KVM_CLOCK_TSC_STABLE | uapi::KVM_CLOCK_REALTIME | uapi::KVM_CLOCK_HOST_TSC;

/// Nanoseconds since 1970.
pub(crate) fn real_ns() -> u64 {
    let (sec, nsec) = linux::real_time();
    sec.wrapping_mul(NS_PER_SEC).wrapping_add(u64::from(nsec))
}

/// The argument of KVM_SET_TSC_KHZ.
pub(crate) fn rate(khz: usize, features: SvmFeatures) -> Result<TscRate> {
    let scaling = features.contains(SvmFeatures::TSC_RATE_MSR);
    u32::try_from(khz)
        .ok()
        .and_then(|khz| TscRate::new(khz, linux::tsc_khz(), scaling))
        .ok_or(EINVAL)
}

/// Nanoseconds in so many ticks of the host's TSC.
pub(crate) fn ticks_to_ns(ticks: u64) -> u64 {
    Scale::new(linux::tsc_khz()).ns(ticks)
}

const NS_PER_SEC: u64 = 1_000_000_000;
