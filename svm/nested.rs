// SPDX-License-Identifier: GPL-2.0-only

//! Guests that are hypervisors: SVM as the guest sees it (APM vol. 2, chapter 15).
//!
//! The VM's guest, the *outer* one, runs an *inner* one with VMRUN. There is one VMCB for the CPU,
//! and the outer guest never has its address:
//!
//! ```text
//!   outer guest ── VMRUN ──► its VMCB is read, once ──► checked ──► inner guest's registers
//!        ▲                       instruction.rs        check.rs        in our VMCB   enter.rs
//!        │                                                                   │
//!        │      before each entry: intercepts by union, our maps, TSC  merge.rs
//!        │                                                                   ▼
//!   its VMCB is written ◄── leave.rs ◄── the outer guest's exit? route.rs ◄─ #VMEXIT
//!                               ▲                       └─ no: ours, as ever (dispatch/)
//!                               └── an event for it? pending.rs
//! ```
//!
//! | file | subject |
//! |---|---|
//! | `area.rs` | the guest's VMCB as values: the control area and what VMRUN switches |
//! | `check.rs` | what VMRUN refuses |
//! | `emulated.rs` | instructions that the module executes for the inner guest |
//! | `paging.rs` | nested paging of the inner guest: the outer guest's tables |
//! | `wire.rs` | the state for `KVM_GET_NESTED_STATE` |
//!
//! What the CPU gets of the guest's VMCB are registers, which cannot harm the host, intercepts, and
//! an offset of the TSC. All addresses in it are guest-physical, and are used by the rules of guest
//! memory alone. A guest whose CPUID has no SVM has no [`Nested`], and nothing of this is reached.

pub(crate) mod area;
mod check;
pub(crate) mod emulated;
mod enter;
pub(crate) mod instruction;
mod leave;
mod merge;
mod paging;
mod pending;
pub(crate) mod route;
mod wire;

pub use leave::leave;
pub use paging::{resolve, InnerPage};
pub use pending::{awake, due, prepare, Turn};
pub use wire::{StateFlags, STATE_PAGE};

use crate::exit::ExitCode;
use crate::features::SvmFeatures;
use crate::nested::area::{Control, Registers};
use crate::nested::merge::Merged;
use crate::state::VcpuState;
use crate::vmcb::{VirtualInterrupt, Vmcb};
use x86::msr::Origin;

/// EFER.SVME is clear now, by WRMSR or by the VMM. Without SVM there is no GIF. An inner guest that
/// clears it cannot go on: what the CPU does is undefined (APM vol. 2, 3.1.7), here it shuts down.
#[cold]
pub fn turned_off(
    vmcb: &mut Vmcb,
    state: &mut VcpuState,
    nested: Option<&mut Nested>,
    origin: Origin,
) {
    state.events.gif_clear = false;
    let Some(nested) = nested else {
        return;
    };
    if origin == Origin::Guest && !nested.inside {
        nested.gif_set();
        return;
    }
    state.events.triple_fault |= origin == Origin::Guest;
    nested.reset(vmcb);
}

/// What AMD-V offers to a guest on this host (APM vol. 3, E.4.9): what the CPU must have for it,
/// and what costs nothing, as every VMRUN loads all fields, and a flush is a flush of everything.
pub fn offered(host: SvmFeatures) -> SvmFeatures {
    let of_host = SvmFeatures::NP | SvmFeatures::NRIPS | SvmFeatures::DECODE_ASSISTS;
    host & of_host | SvmFeatures::VMCB_CLEAN | SvmFeatures::FLUSH_BY_ASID
}

/// A #VMEXIT of the inner guest that the outer one gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerExit {
    /// EXITCODE.
    pub code: ExitCode,
    /// EXITINFO1.
    pub info1: u64,
    /// EXITINFO2.
    pub info2: u64,
    pub(crate) told: Told,
}

/// What of an exit's instruction is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// It came of none, or it is not.
    Nothing,
    /// The CPU has put nRIP and the instruction's bytes into the VMCB.
    ByCpu,
    /// The module has decoded it, and this is nRIP.
    NextRip(u64),
}

impl InnerExit {
    /// One that tells no more than its code.
    pub(crate) const fn plain(code: ExitCode) -> Self {
        Self {
            code,
            info1: 0,
            info2: 0,
            told: Told::Nothing,
        }
    }
}

