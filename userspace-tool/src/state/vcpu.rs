// SPDX-License-Identifier: GPL-2.0-only

//! The state of a processor.

use std::ops::Range;

use kvm_bindings::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave, CpuId, Msrs, KVM_MAX_CPUID_ENTRIES,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// MSRs that say what the processor is, or what its firmware has set, and not what the guest has
/// made of it: one that the other device does not know is left out. The microcode's revision,
/// capabilities of the architecture, of the platform and of its performance, and the configurations
/// of AMD's cores (DE_CFG, HWCR, FP_CFG, LS_CFG, BU_CFG).
const OF_THE_PROCESSOR: [u32; 10] = [
    0x8b,
    0x10a,
    0xce,
    0x345,
    0x140,
    0xc001_1029,
    0xc001_0015,
    0xc001_1028,
    0xc001_1020,
    0xc001_1023,
];

/// The MSRs of Hyper-V, which guests here do not see: KVM names them, and some go on by themselves.
const OF_HYPER_V: Range<u32> = 0x4000_0000..0x4000_1000;

/// EFER.SVME: the guest is a hypervisor, whose guests have a state of their own.
const EFER_SVME: u64 = 1 << 12;

/// The state of a processor.
#[derive(Serialize, Deserialize)]
pub(crate) struct State {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: Option<kvm_xcrs>,
    xsave: kvm_xsave,
    debug: kvm_debugregs,
    lapic: Option<kvm_lapic_state>,
    events: kvm_vcpu_events,
    msrs: Vec<(u32, u64)>,
}

/// Names the request that failed.
fn of<T>(
    request: &'static str,
    result: std::result::Result<T, vmm_sys_util::errno::Error>,
) -> Result<T> {
    result.map_err(|error| Error::kvm(request, error))
}

/// One that fails for what is in the state.
fn refused(request: &'static str, reason: impl Into<String>) -> Error {
    Error::Kvm {
        request,
        error: std::io::Error::other(reason.into()),
    }
}

/// The state as the kernel takes it must not have more than the structure that KVM had first: what
/// is behind it would be of features that no processor of AMD has.
fn xsave_fits(kvm: &Kvm) -> Result<()> {
    let size = kvm.check_extension_int(Cap::Xsave2);
    match usize::try_from(size) {
        Ok(size) if size <= size_of::<kvm_xsave>() => Ok(()),
        _ => Err(refused(
            "KVM_GET_XSAVE",
            format!("the processor's state has {size} bytes"),
        )),
    }
}

impl State {
    /// Reads it. The processor rests, and has finished its instruction.
    pub(crate) fn read(kvm: &Kvm, vcpu: &VcpuFd, irqchip: bool) -> Result<Self> {
        xsave_fits(kvm)?;
        let sregs = of("KVM_GET_SREGS", vcpu.get_sregs())?;
        if sregs.efer & EFER_SVME != 0 {
            let reason = "the guest is a hypervisor: its guests cannot be kept";
            return Err(refused("KVM_GET_NESTED_STATE", reason));
        }
        // First those that go on with time.
        let msrs = read_msrs(kvm, vcpu)?;
        let cpuid = of("KVM_GET_CPUID2", vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES))?;
        let has_xcrs = kvm.check_extension(Cap::Xcrs);
        Ok(Self {
            cpuid: cpuid.as_slice().to_vec(),
            tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
            mp_state: of("KVM_GET_MP_STATE", vcpu.get_mp_state())?,
            regs: of("KVM_GET_REGS", vcpu.get_regs())?,
            sregs,
            xcrs: (has_xcrs.then(|| of("KVM_GET_XCRS", vcpu.get_xcrs()))).transpose()?,
            xsave: of("KVM_GET_XSAVE", vcpu.get_xsave())?,
            debug: of("KVM_GET_DEBUGREGS", vcpu.get_debug_regs())?,
            lapic: (irqchip.then(|| of("KVM_GET_LAPIC", vcpu.get_lapic()))).transpose()?,
            events: of("KVM_GET_VCPU_EVENTS", vcpu.get_vcpu_events())?,
            msrs,
        })
    }

    /// Writes it to a processor that is new.
    pub(crate) fn write(&self, kvm: &Kvm, vcpu: &VcpuFd) -> Result<()> {
        xsave_fits(kvm)?;
        let cpuid = CpuId::from_entries(&self.cpuid)
            .map_err(|_| refused("KVM_SET_CPUID2", "it has too many leaves"))?;
        self.check_features(kvm)?;
        of("KVM_SET_CPUID2", vcpu.set_cpuid2(&cpuid))?;
        // Where the rate cannot be set it is the host's, and must be what the guest has measured.
        if self.tsc_khz != 0 && vcpu.get_tsc_khz() != Ok(self.tsc_khz) {
            vcpu.set_tsc_khz(self.tsc_khz).map_err(|_| {
                let reason = format!("the guest's TSC has {} kHz", self.tsc_khz);
                refused("KVM_SET_TSC_KHZ", reason)
            })?;
        }
        of("KVM_SET_SREGS", vcpu.set_sregs(&self.sregs))?;
        of("KVM_SET_REGS", vcpu.set_regs(&self.regs))?;
        if let Some(xcrs) = &self.xcrs {
            of("KVM_SET_XCRS", vcpu.set_xcrs(xcrs))?;
        }
        // SAFETY: The kernel reads no more than the structure has: see `xsave_fits`.
        of("KVM_SET_XSAVE", unsafe { vcpu.set_xsave(&self.xsave) })?;
        of("KVM_SET_DEBUGREGS", vcpu.set_debug_regs(&self.debug))?;
        if let Some(lapic) = &self.lapic {
            of("KVM_SET_LAPIC", vcpu.set_lapic(lapic))?;
        }
        // Behind the local APIC: its timer's deadline is one of them.
        write_msrs(vcpu, &self.msrs)?;
        of("KVM_SET_MP_STATE", vcpu.set_mp_state(self.mp_state))?;
        of("KVM_SET_VCPU_EVENTS", vcpu.set_vcpu_events(&self.events))
    }

    /// Makes sure that the device gives the guest all features that it has seen.
    fn check_features(&self, kvm: &Kvm) -> Result<()> {
        let supported = of(
            "KVM_GET_SUPPORTED_CPUID",
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES),
        )?;
        match missing(&self.cpuid, supported.as_slice()) {
            Some(reason) => Err(refused("KVM_SET_CPUID2", reason)),
            None => Ok(()),
        }
    }
}

