// SPDX-License-Identifier: GPL-2.0-only

//! What the VMM has chosen for the exits of all vCPUs of a VM: KVM_ENABLE_CAP, and the filter of
//! MSRs.

use crate::irq::vcpu_table::VcpuTable;
use crate::linux;
use crate::uapi::{self, UserArg};
use crate::vm::msr_filter::MsrFilter;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use kernel::ffi::c_long;
use kernel::prelude::*;
use kernel::sync::{Arc, Mutex};
use svm::dispatch::Policy;
use svm::intercept::{Word3, Word4};
use svm::requests::Requests;
use svm::vmcb::Vmcb;

/// The longest poll of a halted vCPU, unless the VMM wants another (KVM_CAP_HALT_POLL).
const LONGEST_POLL_NS: u32 = 200_000;

/// Old behaviour that a VMM can do without: `KVM_X86_QUIRK_*`.
pub(crate) const QUIRKS: u32 = uapi::KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS
    | uapi::KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT
    | uapi::KVM_X86_QUIRK_FIX_HYPERCALL_INSN
    | uapi::KVM_X86_QUIRK_LAPIC_MMIO_HOLE
    | NESTED_SVM_SHARED_PAT;
/// `KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT`, which Linux 7.2 does not have: an inner guest shares PAT
/// with the outer one even if it has nested paging. Here it never does.
const NESTED_SVM_SHARED_PAT: u32 = 1 << 11;

/// The choices of one VM.
#[pin_data]
pub(crate) struct VmConfig {
    /// A [`Policy`].
    policy: AtomicU32,
    /// Exits that new vCPUs do without: `KVM_X86_DISABLE_EXITS_*`.
    disabled_exits: AtomicU32,
    /// How long a halted vCPU looks for work before it sleeps, at most.
    longest_poll_ns: AtomicU32,
    /// Which MSRs are the VMM's.
    #[pin]
    msr_filter: Mutex<Option<Arc<MsrFilter>>>,
}

/// A copy of them.
pub(crate) struct VmConfigState {
    policy: u32,
    disabled_exits: u32,
    longest_poll_ns: u32,
    msr_filter: Option<Arc<MsrFilter>>,
}

