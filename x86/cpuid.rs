// SPDX-License-Identifier: GPL-2.0-only

//! CPUID as the guest sees it: the list that is offered, the look-up, and the guest's features.

use bitflags::bitflags;

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
}

bitflags! {
    /// What the paravirtual leaf `4000_0001` offers in EAX.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct PvFeatures: u32 {
        /// The clock at MSRs 0x11 and 0x12.
        const CLOCKSOURCE = 1 << 0;
        /// Port accesses need no delay.
        const NOP_IO_DELAY = 1 << 1;
        /// The clock at MSRs 4b56_4d00 and 4b56_4d01.
        const CLOCKSOURCE2 = 1 << 3;
        /// The clock is the same on all vCPUs.
        const CLOCKSOURCE_STABLE = 1 << 24;
    }
}

/// What the hypervisor can do, beyond what the host CPU does by itself.
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
    /// XCR0 and the extended registers are switched.
    pub xsave: bool,
    /// Leaves `8000_001d` and `8000_001e` are offered; the VMM must fill the latter.
    pub topoext: bool,
    /// Most bits of a guest-physical address that nested paging can map, or 0 for no limit.
    pub max_gpa_bits: u8,
    /// The paravirtual features.
    pub pv: PvFeatures,
}

/// Emits the list of `KVM_GET_SUPPORTED_CPUID`. `host` executes CPUID for (EAX, ECX).
pub fn supported<E>(
    host: &mut impl FnMut(u32, u32) -> [u32; 4],
    caps: &Caps,
    emit: &mut impl FnMut(Entry) -> Result<(), E>,
) -> Result<(), E> {
    let _ = (host, caps, emit);
    todo!()
}

/// Answers `[eax, ebx, ecx, edx]`; zeros for what the list does not hold, as AMD does.
pub fn lookup(entries: &[Entry], function: u32, index: u32) -> [u32; 4] {
    let _ = (entries, function, index);
    todo!()
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
    let _ = (entries, function, index, dynamic);
    todo!()
}
