// SPDX-License-Identifier: GPL-2.0-only

//! RDMSR and WRMSR: who answers is [`x86::msr::classify`]'s business (APM vol. 2, 15.11).

use super::control::{control_regs, set_control_regs};
use super::device::pending;
use super::rip::{advance, next_rip, Opcode};
use super::{Action, Platform, Policy};
use crate::cpu::Guest;
use crate::debug_ctl;
use crate::io::Phase;
use crate::nested;
use crate::requests::Requests;
use x86::cpu::{Cpu, Stop};
use x86::cpuid;
use x86::features::Feature;
use x86::msr::{check_pred_cmd, check_vmcb, classify, has_vmcb, MsrClass, Origin, VmcbMsr};
use x86::regs::{gpr, Efer, Exception};
use x86::sregs::{valid_efer, write_efer, ControlRegs};

/// RDMSR and WRMSR.
#[inline]
pub(super) fn msr<P: Platform>(guest: &mut Guest<'_, P>, write: bool) -> Result<Action, Stop> {
    if guest.cpl() != 0 {
        return Err(Exception::GP0.into());
    }
    let index = guest.state.regs.get(gpr::RCX) as u32;
    let opcode = if write { Opcode::WRMSR } else { Opcode::RDMSR };
    let next = next_rip(guest, opcode)?;
    if guest.platform.msr_denied(index, write) {
        return refused(guest, index, write, next, Policy::MSR_FILTER_EXITS);
    }
    let result = if write {
        let value = guest.state.regs.edx_eax();
        write_msr(guest, index, value, Origin::Guest)
    } else {
        read_msr(guest, index, Origin::Guest).map(|value| guest.state.regs.set_edx_eax(value))
    };
    if result.is_err() {
        let reason = match classify(index) {
            MsrClass::Unknown => Policy::MSR_UNKNOWN_EXITS,
            _ => Policy::MSR_INVALID_EXITS,
        };
        return refused(guest, index, write, next, reason);
    }
    advance(guest, next);
    Ok(Action::Resume)
}

/// An access that the guest does not get: #GP, unless the VMM wants to answer it.
#[cold]
fn refused<P: Platform>(
    guest: &mut Guest<'_, P>,
    index: u32,
    write: bool,
    next: u64,
    reason: Policy,
) -> Result<Action, Stop> {
    if !guest.policy.contains(reason) {
        return Err(Exception::GP0.into());
    }
    let value = if write { guest.state.regs.edx_eax() } else { 0 };
    let rip = guest.vmcb.rip();
    let io = &mut guest.state.io;
    io.activate();
    (io.rip, io.next_rip) = (rip, next);
    io.phase = Phase::Msr {
        index,
        write,
        value,
        reason: reason.bits(),
    };
    Ok(pending(guest))
}

/// The VMM's answer to [`UserIo::Msr`](crate::io::UserIo::Msr): the value that was read, or `None`
/// for #GP. It is dropped if the VMM has moved RIP.
pub fn finish_msr<P: Platform>(guest: &mut Guest<'_, P>, answer: Option<u64>) {
    let io = &mut guest.state.io;
    let Phase::Msr { write, .. } = io.phase else {
        return;
    };
    let (rip, next) = (io.rip, io.next_rip);
    io.clear();
    if guest.vmcb.rip() != rip {
        return;
    }
    match answer {
        None => guest.state.events.raise(Exception::GP0),
        Some(value) => {
            if !write {
                guest.state.regs.set_edx_eax(value);
            }
            advance(guest, next);
        }
    }
}

/// Reads an MSR, for RDMSR or `KVM_GET_MSRS`.
pub fn read_msr<P: Platform>(
    guest: &mut Guest<'_, P>,
    index: u32,
    origin: Origin,
) -> Result<u64, Exception> {
    match classify(index) {
        MsrClass::Vmcb(msr) if origin == Origin::Guest && !has_vmcb(msr, &guest.state.features) => {
            Err(Exception::GP0)
        }
        MsrClass::Vmcb(VmcbMsr::Pat) if origin == Origin::Host => match &guest.nested {
            Some(nested) => Ok(nested.outer_pat(guest.vmcb)),
            None => Ok(guest.vmcb.g_pat()),
        },
        MsrClass::Vmcb(msr) => Ok(read_vmcb(guest, msr)),
        MsrClass::PlatformInfo
            if origin == Origin::Guest && guest.policy.contains(Policy::NO_PLATFORM_INFO) =>
        {
            Err(Exception::GP0)
        }
        MsrClass::File
        | MsrClass::MiscEnable
        | MsrClass::PlatformInfo
        | MsrClass::TscAdjust
        | MsrClass::PvWallClock
        | MsrClass::PvSystemTime
        | MsrClass::PvStealTime => {
            let state = &guest.state;
            state.msrs.read(index, origin, &state.features)
        }
        MsrClass::ApicBase => Ok(guest.platform.apic_base()),
        MsrClass::X2Apic(register) => guest.platform.x2apic_read(register),
        MsrClass::Tsc => Ok(match origin {
            Origin::Host => guest.outer_tsc(),
            Origin::Guest => guest.tsc(),
        }),
        MsrClass::TscDeadline => {
            check_deadline(guest, origin)?;
            Ok(guest.platform.tsc_deadline(origin))
        }
        MsrClass::PredCmd | MsrClass::Unknown => Err(Exception::GP0),
    }
}