impl VmConfig {
    /// Nothing is chosen.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            policy: AtomicU32::new(0),
            disabled_exits: AtomicU32::new(0),
            longest_poll_ns: AtomicU32::new(LONGEST_POLL_NS),
            msr_filter <- kernel::new_mutex!(None),
        })
    }

    /// KVM_ENABLE_CAP, for `vcpus` that are there; `None` if the capability is not one of these.
    pub(crate) fn enable(
        &self,
        cap: &uapi::kvm_enable_cap,
        vcpus: usize,
    ) -> Option<Result<c_long>> {
        let [value, ..] = cap.args;
        Some(match cap.cap {
            uapi::KVM_CAP_X86_USER_SPACE_MSR => {
                match u32::try_from(value).ok().and_then(Policy::from_bits) {
                    Some(exits) if Policy::MSR_EXITS.contains(exits) => {
                        self.choose(Policy::MSR_EXITS, exits)
                    }
                    _ => Err(EINVAL),
                }
            }
            uapi::KVM_CAP_EXIT_ON_EMULATION_FAILURE if value > 1 => Err(EINVAL),
            uapi::KVM_CAP_EXIT_ON_EMULATION_FAILURE => {
                self.choose_if(value != 0, Policy::EMULATION_FAILURE_EXITS)
            }
            uapi::KVM_CAP_MSR_PLATFORM_INFO => self.choose_if(value == 0, Policy::NO_PLATFORM_INFO),
            // The old way takes what is not known, too.
            uapi::KVM_CAP_DISABLE_QUIRKS => self.disable_quirks(value & u64::from(QUIRKS)),
            uapi::KVM_CAP_DISABLE_QUIRKS2 => self.disable_quirks(value),
            // vCPUs that are there have their intercepts.
            uapi::KVM_CAP_X86_DISABLE_EXITS
                if value & !u64::from(disabled_exits()) != 0 || vcpus != 0 =>
            {
                Err(EINVAL)
            }
            uapi::KVM_CAP_X86_DISABLE_EXITS => {
                self.disabled_exits.store(value as u32, Relaxed);
                Ok(0)
            }
            uapi::KVM_CAP_HALT_POLL => u32::try_from(value).map_err(|_| EINVAL).map(|ns| {
                self.longest_poll_ns.store(ns, Relaxed);
                0
            }),
            _ => return None,
        })
    }

    /// Copies them.
    pub(crate) fn save(&self) -> VmConfigState {
        VmConfigState {
            policy: self.policy.load(Relaxed),
            disabled_exits: self.disabled_exits(),
            longest_poll_ns: self.longest_poll_ns(),
            msr_filter: self.msr_filter(),
        }
    }

    /// Chooses the same, for a VM that has no vCPUs yet.
    pub(crate) fn put_back(&self, state: &VmConfigState) {
        self.policy.store(state.policy, Relaxed);
        self.disabled_exits.store(state.disabled_exits, Relaxed);
        self.longest_poll_ns.store(state.longest_poll_ns, Relaxed);
        *self.msr_filter.lock() = state.msr_filter.clone();
    }

    /// How long a halted vCPU looks for work before it sleeps, at most.
    pub(crate) fn longest_poll_ns(&self) -> u32 {
        self.longest_poll_ns.load(Relaxed)
    }

    /// What the handlers ask for.
    pub(crate) fn policy(&self) -> Policy {
        Policy::from_bits_retain(self.policy.load(Relaxed))
    }

    /// Sets those in `mask`.
    fn choose(&self, mask: Policy, choices: Policy) -> Result<c_long> {
        let chosen = |old: u32| Some((old & !mask.bits()) | choices.bits());
        // It cannot fail: there is always a new value.
        let _ = self.policy.fetch_update(Relaxed, Relaxed, chosen);
        Ok(0)
    }

    fn choose_if(&self, on: bool, choice: Policy) -> Result<c_long> {
        let choices = if on { choice } else { Policy::empty() };
        self.choose(choice, choices)
    }

    /// Old behaviour that the VMM does not want; it cannot be had back.
    fn disable_quirks(&self, quirks: u64) -> Result<c_long> {
        if quirks & !u64::from(QUIRKS) != 0 {
            return Err(EINVAL);
        }
        let has = |quirk: u32| quirks & u64::from(quirk) != 0;
        let mut choices = Policy::empty();
        choices.set(
            Policy::MWAIT_MAY_FAULT,
            has(uapi::KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS),
        );
        choices.set(
            Policy::MISC_ENABLE_HAS_MWAIT,
            has(uapi::KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT),
        );
        choices.set(
            Policy::VMCALL_FAULTS,
            has(uapi::KVM_X86_QUIRK_FIX_HYPERCALL_INSN),
        );
        choices.set(
            Policy::LAPIC_PAGE_EXITS,
            has(uapi::KVM_X86_QUIRK_LAPIC_MMIO_HOLE),
        );
        self.choose(Policy::empty(), choices)
    }

    /// The exits that new vCPUs do without.
    pub(crate) fn disabled_exits(&self) -> u32 {
        self.disabled_exits.load(Relaxed)
    }

    /// KVM_X86_SET_MSR_FILTER: the vCPUs take it over before they enter their guests again.
    pub(crate) fn set_msr_filter(&self, arg: UserArg, vcpus: &VcpuTable) -> Result<c_long> {
        let filter = MsrFilter::read(arg)?;
        let old = core::mem::replace(&mut *self.msr_filter.lock(), filter);
        vcpus
            .all()
            .for_each(|vcpu| vcpu.request(Requests::MSR_FILTER));
        drop(old);
        Ok(0)
    }

    /// The filter that counts now.
    pub(crate) fn msr_filter(&self) -> Option<Arc<MsrFilter>> {
        self.msr_filter.lock().clone()
    }
}

/// The exits that a VMM can do without: `KVM_X86_DISABLE_EXITS_*`. MWAIT needs a timer that runs on
/// while the CPU rests (APM vol. 3, E.3.6: CPUID 6, EAX bit 2).
pub(crate) fn disabled_exits() -> u32 {
    const MWAIT: u32 = 1 << 3;
    const ARAT: u32 = 1 << 2;
    let mut exits = uapi::KVM_X86_DISABLE_EXITS_HLT | uapi::KVM_X86_DISABLE_EXITS_PAUSE;
    if linux::cpuid(1, 0)[2] & MWAIT != 0 && linux::cpuid(6, 0)[0] & ARAT != 0 {
        exits |= uapi::KVM_X86_DISABLE_EXITS_MWAIT;
    }
    exits
}

/// Lets the guest of this VMCB do what the VMM wants no exits for.
pub(crate) fn disable_exits(vmcb: &mut Vmcb, exits: u32) {
    let off = |exit: u32| exits & exit != 0;
    vmcb.update_intercepts(|intercepts| {
        if off(uapi::KVM_X86_DISABLE_EXITS_HLT) {
            intercepts.word3.remove(Word3::HLT);
        }
        if off(uapi::KVM_X86_DISABLE_EXITS_PAUSE) {
            intercepts.word3.remove(Word3::PAUSE);
        }
        if off(uapi::KVM_X86_DISABLE_EXITS_MWAIT) {
            intercepts.word4.remove(Word4::MONITOR | Word4::MWAIT);
        }
    });
}
