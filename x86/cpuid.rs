// SPDX-License-Identifier: GPL-2.0-only

//! CPUID as the guest sees it.
//!
//! ```text
//!   host CPUID, Caps ─► supported ─► VMM edits ─► [Entry] ─► guest_view: each CPUID of the guest
//!                           │                        │
//!                           └► Features::offered ────┴─────► Features: what CR4, EFER, MSRs may hold
//! ```

pub mod bits;
mod supported;

use bitflags::bitflags;

use crate::xsave;
use bits::{Ext1Edx, Leaf1Ecx, Leaf1Edx, Leaf7Ecx};
pub use supported::supported;

/// The leaves that are known here (APM vol. 3, appendix E).
pub mod function {
    /// Highest basic leaf, and the vendor.
    pub const VENDOR: u32 = 0;
    /// Family, model, stepping, and the oldest features.
    pub const FEATURES: u32 = 1;
    /// Power management.
    pub const POWER: u32 = 6;
    /// Features, by subleaf.
    pub const STRUCTURED_FEATURES: u32 = 7;
    /// The topology of CPUs, by subleaf.
    pub const TOPOLOGY: u32 = 0xb;
    /// The extended registers, by subleaf.
    pub const XSTATE: u32 = 0xd;
    /// The topology of CPUs in its second version, by subleaf.
    pub const TOPOLOGY_2: u32 = 0x1f;
    /// Highest hypervisor leaf, and the signature.
    pub const HYPERVISOR: u32 = 0x4000_0000;
    /// The paravirtual features.
    pub const PV_FEATURES: u32 = HYPERVISOR + 1;
    /// Highest extended leaf, and the vendor.
    pub const EXTENDED: u32 = 0x8000_0000;
    /// The features that AMD added.
    pub const EXTENDED_FEATURES: u32 = EXTENDED + 1;
    /// The CPU's name begins.
    pub const BRAND_FIRST: u32 = EXTENDED + 2;
    /// The CPU's name ends.
    pub const BRAND_LAST: u32 = EXTENDED + 4;
    /// First-level caches and TLBs.
    pub const L1_CACHE: u32 = EXTENDED + 5;
    /// Second- and third-level caches and TLBs.
    pub const L2_CACHE: u32 = EXTENDED + 6;
    /// Power management and RAS.
    pub const ADVANCED_POWER: u32 = EXTENDED + 7;
    /// Widths of addresses, and features.
    pub const ADDRESS_SIZES: u32 = EXTENDED + 8;
    /// AMD-V.
    pub const SVM: u32 = EXTENDED + 0xa;
    /// TLBs for 1 GiB pages.
    pub const TLB_1G: u32 = EXTENDED + 0x19;
    /// What runs fast.
    pub const OPTIMIZATION: u32 = EXTENDED + 0x1a;
    /// Caches, by subleaf.
    pub const CACHE_TOPOLOGY: u32 = EXTENDED + 0x1d;
    /// This CPU's place among the others.
    pub const CPU_TOPOLOGY: u32 = EXTENDED + 0x1e;
    /// Features that AMD added later.
    pub const EXTENDED_FEATURES_2: u32 = EXTENDED + 0x21;
}

/// One CPUID leaf, laid out as `struct kvm_cpuid_entry2`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Entry {
    /// The leaf, as in EAX.
    pub function: u32,
    /// The subleaf, as in ECX; counts only with [`Entry::SIGNIFICANT_INDEX`].
    pub index: u32,
    /// [`Entry::SIGNIFICANT_INDEX`] or nothing.
    pub flags: u32,
    /// Answer in EAX.
    pub eax: u32,
    /// Answer in EBX.
    pub ebx: u32,
    /// Answer in ECX.
    pub ecx: u32,
    /// Answer in EDX.
    pub edx: u32,
    /// Unused.
    pub padding: [u32; 3],
}

impl Entry {
    /// `KVM_CPUID_FLAG_SIGNIFCANT_INDEX`: the entry answers one subleaf only.
    pub const SIGNIFICANT_INDEX: u32 = 1 << 0;

    /// A leaf without subleaves that answers `[eax, ebx, ecx, edx]`.
    pub const fn new(function: u32, answer: [u32; 4]) -> Self {
        let [eax, ebx, ecx, edx] = answer;
        Self {
            function,
            index: 0,
            flags: 0,
            eax,
            ebx,
            ecx,
            edx,
            padding: [0; 3],
        }
    }

    /// A subleaf.
    pub const fn indexed(function: u32, index: u32, answer: [u32; 4]) -> Self {
        let mut entry = Self::new(function, answer);
        entry.index = index;
        entry.flags = Self::SIGNIFICANT_INDEX;
        entry
    }

    /// `[eax, ebx, ecx, edx]`.
    #[inline]
    pub const fn answer(&self) -> [u32; 4] {
        [self.eax, self.ebx, self.ecx, self.edx]
    }

