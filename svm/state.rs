// SPDX-License-Identifier: GPL-2.0-only

//! Everything of a virtual CPU that is neither in the VMCB nor in the local APIC nor in the FPU.

use crate::debug::GuestDebug;
use crate::event::Events;
use crate::features::SvmFeatures;
use crate::intercept::{Word4, Word5};
use crate::io::IoState;
use crate::vmcb::Vmcb;
use x86::decode::Insn;
use x86::features::{Feature, Features};
use x86::msr::MsrFile;
use x86::regs::{gpr, Cr0, Cr4, Efer, GuestRegs, SegReg};

/// `struct kvm_mp_state`, with the numbers of the API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum MpState {
    /// Runs.
    #[default]
    Runnable = 0,
    /// An application processor before its INIT.
    Uninitialized = 1,
    /// Got INIT, waits for SIPI.
    InitReceived = 2,
    /// Executed HLT.
    Halted = 3,
    /// Got SIPI after INIT, and has not begun yet: the VMM has set this.
    SipiReceived = 4,
}

/// Where the code of the last exits was found, to spare the walk of the guest's page tables. It is
/// a hint: what it leads to is checked (`dispatch/rip.rs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CodeHint {
    /// CR3 with which the page was found.
    pub(crate) cr3: u64,
    /// Linear address of the page, with bit 0 set if the hint holds anything.
    pub(crate) page: u64,
    /// Guest-physical address of the page.
    pub(crate) gpa: u64,
}

/// An instruction that was decoded lately, under the bytes that it was decoded from: so it cannot
/// be stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decoded {
    /// The bytes, with zeros behind them.
    pub(crate) bytes: [u8; Self::BYTES],
    /// What they mean.
    pub(crate) insn: Insn,
}

impl Decoded {
    /// No instruction is longer than 15 bytes; with 16 they compare at once.
    pub(crate) const BYTES: usize = 16;
    /// How many are kept.
    pub(crate) const SLOTS: usize = 4;
}

/// The plain values of one vCPU. Copying it, the VMCB, the local APIC and the FPU image copies the
/// vCPU: that is what fork and reset do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuState {
    /// The general-purpose registers, all sixteen. RAX and RSP are in the VMCB only from
    /// [`crate::inject::prepare`] to [`crate::inject::after_exit`].
    pub regs: GuestRegs,
    /// Events on their way.
    pub events: Events,
    /// DR0 to DR3. DR6 and DR7 are in the VMCB, unless `debug` has them.
    pub db: [u64; 4],
    /// What the VMM debugs.
    pub debug: GuestDebug,
    /// CR0.CD and CR0.NW as the guest wrote them: the CPU never gets them.
    pub cr0_hidden: Cr0,
    /// CR4.MCE as the guest wrote it: for the CPU it is always set.
    pub cr4_mce: bool,
    /// EFER.LME while paging is off, when the CPU does not get it.
    pub lme_hidden: bool,
    /// EFER.SVME as the guest wrote it: for the CPU it is always set.
    pub svme: bool,
    /// XCR0.
    pub xcr0: u64,
    /// The rights of protection keys.
    pub pkru: u32,
    /// The MSRs that are not in the VMCB.
    pub msrs: MsrFile,
    /// What the guest's CPUID offers.
    pub features: Features,
    /// A port or MMIO access that the VMM must answer.
    pub io: IoState,
    /// Whether the vCPU runs.
    pub mp_state: MpState,
    pub(crate) code_hint: CodeHint,
    pub(crate) decoded: [Option<Decoded>; Decoded::SLOTS],
}

/// XCR0 after RESET: x87 only (APM vol. 2, 11.5.2).
const XCR0_RESET: u64 = 1;

