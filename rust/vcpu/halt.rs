// SPDX-License-Identifier: GPL-2.0-only

//! A vCPU that waits: how long its thread looks for work before it sleeps, how much before the
//! timer's deadline it is woken, and whom it leaves its CPU to if it waits by spinning.
//!
//! ```text
//!   HLT ── polls, up to `poll_ns` ── sleeps ─────────► host's timer ── wakes ── deadline: interrupt
//!          only while no other wants the CPU             └──── `early_ns` ────────┘
//! ```
//!
//! Both times are learnt. A wait that polling a little longer would have met makes the next poll
//! twice as long; one that no poll may meet, half as long. What waking took beyond the deadline is
//! made up for next time.

use crate::host::host;
use crate::irq::mailbox::Mailbox;
use crate::linux;
use crate::vcpu::pvclock;
use crate::vcpu::steal_time;
use crate::vcpu::LockedVcpu;
use crate::vm::stats::Count;
use irqchip::dest::IdSet;
use irqchip::lapic::Deadline;
use irqchip::Now;
use kernel::prelude::*;
use svm::features::SvmFeatures;
use svm::pause::PauseFilter;
use svm::state::MpState;

/// The first poll. Waking costs about as much.
const SHORTEST_POLL_NS: u32 = 10_000;
/// The host's timer is set so much earlier at most.
const MOST_EARLY_NS: i64 = 5_000;
/// A thread that comes so late had to wait for a CPU, and says nothing of what waking takes.
const TOO_LATE_NS: i64 = 2 * MOST_EARLY_NS;

/// What a vCPU has learnt.
#[derive(Default)]
pub(crate) struct HaltPoll {
    poll_ns: u32,
    early_ns: i64,
}

/// Waits until something is asked of the vCPU; an error if a signal came first.
pub(crate) fn wait(vcpu: &mut LockedVcpu) -> Result {
    vcpu.stats.count(Count::Blocked);
    if vcpu.state.mp_state != MpState::Halted {
        return vcpu.platform.mailbox.sleep();
    }
    let longest = match vcpu.state.msrs.pv_may_poll() {
        true => vcpu.platform.vm.config.longest_poll_ns(),
        false => 0,
    };
    let poll = vcpu.pace.poll_ns.min(longest);
    let start = linux::now();
    let mut now = start;
    if poll != 0 {
        vcpu.stats.count(Count::HaltPolls);
        let end = start.saturating_add(poll.into());
        while !vcpu.platform.mailbox.has_requests() && now < end && linux::may_poll() {
            now = linux::now();
        }
        let met = vcpu.platform.mailbox.has_requests();
        let spent = match met {
            true => Count::HaltPollMetNs,
            false => Count::HaltPollMissedNs,
        };
        vcpu.stats.add(spent, now.saturating_sub(start));
        if met {
            vcpu.stats.count(Count::HaltPollsMet);
            return Ok(());
        }
    }
    vcpu.platform.mailbox.sleep()?;
    let woken = linux::now();
    vcpu.stats.count(Count::HaltWakeups);
    vcpu.stats.add(Count::HaltWaitNs, woken.saturating_sub(now));
    let waited = woken.saturating_sub(start);
    vcpu.pace.poll_ns = next_poll(poll, longest, waited);
    Ok(())
}

/// How long to poll after a wait that polling for `poll` did not meet.
fn next_poll(poll: u32, longest: u32, waited: u64) -> u32 {
    if waited > u64::from(longest) {
        let half = poll / 2;
        return if half < SHORTEST_POLL_NS { 0 } else { half };
    }
    poll.saturating_mul(2).max(SHORTEST_POLL_NS).min(longest)
}

/// The guest spins, or has said whom it waits for: a vCPU that waits for a CPU gets this one.
#[cold]
pub(crate) fn yield_cpu(vcpu: &mut LockedVcpu) {
    vcpu.stats.count(Count::Yields);
    steal_time::before_pause(vcpu);
    let vcpu_table = &vcpu.platform.vm.vcpu_table;
    let to = vcpu.platform.yield_to.take();
    let yielded = match to {
        Some(id) => vcpu_table.by_apic_id(IdSet::one(id)).any(Mailbox::yield_to),
        None => vcpu_table.yield_from(&vcpu.platform.mailbox),
    };
    if yielded {
        vcpu.stats.count(Count::YieldsDone);
        change_pause_count(vcpu, PauseFilter::shrunk);
    } else {
        if to.is_none() {
            change_pause_count(vcpu, PauseFilter::grown);
        }
        linux::cond_resched();
    }
    steal_time::after_pause(vcpu);
}

/// The vCPU's thread has waited for a CPU: the guest may spin for as long as at first.
#[cold]
pub(crate) fn shrink_pause_count(vcpu: &mut LockedVcpu) {
    change_pause_count(vcpu, PauseFilter::shrunk);
}

fn change_pause_count(vcpu: &mut LockedVcpu, change: fn(&PauseFilter, u16) -> u16) {
    let Some(host) = host() else { return };
    if host.features.contains(SvmFeatures::PAUSE_FILTER) {
        let old = vcpu.vmcb.pause_filter_count();
        let new = change(&host.pause_filter, old);
        if new != old {
            vcpu.vmcb.set_pause_filter_count(new);
        }
    }
}

/// Sets the host's timer to the LAPIC's next deadline, or a little earlier.
pub(crate) fn set_timer(vcpu: &LockedVcpu) {
    let Some(lapic) = vcpu.platform.apic.kernel() else {
        return;
    };
    match lapic.timer_deadline() {
        None => vcpu.timer.cancel(),
        Some(deadline) => {
            let now = vcpu.now();
            let wait = until(vcpu, deadline, now).saturating_sub(vcpu.pace.early_ns);
            vcpu.timer.start(now.ns.saturating_add_signed(wait.max(0)));
        }
    }
}

/// The host's timer has expired: what the clocks show at the deadline, which is waited for.
pub(crate) fn meet_deadline(vcpu: &mut LockedVcpu) -> Now {
    let mut now = vcpu.now();
    let lapic = vcpu.platform.apic.kernel();
    let Some(deadline) = lapic.and_then(|lapic| lapic.timer_deadline()) else {
        return now;
    };
    let wait = until(vcpu, deadline, now);
    let early = vcpu.pace.early_ns;
    // Otherwise the deadline was moved meanwhile, or another thread had the CPU.
    if (-TOO_LATE_NS..=early).contains(&wait) {
        vcpu.pace.early_ns = (early - wait / 4).clamp(0, MOST_EARLY_NS);
        while until(vcpu, deadline, now) > 0 {
            linux::cond_resched();
            now = vcpu.now();
        }
    }
    now
}

/// Nanoseconds until a deadline; negative if it has passed.
fn until(vcpu: &LockedVcpu, deadline: Deadline, now: Now) -> i64 {
    let ticks = |ticks| signed(pvclock::scale(vcpu).ns(ticks));
    match deadline {
        Deadline::Ns(ns) => ns.wrapping_sub(now.ns) as i64,
        Deadline::Tsc(tsc) if tsc < now.tsc => -ticks(now.tsc - tsc),
        Deadline::Tsc(tsc) => ticks(tsc - now.tsc),
    }
}

fn signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}
