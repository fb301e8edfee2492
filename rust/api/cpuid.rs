// SPDX-License-Identifier: GPL-2.0-only

//! CPUID: what guests may be offered, and what one guest was given.

use crate::host::host;
use crate::linux;
use crate::linux::Sleep;
use crate::uapi::{self, UserArg};
use crate::vcpu::inner;
use crate::vcpu::LockedVcpu;
use kernel::ffi::c_long;
use kernel::prelude::*;
use svm::dispatch;
use svm::features::SvmFeatures;
use x86::cpuid::{self, Caps, Dynamic, Entry, PvFeatures};
use x86::features::{Feature, Features};

/// Most entries of a list, as KVM has it.
const MAX_ENTRIES: u32 = 256;

/// What works in this version.
fn caps() -> Caps {
    let host = host();
    Caps {
        x2apic: true,
        tsc_deadline: true,
        tsc_adjust: true,
        tsc_aux: true,
        invariant_tsc: linux::tsc_stable(),
        topoext: true,
        ibpb: linux::host_has_ibpb(),
        spec_ctrl: host.is_some_and(|host| host.features.contains(SvmFeatures::V_SPEC_CTRL)),
        host_knows: linux::host_mitigations(),
        xcr0: host.map_or(0, |host| host.fpu.layout.components),
        xsaves: host.is_some_and(|host| host.fpu.has_xsaves()),
        // What nested tables of four levels can map; five are there on some hosts only.
        max_gpa_bits: 48,
        svm: match crate::has_nested() {
            true => host.map(|host| svm::nested::offered(host.features).bits()),
            false => None,
        },
    }
}

/// KVM_GET_SUPPORTED_CPUID.
pub(crate) fn get_supported(arg: UserArg) -> Result<c_long> {
    give(arg, &mut |emit| {
        cpuid::supported(&mut linux::cpuid, &caps(), &mut |entry| emit(entry))
    })
}

/// KVM_GET_EMULATED_CPUID: instructions that a guest may be given though the CPU lacks them. There
/// are none, so the leaves that could name them are empty.
pub(crate) fn get_emulated(arg: UserArg) -> Result<c_long> {
    const LAST: u32 = cpuid::function::STRUCTURED_FEATURES;
    give(arg, &mut |emit| {
        emit(Entry::new(cpuid::function::VENDOR, [LAST, 0, 0, 0]))?;
        emit(Entry::new(cpuid::function::FEATURES, [0; 4]))?;
        emit(Entry::indexed(LAST, 0, [0; 4]))
    })
}

/// What takes one entry after the other.
type Emit<'a> = dyn FnMut(Entry) -> Result + 'a;

/// Gives the VMM a list, if there is room for it.
fn give(arg: UserArg, list: &mut dyn FnMut(&mut Emit<'_>) -> Result) -> Result<c_long> {
    let header: uapi::kvm_cpuid2 = arg.read()?;
    let room = header.nent.min(MAX_ENTRIES) as usize;
    let mut entries = KVec::with_capacity(room, GFP_KERNEL)?;
    list(&mut |entry| entries.push_within_capacity(entry).map_err(|_| E2BIG))?;
    arg.after::<uapi::kvm_cpuid2>().write_array(&entries)?;
    arg.write(&(entries.len() as u32))?;
    Ok(0)
}

/// KVM_SET_CPUID: the old form, whose leaves have no subleaves.
pub(crate) fn set_old(vcpu: &mut LockedVcpu, arg: UserArg) -> Result {
    let header: uapi::kvm_cpuid = arg.read()?;
    if header.nent > MAX_ENTRIES {
        return Err(E2BIG);
    }
    let old = arg
        .after::<uapi::kvm_cpuid>()
        .read_array::<uapi::kvm_cpuid_entry>(header.nent as usize)?;
    let mut entries = KVec::with_capacity(old.len(), GFP_KERNEL_ACCOUNT)?;
    for entry in old {
        let answer = [entry.eax, entry.ebx, entry.ecx, entry.edx];
        entries.push(Entry::new(entry.function, answer), GFP_KERNEL_ACCOUNT)?;
    }
    set_entries(vcpu, entries)
}

/// KVM_SET_CPUID2.
pub(crate) fn set(vcpu: &mut LockedVcpu, arg: UserArg) -> Result {
    let header: uapi::kvm_cpuid2 = arg.read()?;
    if header.nent > MAX_ENTRIES {
        return Err(E2BIG);
    }
    let mut entries = arg
        .after::<uapi::kvm_cpuid2>()
        .read_array::<Entry>(header.nent as usize)?;
    for entry in entries.iter_mut() {
        entry.padding = Entry::default().padding;
    }
    set_entries(vcpu, entries)
}

/// Takes a list over. After KVM_RUN only the same list again is accepted.
fn set_entries(vcpu: &mut LockedVcpu, mut entries: KVec<Entry>) -> Result {
    // A guest whose HLT does not exit cannot be woken by the hypercall.
    if vcpu.platform.vm.config.disabled_exits() & uapi::KVM_X86_DISABLE_EXITS_HLT != 0 {
        cpuid::withhold(&mut entries, PvFeatures::UNHALT);
    }
    if vcpu.has_run {
        // The VMM may have got its list from KVM_GET_CPUID2 in another state of the CPU.
        let dynamic = dynamic(vcpu);
        let now = |entry: &Entry| refreshed(entry, &dynamic);
        let same = entries.iter().map(now).eq(vcpu.cpuid.iter().map(now));
        return if same { Ok(()) } else { Err(EINVAL) };
    }
    if !cpuid::valid(&entries) {
        return Err(EINVAL);
    }
    let offered = Features::offered(&mut linux::cpuid, &caps());
    let features = Features::new(&entries, &offered);
    inner::give(vcpu, features.has(Feature::SVM))?;
    let host = vcpu.platform.vm.features;
    vcpu.state.set_features(&mut vcpu.vmcb, host, features);
    vcpu.platform.physical_bits = features.max_phys_bits;
    vcpu.platform.has_x2apic = features.has(Feature::X2APIC);
    vcpu.cpuid = entries;
    Ok(())
}

/// What shows through CPUID now.
fn dynamic(vcpu: &mut LockedVcpu) -> Dynamic {
    dispatch::dynamic(&vcpu.guest(Sleep::Allowed), cpuid::function::XSTATE)
}

fn refreshed(entry: &Entry, dynamic: &Dynamic) -> Entry {
    let mut entry = *entry;
    cpuid::refresh(&mut entry, dynamic);
    entry
}

/// KVM_GET_CPUID2: what the guest would read now.
pub(crate) fn get(vcpu: &mut LockedVcpu, arg: UserArg) -> Result {
    let header: uapi::kvm_cpuid2 = arg.read()?;
    let dynamic = dynamic(vcpu);
    let entries = &vcpu.cpuid;
    let count = entries.len() as u32;
    if header.nent < count {
        return Err(E2BIG);
    }
    for (i, entry) in entries.iter().enumerate() {
        let size = core::mem::size_of::<Entry>();
        arg.after::<uapi::kvm_cpuid2>()
            .offset(i * size)
            .write(&refreshed(entry, &dynamic))?;
    }
    arg.write(&count)
}
