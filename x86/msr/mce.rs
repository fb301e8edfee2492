// SPDX-License-Identifier: GPL-2.0-only

//! The machine-check registers (APM vol. 2, chapter 9).

use super::index;
use super::Origin;
use crate::regs::Exception;

/// Most banks that a VMM can ask for.
pub const MAX_BANKS: usize = 32;
/// Registers of a bank: CTL, STATUS, ADDR, MISC.
const BANK: usize = 4;
const CTL: usize = 0;
const STATUS: usize = 1;

/// In MCG_CAP: the number of banks.
const CAP_COUNT: u64 = 0xff;
/// In MCG_CAP: MCG_CTL is there.
const CAP_CTL: u64 = 1 << 8;
/// In MCG_CAP: software can recover from some errors.
const CAP_SER: u64 = 1 << 24;
/// A bank's CTL is all ones or zero, but for two bits that old systems clear: bit 10 for an erratum
/// of the K8, and bit 0 to hear of no corrected errors.
const CTL_OPTIONAL: u64 = 1 << 10 | 1 << 0;

/// In MCi_STATUS: the bank holds an error (APM vol. 2, 9.3.2.1), ...
const STATUS_VAL: u64 = 1 << 63;
/// ... and has lost another one, ...
const STATUS_OVERFLOW: u64 = 1 << 62;
/// ... which was not corrected, ...
const STATUS_UC: u64 = 1 << 61;
/// ... and lies in what the CPU itself knows, ...
const STATUS_PCC: u64 = 1 << 57;
/// ... or is signalled by #MC (bits 56 and 55 of CPUs whose software can recover).
const STATUS_SIGNALED: u64 = 0b11 << 55;
/// In MCG_STATUS: a machine check is being handled.
const STATUS_MCIP: u64 = 1 << 2;
/// An error that the VMM reports: `struct kvm_x86_mce`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// MCi_STATUS.
    pub status: u64,
    /// MCi_ADDR.
    pub addr: u64,
    /// MCi_MISC.
    pub misc: u64,
    /// MCG_STATUS.
    pub mcg_status: u64,
    /// Number of the bank.
    pub bank: u8,
}

/// What a [`Report`] leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reported {
    /// Nothing that interrupts the guest: it is in a bank, or the guest has turned reports off.
    Quiet,
    /// #MC.
    MachineCheck,
    /// A machine check while one is being handled, or with CR4.MCE clear: the CPU shuts down (APM
    /// vol. 2, 8.2.17).
    Shutdown,
}

/// The registers after reset: all banks, all enabled, nothing logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mce {
    cap: u64,
    status: u64,
    ctl: u64,
    banks: [[u64; BANK]; MAX_BANKS],
}

impl Default for Mce {
    fn default() -> Self {
        Self::new(Self::DEFAULT_BANKS, 0)
    }
}

impl Mce {
    /// Banks of a vCPU for which `KVM_X86_SETUP_MCE` was not called, as in KVM: Firecracker saves
    /// them all.
    const DEFAULT_BANKS: u64 = MAX_BANKS as u64;

    /// What `KVM_X86_GET_MCE_CAP_SUPPORTED` answers.
    pub const CAP_SUPPORTED: u64 = CAP_CTL | CAP_SER;

    fn new(cap: u64, enabled: u64) -> Self {
        let mut bank = [0; BANK];
        bank[CTL] = enabled;
        Self {
            cap,
            status: 0,
            ctl: if cap & CAP_CTL != 0 { enabled } else { 0 },
            banks: [bank; MAX_BANKS],
        }
    }

    /// `KVM_X86_SETUP_MCE`: false, and no change, if `cap` asks for what is not supported.
    #[must_use]
    pub fn setup(&mut self, cap: u64) -> bool {
        let count = cap & CAP_COUNT;
        let valid = cap & !(CAP_COUNT | Self::CAP_SUPPORTED) == 0
            && (1..=MAX_BANKS as u64).contains(&count);
        if valid {
            *self = Self::new(cap, u64::MAX);
        }
        valid
    }