/// Writes an MSR, for WRMSR or `KVM_SET_MSRS`.
pub fn write_msr<P: Platform>(
    guest: &mut Guest<'_, P>,
    index: u32,
    value: u64,
    origin: Origin,
) -> Result<(), Exception> {
    let class = classify(index);
    match class {
        MsrClass::Vmcb(msr) => return write_vmcb(guest, msr, value, origin),
        MsrClass::ApicBase => return guest.platform.set_apic_base(value, origin),
        MsrClass::X2Apic(register) => return guest.platform.x2apic_write(register, value),
        MsrClass::Tsc => {
            write_tsc(guest, value, origin);
            return Ok(());
        }
        MsrClass::PredCmd => {
            let flush = check_pred_cmd(value, origin, &guest.state.features)?;
            return match flush && !guest.platform.flush_predictors() {
                true => Err(Exception::GP0),
                false => Ok(()),
            };
        }
        MsrClass::TscDeadline => {
            check_deadline(guest, origin)?;
            guest.platform.set_tsc_deadline(value, origin);
            return Ok(());
        }
        MsrClass::Unknown => return Err(Exception::GP0),
        MsrClass::File
        | MsrClass::MiscEnable
        | MsrClass::PlatformInfo
        | MsrClass::TscAdjust
        | MsrClass::PvWallClock
        | MsrClass::PvSystemTime
        | MsrClass::PvStealTime => {}
    }
    let adjust = guest.state.msrs.tsc_adjust;
    let features = guest.state.features;
    guest.state.msrs.write(index, value, origin, &features)?;
    match class {
        MsrClass::TscAdjust if origin == Origin::Guest => {
            move_tsc(guest, value.wrapping_sub(adjust));
        }
        MsrClass::MiscEnable => show_mwait(guest, value),
        MsrClass::PvWallClock => guest.platform.request(Requests::PV_WALL_CLOCK),
        MsrClass::PvSystemTime => {
            if origin == Origin::Guest {
                let old = index == x86::msr::index::PV_SYSTEM_TIME_OLD;
                guest.platform.clock_placed(old);
            }
            guest.platform.request(Requests::PV_CLOCK);
        }
        MsrClass::PvStealTime => guest.platform.request(Requests::STEAL_TIME),
        _ => {}
    }
    Ok(())
}

/// CPUID may have to follow MISC_ENABLE's bit for MWAIT.
#[cold]
fn show_mwait<P: Platform>(guest: &mut Guest<'_, P>, misc_enable: u64) {
    /// MONITOR and MWAIT, in MISC_ENABLE.
    const MWAIT: u64 = 1 << 18;
    if guest.policy.contains(Policy::MISC_ENABLE_HAS_MWAIT) {
        cpuid::show_mwait(guest.cpuid, misc_enable & MWAIT != 0);
    }
}

fn check_deadline<P: Platform>(guest: &Guest<'_, P>, origin: Origin) -> Result<(), Exception> {
    if origin == Origin::Host || guest.state.features.has(Feature::TSC_DEADLINE) {
        Ok(())
    } else {
        Err(Exception::GP0)
    }
}

impl<P: Platform> Guest<'_, P> {
    /// The guest's TSC now.
    pub fn tsc(&self) -> u64 {
        let tsc = self.outer_tsc();
        match &self.nested {
            Some(nested) => tsc.wrapping_add(nested.tsc_offset()),
            None => tsc,
        }
    }

    /// The same without the offset of VMRUN: the TSC that the VMM reads and writes, and that WRMSR
    /// writes.
    fn outer_tsc(&self) -> u64 {
        self.platform.tsc().wrapping_add(self.vmcb.tsc_offset())
    }
}