/// The state of a vCPU that has SVM. GIF is in [`crate::event::Events::gif_clear`], EFER.SVME in
/// [`crate::state::VcpuState::svme`], VM_HSAVE_PA among the MSRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nested {
    /// The inner guest runs: the VMCB and [`crate::state::VcpuState`] have its registers.
    inside: bool,
    /// VMRUN has been executed, and the CPU has not been in the inner guest since.
    run_pending: bool,
    /// Guest-physical address of the guest's VMCB.
    vmcb: u64,
    /// The control area of that, as it was at VMRUN; V_TPR and V_IRQ are those of now.
    control: Control,
    /// The outer guest's registers.
    outer: Registers,
    /// NMIs are masked in the outer guest.
    outer_nmi_masked: bool,
    /// An exit that came of an access of the emulator's.
    pending: Option<InnerExit>,
    /// An INIT waits for GIF.
    pub init: bool,
    /// ASID and nCR3 of the last inner guest, whose translations may be cached.
    last: (u32, u64),
    /// They must go.
    flush: bool,
    /// The vCPU went into the inner guest, or left it.
    switched: bool,
    /// What is ours in the VMCB, while what it holds is merged with the outer guest's wishes.
    own: Option<Merged>,
    /// What the CPU has seen in its place, in the inner guest.
    in_cpu: Option<Merged>,
    /// Physical address of a map in which all MSRs exit, for the CPU.
    all_msrs: u64,
    /// Physical address of the tables that the CPU uses if the inner guest has nested paging.
    pub root: u64,
}

impl Nested {
    /// No inner guest. `all_msrs` is the physical address of a permission map whose bits are all
    /// set.
    pub fn new(all_msrs: u64) -> Self {
        Self {
            inside: false,
            run_pending: false,
            vmcb: 0,
            control: Control::default(),
            outer: Registers::default(),
            outer_nmi_masked: false,
            pending: None,
            init: false,
            last: (0, 0),
            flush: false,
            switched: false,
            own: None,
            in_cpu: None,
            all_msrs,
            root: 0,
        }
    }

    /// The inner guest has the CPU.
    #[inline]
    pub fn is_inside(&self) -> bool {
        self.inside
    }

    /// It has nested paging.
    #[inline]
    pub fn has_paging(&self) -> bool {
        self.inside && self.control.has_paging()
    }

    /// An INIT makes an exit of the inner guest.
    pub fn takes_init(&self) -> bool {
        self.inside && self.intercepts(ExitCode::INIT)
    }

    /// An exit waits for the outer guest that came of an access of the emulator's.
    pub(crate) fn has_exit(&self) -> bool {
        self.pending.is_some()
    }

    /// Whether the vCPU has gone from one guest to the other since this was last asked.
    #[inline]
    pub fn take_switched(&mut self) -> bool {
        core::mem::take(&mut self.switched)
    }

    /// Whether cached translations of inner guests must go; asked once.
    #[inline]
    pub fn take_flush(&mut self) -> bool {
        core::mem::take(&mut self.flush)
    }

    /// Cached translations of inner guests must go.
    pub fn flush(&mut self) {
        self.flush = true;
    }

    /// What a vCPU takes over from another one's copy: all but addresses of the host's.
    pub fn copy_from(&mut self, other: &Self) {
        let (all_msrs, root) = (self.all_msrs, self.root);
        *self = *other;
        (self.all_msrs, self.root, self.own) = (all_msrs, root, None);
        (self.flush, self.switched, self.in_cpu) = (true, true, None);
    }

    /// There is no inner guest any more. What its registers were stays in the VMCB, but for PAT.
    fn forget(&mut self, vmcb: &mut Vmcb) {
        if self.has_paging() {
            vmcb.set_g_pat(self.outer.g_pat);
        }
        if self.inside {
            self.switch(vmcb);
        }
        (self.inside, self.run_pending, self.pending) = (false, false, None);
    }

    /// The same, and no INIT waits: INIT itself, a shutdown, a VMM that resets the vCPU.
    pub fn reset(&mut self, vmcb: &mut Vmcb) {
        self.forget(vmcb);
        self.init = false;
    }

    /// Drops an exit that came of the last accesses: they were not the inner guest's own.
    pub(crate) fn drop_exit(&mut self) {
        self.pending = None;
    }

    /// GIF is set: what has waited for it is to be looked at.
    pub(crate) fn gif_set(&mut self) {
        self.switched |= self.init;
    }

    /// The inner guest's CR8 is V_TPR of its VMCB, and not the outer guest's task priority.
    #[inline]
    pub(crate) fn has_own_tpr(&self) -> bool {
        self.inside && self.interrupt().contains(VirtualInterrupt::V_INTR_MASKING)
    }

    /// The inner guest's V_TPR.
    pub(crate) fn v_tpr(&self) -> u8 {
        (self.interrupt() & VirtualInterrupt::V_TPR).bits() as u8
    }

    pub(crate) fn set_v_tpr(&mut self, value: u8) {
        let kept = self.interrupt() & !VirtualInterrupt::V_TPR;
        self.control.int_control = kept.bits() | u32::from(value & 0xf);
    }

    /// What the inner guest's TSC is ahead of the outer's.
    pub(crate) fn tsc_offset(&self) -> u64 {
        match self.inside {
            true => self.control.tsc_offset,
            false => 0,
        }
    }

    fn interrupt(&self) -> VirtualInterrupt {
        VirtualInterrupt::from_bits_retain(self.control.int_control)
    }

    /// Whether the outer guest intercepts what this exit code says.
    pub(crate) fn intercepts(&self, code: ExitCode) -> bool {
        self.control.intercepts(code)
    }
}