    /// True if it answers this leaf and subleaf.
    #[inline]
    pub const fn answers(&self, function: u32, index: u32) -> bool {
        self.function == function
            && (self.flags & Self::SIGNIFICANT_INDEX == 0 || self.index == index)
    }
}

/// What the paravirtual leaf `4000_0001` offers in EAX.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PvFeatures(u32);

bitflags! {
    impl PvFeatures: u32 {
        /// The clock at MSRs 0x11 and 0x12.
        const CLOCKSOURCE = 1 << 0;
        /// Port accesses need no delay.
        const NOP_IO_DELAY = 1 << 1;
        /// The clock at MSRs 4b56_4d00 and 4b56_4d01.
        const CLOCKSOURCE2 = 1 << 3;
        /// Asynchronous page faults, at MSR 4b56_4d02. None is ever sent.
        const ASYNC_PF = 1 << 4;
        /// The time that is stolen from the vCPU, at MSR 4b56_4d03.
        const STEAL_TIME = 1 << 5;
        /// An EOI that needs no exit, at MSR 4b56_4d04.
        const EOI = 1 << 6;
        /// The hypercall `KVM_HC_KICK_CPU` wakes a halted vCPU.
        const UNHALT = 1 << 7;
        /// A vCPU that is not running can be asked there to flush its TLB when it does.
        const TLB_FLUSH = 1 << 9;
        /// Asynchronous page faults may go to a hypervisor in the guest.
        const ASYNC_PF_VMEXIT = 1 << 10;
        /// The hypercall `KVM_HC_SEND_IPI`.
        const SEND_IPI = 1 << 11;
        /// The guest may forbid the host to poll while it is halted, at MSR 4b56_4d05.
        const POLL_CONTROL = 1 << 12;
        /// The hypercall `KVM_HC_SCHED_YIELD`.
        const SCHED_YIELD = 1 << 13;
        /// The end of an asynchronous page fault may be an interrupt, at MSRs 4b56_4d06 and
        /// 4b56_4d07.
        const ASYNC_PF_INT = 1 << 14;
        /// The clock's record says whether it is the same on all vCPUs.
        const CLOCKSOURCE_STABLE = 1 << 24;
    }
}

/// What the hypervisor can do, beyond what the host CPU does by itself. The default is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// The local APIC is in the kernel: x2APIC works.
    pub x2apic: bool,
    /// The TSC deadline timer works.
    pub tsc_deadline: bool,
    /// `IA32_TSC_ADJUST` works.
    pub tsc_adjust: bool,
    /// TSC_AUX is switched, so RDTSCP and RDPID work.
    pub tsc_aux: bool,
    /// The TSC runs at one rate always, on every CPU the guest may run on.
    pub invariant_tsc: bool,
    /// The XCR0 bits whose registers are switched; 0 if XSAVE is not offered at all.
    pub xcr0: u64,
    /// `IA32_XSS` is switched: XSAVES saves nothing but what XCR0 has.
    pub xsaves: bool,
    /// PRED_CMD works.
    pub ibpb: bool,
    /// SPEC_CTRL is the guest's own.
    pub spec_ctrl: bool,
    /// What the host's kernel knows of its CPUs in the place of leaf `8000_0021`, EAX: microcode
    /// brings what CPUID does not tell.
    pub host_knows: u32,
    /// Leaves `8000_001d` and `8000_001e` are offered; the VMM must fill the latter.
    pub topoext: bool,
    /// Most bits of a guest-physical address that nested paging can map, or 0 for no limit.
    pub max_gpa_bits: u8,
    /// What AMD-V can do for a guest (leaf `8000_000a`, EDX), if guests have it.
    pub svm: Option<u32>,
}

impl Caps {
    /// Bytes of an XSAVE area with nothing but x87, SSE and the header.
    pub const XSAVE_LEGACY_SIZE: u32 = 576;

    fn has_xcr0(&self, bits: u64) -> bool {
        self.xcr0 & bits == bits
    }

    fn has_xsave(&self) -> bool {
        self.has_xcr0(xsave::LEGACY)
    }

    fn has_avx(&self) -> bool {
        self.has_xcr0(xsave::LEGACY | xsave::AVX)
    }

    fn has_avx512(&self) -> bool {
        self.has_xcr0(xsave::LEGACY | xsave::AVX | xsave::AVX512)
    }

    fn has_pku(&self) -> bool {
        self.has_xcr0(xsave::LEGACY | xsave::PKRU)
    }
}

/// True if `leaf` announces the paravirtual interface of KVM, whose features are in the leaf after
/// it. A VMM may move it up, to make room for another interface, by a multiple of 0x100.
pub fn is_pv_signature(entry: &Entry) -> bool {
    const STEPS: u32 = 0xff00;
    entry.function & !STEPS == function::HYPERVISOR
        && [entry.ebx, entry.ecx, entry.edx] == supported::SIGNATURE
}