impl VcpuState {
    /// The state after RESET of a vCPU without CPUID list (APM vol. 2, table 14-1).
    pub fn new() -> Self {
        Self {
            regs: GuestRegs::default(),
            events: Events::default(),
            db: [0; 4],
            debug: GuestDebug::default(),
            cr0_hidden: Cr0::CD | Cr0::NW,
            cr4_mce: false,
            lme_hidden: false,
            svme: false,
            xcr0: XCR0_RESET,
            pkru: 0,
            msrs: MsrFile::new(),
            features: Features::default(),
            io: IoState::new(),
            mp_state: MpState::Runnable,
            code_hint: CodeHint::default(),
            decoded: [None; Decoded::SLOTS],
        }
    }

    /// RESET. `signature` is CPUID leaf 1, EAX, which RDX then holds. CPUID stays.
    pub fn reset(&mut self, vmcb: &mut Vmcb, host: SvmFeatures, signature: u32) {
        // Field by field: the whole value is much for a kernel's stack.
        let Self {
            regs,
            events,
            db,
            debug,
            cr0_hidden,
            cr4_mce,
            lme_hidden,
            svme,
            xcr0,
            pkru,
            msrs,
            features: _,
            io,
            mp_state,
            code_hint,
            decoded,
        } = self;
        *regs = GuestRegs::default();
        *events = Events::default();
        *db = [0; 4];
        *debug = GuestDebug::default();
        *cr0_hidden = Cr0::CD | Cr0::NW;
        (*cr4_mce, *lme_hidden, *svme) = (false, false, false);
        (*xcr0, *pkru) = (XCR0_RESET, 0);
        *msrs = MsrFile::new();
        *io = IoState::new();
        *mp_state = MpState::Runnable;
        *code_hint = CodeHint::default();
        decoded.fill(None);
        self.regs.set(gpr::RDX, u64::from(signature));
        vmcb.reset(host);
        self.set_features(vmcb, host, self.features);
        set_hidden_intercepts(vmcb, self);
    }

    /// What the guest's CPUID offers is `features` from now on. RDTSCP and INVPCID are undefined
    /// without their bits, which the CPU does not know; RDPID cannot be intercepted.
    ///
    /// NMIs are the CPU's only if the guest is no hypervisor, whose own guests have them, too.
    pub fn set_features(&mut self, vmcb: &mut Vmcb, host: SvmFeatures, features: Features) {
        self.features = features;
        vmcb.set_virtual_nmis(host.contains(SvmFeatures::VNMI) && !features.has(Feature::SVM));
        vmcb.update_intercepts(|intercepts| {
            let lacks = |feature| !features.has(feature);
            intercepts.word4.set(Word4::RDTSCP, lacks(Feature::RDTSCP));
            // A CPU that does not have the instruction does not look at the bit.
            intercepts
                .word5
                .set(Word5::INVPCID, lacks(Feature::INVPCID));
        });
    }

    /// INIT: as RESET, but the FPU, XCR0, the MSRs of real CPUs, CR0.CD and CR0.NW stay (APM vol.
    /// 2, table 14-1).
    pub fn init(&mut self, vmcb: &mut Vmcb, signature: u32) {
        self.regs = GuestRegs::default();
        self.regs.set(gpr::RDX, u64::from(signature));
        self.events = Events::default();
        self.db = [0; 4];
        self.cr4_mce = false;
        (self.lme_hidden, self.svme) = (false, false);
        self.io.clear();
        self.msrs.init();
        let debugger_dr7 = vmcb.dr7();
        vmcb.reset_registers();
        self.debug.after_init(vmcb, debugger_dr7);
        set_hidden_intercepts(vmcb, self);
    }

    /// Other code is about to be executed than that of the last exits.
    pub(crate) fn forget_code(&mut self) {
        self.code_hint = CodeHint::default();
    }

    /// A start-up IPI (APM vol. 2, 16.5): real mode at `vector` * 4 KiB.
    pub fn start_up(&mut self, vmcb: &mut Vmcb, vector: u8) {
        let mut cs = vmcb.segment(SegReg::Cs);
        cs.selector = u16::from(vector) << 8;
        cs.base = u64::from(vector) << 12;
        vmcb.set_segment(SegReg::Cs, cs);
        vmcb.set_rip(0);
        self.mp_state = MpState::Runnable;
    }