/// A guest that writes the TSC changes TSC_ADJUST by the same amount (APM vol. 2, 13.2.4). In an
/// inner guest it is the CPU's TSC that is written: VMRUN's offset is for reads (APM vol. 2,
/// 15.30.5).
fn write_tsc<P: Platform>(guest: &mut Guest<'_, P>, value: u64, origin: Origin) {
    let mut difference = value.wrapping_sub(guest.outer_tsc());
    if origin == Origin::Guest {
        let adjust = &mut guest.state.msrs.tsc_adjust;
        *adjust = adjust.wrapping_add(difference);
    } else {
        let old = guest.vmcb.tsc_offset();
        let offset = old.wrapping_add(difference);
        difference = guest.platform.sync_tsc(value, offset).wrapping_sub(old);
    }
    move_tsc(guest, difference);
}

fn move_tsc<P: Platform>(guest: &mut Guest<'_, P>, difference: u64) {
    let offset = guest.vmcb.tsc_offset().wrapping_add(difference);
    guest.vmcb.set_tsc_offset(offset);
    let changed = Requests::SET_TIMER | Requests::PV_CLOCK;
    guest.platform.request(changed);
}

/// The fields of the VMCB that are MSRs, with their getters and setters. EFER and DebugCtl have
/// more to them.
macro_rules! fields {
    ($($msr:ident $get:ident $set:ident;)*) => {
        fn read_vmcb<P: Platform>(guest: &Guest<'_, P>, msr: VmcbMsr) -> u64 {
            match msr {
                VmcbMsr::Efer => guest.efer().bits(),
                VmcbMsr::DebugCtl => guest.vmcb.dbgctl(),
                $(VmcbMsr::$msr => guest.vmcb.$get(),)*
            }
        }

        fn write_vmcb<P: Platform>(
            guest: &mut Guest<'_, P>,
            msr: VmcbMsr,
            value: u64,
            origin: Origin,
        ) -> Result<(), Exception> {
            if msr == VmcbMsr::Efer {
                return write_efer_msr(guest, value, origin);
            }
            let value = check_vmcb(msr, value, origin, &guest.state.features)?;
            let vmcb = &mut *guest.vmcb;
            match (msr, &mut guest.nested) {
                (VmcbMsr::Pat, Some(nested)) if origin == Origin::Host => {
                    nested.set_outer_pat(vmcb, value);
                    return Ok(());
                }
                _ => {}
            }
            match msr {
                VmcbMsr::Efer => {}
                VmcbMsr::DebugCtl => debug_ctl::set(vmcb, &guest.state.debug, guest.host, value),
                $(VmcbMsr::$msr => vmcb.$set(value),)*
            }
            Ok(())
        }
    };
}

fields! {
    Pat g_pat set_g_pat;
    Star star set_star;
    Lstar lstar set_lstar;
    Cstar cstar set_cstar;
    Sfmask sfmask set_sfmask;
    FsBase fs_base set_fs_base;
    GsBase gs_base set_gs_base;
    KernelGsBase kernel_gs_base set_kernel_gs_base;
    SysenterCs sysenter_cs set_sysenter_cs;
    SysenterEsp sysenter_esp set_sysenter_esp;
    SysenterEip sysenter_eip set_sysenter_eip;
    LastBranchFrom br_from set_br_from;
    LastBranchTo br_to set_br_to;
    LastExceptionFrom last_excp_from set_last_excp_from;
    LastExceptionTo last_excp_to set_last_excp_to;
    SpecCtrl spec_ctrl set_spec_ctrl;
}

/// A guest's write obeys its CPUID. A VMM may restore more; LMA stays what paging has made it.
fn write_efer_msr<P: Platform>(
    guest: &mut Guest<'_, P>,
    value: u64,
    origin: Origin,
) -> Result<(), Exception> {
    let old = control_regs(guest);
    let new = match origin {
        Origin::Guest => write_efer(&old, value, &guest.state.features)?,
        Origin::Host => {
            let mut efer = Efer::from_bits_retain(value);
            if !valid_efer(efer, &guest.state.features) {
                return Err(Exception::GP0);
            }
            efer.set(Efer::LMA, old.efer.contains(Efer::LMA));
            ControlRegs { efer, ..old }
        }
    };
    set_control_regs(guest, &new);
    if guest.nested.is_some() && !new.efer.contains(Efer::SVME) {
        let nested = guest.nested.as_deref_mut();
        nested::turned_off(guest.vmcb, guest.state, nested, origin);
    }
    Ok(())
}