/// Takes a paravirtual feature out of a guest's list.
pub fn withhold(entries: &mut [Entry], feature: PvFeatures) {
    let Some(signature) = entries.iter().find(|entry| is_pv_signature(entry)) else {
        return;
    };
    let function = signature.function | 1;
    let leaves = entries.iter_mut();
    for leaf in leaves.filter(|leaf| leaf.function == function) {
        leaf.eax &= !feature.bits();
    }
}

/// True if `KVM_SET_CPUID2` can accept the list: linear addresses have 48 or 57 bits, or the list
/// does not say.
pub fn valid(entries: &[Entry]) -> bool {
    let [eax, ..] = lookup(entries, function::ADDRESS_SIZES, 0);
    matches!(eax >> 8 & 0xff, 0 | 48 | 57)
}

/// Answers `[eax, ebx, ecx, edx]`; zeros for what the list does not hold, as AMD does.
pub fn lookup(entries: &[Entry], function: u32, index: u32) -> [u32; 4] {
    match find(entries, function, index) {
        Some(entry) => entry.answer(),
        None => absent(entries, function, index),
    }
}

fn find(entries: &[Entry], function: u32, index: u32) -> Option<&Entry> {
    entries.iter().find(|entry| entry.answers(function, index))
}

/// The answer of a subleaf that is not in the list. Topology leaves go on for ever: they repeat the
/// subleaf in ECX and the CPU's x2APIC id in EDX.
#[cold]
fn absent(entries: &[Entry], function: u32, index: u32) -> [u32; 4] {
    if matches!(function, function::TOPOLOGY | function::TOPOLOGY_2) {
        if let Some(first) = find(entries, function, 1) {
            return [0, 0, index & 0xff, first.edx];
        }
    }
    [0; 4]
}

/// The state that shows through CPUID at run time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dynamic {
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// CR4.PKE.
    pub pke: bool,
    /// `IA32_APIC_BASE` has its enable bit set.
    pub apic_enabled: bool,
    /// Bytes of the XSAVE area for the XCR0 of now (leaf `d`, subleaf 0, EBX).
    pub xsave_size: u32,
    /// Bytes of the compacted XSAVE area for XCR0 and XSS of now (leaf `d`, subleaf 1, EBX).
    pub xsave_compacted_size: u32,
}

/// Answers a CPUID of the guest: [`lookup`], and what follows the state of the CPU.
pub fn guest_view(entries: &[Entry], function: u32, index: u32, dynamic: &Dynamic) -> [u32; 4] {
    let answer = lookup(entries, function, index);
    with_state(answer, function, index, dynamic)
}

/// Whether CPUID has MONITOR and MWAIT.
pub fn has_mwait(entries: &[Entry]) -> bool {
    let [_, _, ecx, _] = lookup(entries, function::FEATURES, 0);
    ecx & Leaf1Ecx::MONITOR != 0
}

/// CPUID has MONITOR and MWAIT from now on, or has them no longer.
pub fn show_mwait(entries: &mut [Entry], on: bool) {
    let leaves = entries.iter_mut();
    for leaf in leaves.filter(|leaf| leaf.function == function::FEATURES) {
        assign(&mut leaf.ecx, Leaf1Ecx::MONITOR, on);
    }
}

/// Brings an entry up to date with the state of the CPU, for `KVM_GET_CPUID2`.
pub fn refresh(entry: &mut Entry, dynamic: &Dynamic) {
    let answer = with_state(entry.answer(), entry.function, entry.index, dynamic);
    [entry.eax, entry.ebx, entry.ecx, entry.edx] = answer;
}

fn with_state(answer: [u32; 4], function: u32, index: u32, dynamic: &Dynamic) -> [u32; 4] {
    let [eax, mut ebx, mut ecx, mut edx] = answer;
    match (function, index) {
        (function::FEATURES, _) => {
            let xsave = ecx & Leaf1Ecx::XSAVE != 0;
            assign(&mut ecx, Leaf1Ecx::OSXSAVE, xsave && dynamic.osxsave);
            restrict(&mut edx, Leaf1Edx::APIC, dynamic.apic_enabled);
        }
        (function::STRUCTURED_FEATURES, 0) => {
            let pku = ecx & Leaf7Ecx::PKU != 0;
            assign(&mut ecx, Leaf7Ecx::OSPKE, pku && dynamic.pke);
        }
        // All zeros if the guest has no XSAVE.
        (function::XSTATE, 0) if eax != 0 => ebx = dynamic.xsave_size,
        (function::XSTATE, 1) if ebx != 0 => ebx = dynamic.xsave_compacted_size,
        (function::EXTENDED_FEATURES, _) => {
            restrict(&mut edx, Ext1Edx::APIC, dynamic.apic_enabled);
        }
        _ => {}
    }
    [eax, ebx, ecx, edx]
}

/// Sets or clears `bits`.
fn assign(register: &mut u32, bits: u32, on: bool) {
    *register = if on {
        *register | bits
    } else {
        *register & !bits
    };
}

/// Clears `bits` unless `on`.
fn restrict(register: &mut u32, bits: u32, on: bool) {
    if !on {
        *register &= !bits;
    }
}