    /// DR0 to DR3, if they must be in the CPU while this guest runs: a breakpoint is enabled.
    #[inline]
    pub fn breakpoints(&self, vmcb: &Vmcb) -> Option<&[u64; 4]> {
        /// The local and global enable bits of DR7 (APM vol. 2, 13.1.1.4).
        const DR7_ENABLE: u64 = 0xff;
        let enabled = vmcb.dr7() & DR7_ENABLE != 0;
        enabled.then(|| self.debug.breakpoints().unwrap_or(&self.db))
    }
}

impl Default for VcpuState {
    fn default() -> Self {
        Self::new()
    }
}

/// The bits of CR0 that the guest has and the CPU never gets: with cache disable set the whole
/// guest would run uncached, and its memory is coherent without.
pub(crate) const CR0_HIDDEN: Cr0 = Cr0::CD.union(Cr0::NW);

/// CR0 as the guest sees it.
pub fn guest_cr0(vmcb: &Vmcb, state: &VcpuState) -> Cr0 {
    vmcb.cr0().difference(CR0_HIDDEN) | state.cr0_hidden
}

/// Sets CR0 to what the guest is to see, which must be valid.
pub fn set_guest_cr0(vmcb: &mut Vmcb, state: &mut VcpuState, value: Cr0) {
    state.cr0_hidden = value & CR0_HIDDEN;
    vmcb.set_cr0(value.difference(CR0_HIDDEN) | Cr0::ET);
    set_hidden_intercepts(vmcb, state);
}

/// CR4 as the guest sees it.
pub fn guest_cr4(vmcb: &Vmcb, state: &VcpuState) -> Cr4 {
    let mut cr4 = vmcb.cr4();
    cr4.set(Cr4::MCE, state.cr4_mce);
    cr4
}

/// Sets CR4 to what the guest is to see, which must be valid. The CPU gets MCE in any case: a
/// machine check of the host must become an exit, not a shutdown.
pub fn set_guest_cr4(vmcb: &mut Vmcb, state: &mut VcpuState, value: Cr4) {
    state.cr4_mce = value.contains(Cr4::MCE);
    vmcb.set_cr4(value | Cr4::MCE);
    set_hidden_intercepts(vmcb, state);
}

/// EFER as the guest sees it: SVME, which AMD-V needs in the VMCB, only if the guest has set it.
pub fn guest_efer(vmcb: &Vmcb, state: &VcpuState) -> Efer {
    let mut efer = vmcb.efer();
    efer.set(Efer::SVME, state.svme);
    efer.set(Efer::LME, efer.contains(Efer::LMA) || state.lme_hidden);
    efer
}

/// Sets EFER to what the guest is to see, which must be valid. LME means nothing before paging is
/// on, and paging is turned on by an exit, so the CPU gets it no sooner. QEMU needs that: at a
/// #VMEXIT with LME, and neither CR0.PG nor CR4.PAE, it does not load the host's CR0.
pub fn set_guest_efer(vmcb: &mut Vmcb, state: &mut VcpuState, value: Efer) {
    state.svme = value.contains(Efer::SVME);
    let mut efer = value | Efer::SVME;
    efer.set(Efer::LME, value.contains(Efer::LMA));
    state.lme_hidden = value.contains(Efer::LME) && !value.contains(Efer::LMA);
    vmcb.set_efer(efer);
}

/// Reads of a control register exit while the CPU's value is not the guest's; and all writes of
/// CR0, one that makes it what the CPU has anyway included, which is no selected write.
fn set_hidden_intercepts(vmcb: &mut Vmcb, state: &VcpuState) {
    use crate::intercept::CrIntercepts;
    vmcb.update_intercepts(|intercepts| {
        let cr = &mut intercepts.cr;
        let cr0 = CrIntercepts::CR0_READ | CrIntercepts::CR0_WRITE;
        cr.set(cr0, !state.cr0_hidden.is_empty());
        cr.set(CrIntercepts::CR4_READ, !state.cr4_mce);
    });
}