/// The leaves whose registers are bits for features, and which of these (EAX, EBX, ECX, EDX): APM
/// vol. 3, appendix E; the KVM documentation of its CPUID bits. What the tool itself sets is not in
/// them, nor what KVM shows of CR4.
const FEATURES: [(u32, u32, [u32; 4]); 6] = [
    // But for x2APIC, TSC-deadline, OSXSAVE, hypervisor; and HTT.
    (1, 0, [0, 0, !0x8920_0000, !(1 << 28)]),
    (7, 0, [0, !0, !(1 << 4), !0]),
    (0xd, 1, [!0, 0, 0, 0]),
    (0x4000_0001, 0, [!0, 0, 0, 0]),
    // But for CmpLegacy.
    (0x8000_0001, 0, [0, 0, !(1 << 1), !0]),
    (0x8000_0008, 0, [0, !0, 0, 0]),
];

/// What of these features is not supported, if something is not.
fn missing(seen: &[kvm_cpuid_entry2], supported: &[kvm_cpuid_entry2]) -> Option<String> {
    let find = |entries: &[kvm_cpuid_entry2], leaf, index| {
        let found = (entries.iter()).find(|entry| (entry.function, entry.index) == (leaf, index));
        found.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
    };
    for (leaf, index, masks) in FEATURES {
        let (seen, supported) = (find(seen, leaf, index), find(supported, leaf, index));
        for (nth, name) in ["EAX", "EBX", "ECX", "EDX"].into_iter().enumerate() {
            let bits = seen[nth] & masks[nth] & !supported[nth];
            if bits != 0 {
                return Some(format!(
                    "the guest uses features that this device has not: CPUID {leaf:x}h.{index}, bits {bits:#x} of {name}"
                ));
            }
        }
    }
    None
}

/// All MSRs that the device names and has.
fn read_msrs(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<(u32, u64)>> {
    let list = of("KVM_GET_MSR_INDEX_LIST", kvm.get_msr_index_list())?;
    let mut found = Vec::new();
    let list = list.as_slice().iter();
    for &index in list.filter(|index| !OF_HYPER_V.contains(index)) {
        let entry = kvm_msr_entry {
            index,
            ..Default::default()
        };
        let mut msrs = Msrs::from_entries(&[entry])
            .map_err(|_| refused("KVM_GET_MSRS", "it takes no list"))?;
        // One that the list has and the guest has not is no part of its state.
        if of("KVM_GET_MSRS", vcpu.get_msrs(&mut msrs))? == 1 {
            found.extend(msrs.as_slice().iter().map(|msr| (msr.index, msr.data)));
        }
    }
    Ok(found)
}

/// Sets them, each alone: one that the other device does not have may only be missing if that
/// makes no difference.
fn write_msrs(vcpu: &VcpuFd, list: &[(u32, u64)]) -> Result<()> {
    for &(index, data) in list {
        let entry = kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let msrs = Msrs::from_entries(&[entry])
            .map_err(|_| refused("KVM_SET_MSRS", "it takes no list"))?;
        let set = of("KVM_SET_MSRS", vcpu.set_msrs(&msrs))? == 1;
        if !set && data != 0 && !OF_THE_PROCESSOR.contains(&index) {
            let reason = format!("this device has no MSR {index:#x} that could be {data:#x}");
            return Err(refused("KVM_SET_MSRS", reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_that_are_missing_are_named() {
        let entry = |function, ecx| kvm_cpuid_entry2 {
            function,
            ecx,
            ..Default::default()
        };
        let seen = [entry(1, 1 << 31 | 1 << 24 | 1 << 12 | 1)];
        assert_eq!(missing(&seen, &[entry(1, 1 << 12 | 1)]), None);
        let reason = missing(&seen, &[entry(1, 1)]).unwrap();
        assert!(
            reason.contains("CPUID 1h.0, bits 0x1000 of ECX"),
            "{reason}"
        );
        assert!(missing(&seen, &[]).is_some());
    }
}