    /// `KVM_X86_SET_MCE`: an error happens. `enabled` is the guest's CR4.MCE. `None`, and no
    /// change, if there is no such bank, or no error.
    pub fn report(&mut self, report: &Report, enabled: bool) -> Option<Reported> {
        let number = usize::from(report.bank);
        if number >= self.banks() || report.status & STATUS_VAL == 0 {
            return None;
        }
        let bank = self.banks.get_mut(number)?;
        let [ctl, status, addr, misc] = bank;
        let uncorrected = report.status & STATUS_UC != 0;
        let signaled =
            report.mcg_status != 0 || report.status & (STATUS_PCC | STATUS_SIGNALED) != 0;
        if uncorrected && !signaled {
            // Software need do nothing at once: it looks at the banks now and then.
            (*status, *addr, *misc) = (report.status, report.addr, report.misc);
            self.status = report.mcg_status;
            return Some(Reported::Quiet);
        }
        // All bits of a control register enable the reports (APM vol. 2, 9.3.1.3, 9.3.2.2).
        let off = *ctl != u64::MAX || (self.cap & CAP_CTL != 0 && self.ctl != u64::MAX);
        if uncorrected && off {
            return Some(Reported::Quiet);
        }
        if uncorrected && (self.status & STATUS_MCIP != 0 || !enabled) {
            return Some(Reported::Shutdown);
        }
        // An error that was not corrected takes the place of another one, and no other takes its
        // (APM vol. 2, 9.3.2.4).
        if *status & STATUS_VAL != 0 && *status & STATUS_UC != 0 && !uncorrected {
            *status |= STATUS_OVERFLOW;
            return Some(Reported::Quiet);
        }
        let lost = match *status & STATUS_VAL {
            0 => 0,
            _ => STATUS_OVERFLOW,
        };
        (*status, *addr, *misc) = (report.status | lost, report.addr, report.misc);
        if !uncorrected {
            return Some(Reported::Quiet);
        }
        self.status = report.mcg_status;
        Some(Reported::MachineCheck)
    }

    /// Number of banks.
    pub fn banks(&self) -> usize {
        usize::from(self.cap.to_le_bytes()[0]).min(MAX_BANKS)
    }

    /// True if `index` can be one of these registers.
    pub(super) fn holds(index: u32) -> bool {
        matches!(
            index,
            index::MCG_CAP
                | index::MCG_STATUS
                | index::MCG_CTL
                | index::MC0_CTL2..=index::MC_CTL2_LAST
                | index::MC0_CTL..=index::MC_LAST
        )
    }

    pub(super) fn read(&self, index: u32, origin: Origin) -> Result<u64, Exception> {
        match index {
            index::MCG_CAP => Ok(self.cap),
            index::MCG_STATUS => Ok(self.status),
            index::MCG_CTL if self.has_ctl(origin) => Ok(self.ctl),
            index::MC0_CTL2..=index::MC_CTL2_LAST => self.check_ctl2(index, 0, origin).map(|()| 0),
            _ => {
                let (bank, register) = self.place(index)?;
                let bank = self.banks.get(bank).ok_or(Exception::GP0)?;
                bank.get(register).copied().ok_or(Exception::GP0)
            }
        }
    }

    /// `status_writable` is HWCR.McStatusWrEn.
    pub(super) fn write(
        &mut self,
        index: u32,
        value: u64,
        origin: Origin,
        status_writable: bool,
    ) -> Result<(), Exception> {
        let host = origin == Origin::Host;
        match index {
            index::MCG_CAP if host && value == self.cap => {}
            index::MCG_STATUS => self.status = value,
            index::MCG_CTL if self.cap & CAP_CTL != 0 && matches!(value, 0 | u64::MAX) => {
                self.ctl = value;
            }
            // A VMM that restores what it has read.
            index::MCG_CTL if host && value == 0 => {}
            index::MC0_CTL2..=index::MC_CTL2_LAST => self.check_ctl2(index, value, origin)?,
            _ => {
                let (bank, register) = self.place(index)?;
                if register == CTL && value != 0 && value | CTL_OPTIONAL != u64::MAX {
                    return Err(Exception::GP0);
                }
                // Software clears what hardware has logged (APM vol. 2, 9.3.2.1).
                if register == STATUS && value != 0 && !host && !status_writable {
                    return Err(Exception::GP0);
                }
                let bank = self.banks.get_mut(bank).ok_or(Exception::GP0)?;
                *bank.get_mut(register).ok_or(Exception::GP0)? = value;
            }
        }
        Ok(())
    }

    /// Corrected errors make no interrupts, so the guest has no MCi_CTL2. A VMM may restore its
    /// zeros.
    fn check_ctl2(&self, index: u32, value: u64, origin: Origin) -> Result<(), Exception> {
        let bank = index.wrapping_sub(index::MC0_CTL2) as usize;
        let fine = origin == Origin::Host && value == 0 && bank < self.banks();
        fine.then_some(()).ok_or(Exception::GP0)
    }

    fn has_ctl(&self, origin: Origin) -> bool {
        self.cap & CAP_CTL != 0 || origin == Origin::Host
    }

    /// Which bank, and which of its registers, `index` is.
    fn place(&self, index: u32) -> Result<(usize, usize), Exception> {
        if !matches!(index, index::MC0_CTL..=index::MC_LAST) {
            return Err(Exception::GP0);
        }
        let offset = index.wrapping_sub(index::MC0_CTL) as usize;
        let (bank, register) = (offset / BANK, offset % BANK);
        if bank < self.banks() {
            Ok((bank, register))
        } else {
            Err(Exception::GP0)
        }
    }
}
