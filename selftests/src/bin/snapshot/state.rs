// SPDX-License-Identifier: GPL-2.0-only

//! All that can be seen of a VM: what every ioctl answers that gets something, and its memory.

use std::mem::size_of;

use kvm_bindings::*;
use selftests::kvm::{msrs, named_msrs, number, Answer, Handle, Number, Sregs2, Xsave};
use selftests::machine::Machine;
use selftests::memory::Mapping;

/// One thing that can be seen: what it is, and its bytes.
type Item = (String, Vec<u8>);

/// What a VM looks like.
pub(crate) struct State(Vec<Item>);

/// MSRs that go on by themselves: the time-stamp counter.
const MOVING_MSRS: &[u32] = &[0x10];
/// What of the local APIC's page does: the current count.
const CURRENT_COUNT: std::ops::Range<usize> = 0x390..0x394;
/// Where a channel of the PIT says when its count was loaded: by the host's clock.
const CHANNEL: usize = size_of::<kvm_pit_channel_state>();
const LOADED_AT: usize = std::mem::offset_of!(kvm_pit_channel_state, count_load_time);

fn bytes<T>(value: &T) -> Vec<u8> {
    // SAFETY: The structures of the interface are integers.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }.to_vec()
}

fn get<T: Default>(handle: &Handle, number: Number) -> Answer<Vec<u8>> {
    handle.get::<T>(number).map(|value| bytes(&value))
}

fn cpu(vcpu: &Handle, named: &[u32]) -> Answer<Vec<Item>> {
    let mut items = Vec::new();
    let mut item = |what: &str, bytes: Vec<u8>| items.push((what.to_owned(), bytes));
    item("mp_state", get::<kvm_mp_state>(vcpu, number::GET_MP_STATE)?);
    item(
        "events",
        get::<kvm_vcpu_events>(vcpu, number::GET_VCPU_EVENTS)?,
    );
    item("regs", get::<kvm_regs>(vcpu, number::GET_REGS)?);
    item("sregs", get::<kvm_sregs>(vcpu, number::GET_SREGS)?);
    item("sregs2", get::<Sregs2>(vcpu, number::GET_SREGS2)?);
    item("fpu", get::<kvm_fpu>(vcpu, number::GET_FPU)?);
    item("xsave", get::<Xsave>(vcpu, number::GET_XSAVE)?);
    item("xcrs", get::<kvm_xcrs>(vcpu, number::GET_XCRS)?);
    item("debug", get::<kvm_debugregs>(vcpu, number::GET_DEBUGREGS)?);
    if let Ok(mut page) = get::<kvm_lapic_state>(vcpu, number::GET_LAPIC) {
        page[CURRENT_COUNT].fill(0);
        item("lapic", page);
    }
    let still = named.iter().filter(|index| !MOVING_MSRS.contains(index));
    for index in still {
        let mut pair = [(*index, 0)];
        if msrs(vcpu, number::GET_MSRS, &mut pair)? == 1 {
            item(&format!("msr {index:#x}"), bytes(&pair[0].1));
        }
    }
    const CPUID_WORDS: usize = 1 + 256 * size_of::<kvm_cpuid_entry2>() / 8;
    let mut cpuid = vec![0u64; CPUID_WORDS];
    cpuid[0] = 256;
    vcpu.array(number::GET_CPUID2, &mut cpuid, CPUID_WORDS * 8)?;
    item("cpuid", bytes_of(&cpuid));
    Ok(items)
}

fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn vm(vm: &Handle) -> Vec<Item> {
    let mut items = Vec::new();
    for chip_id in 0..3 {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        if vm.exchange(number::GET_IRQCHIP, &mut chip).is_ok() {
            items.push((format!("chip {chip_id}"), bytes(&chip)));
        }
    }
    if let Ok(mut pit) = get::<kvm_pit_state2>(vm, number::GET_PIT2) {
        for channel in 0..3 {
            let at = channel * CHANNEL + LOADED_AT;
            pit[at..at + 8].fill(0);
        }
        items.push(("pit".into(), pit));
    }
    items
}

impl State {
    /// Of a VM none of whose vCPUs runs, with these parts of its memory.
    pub(crate) fn of(
        device: &Handle,
        machine: &Machine,
        memory: &[&Mapping],
    ) -> Result<Self, String> {
        let named = named_msrs(device)?;
        let mut items = vm(&machine.vm);
        for (id, vcpu) in machine.vcpus.iter().enumerate() {
            let of_one = cpu(&vcpu.handle, &named)?.into_iter();
            items.extend(of_one.map(|(what, bytes)| (format!("cpu {id} {what}"), bytes)));
        }
        for (index, part) in memory.iter().enumerate() {
            items.push((format!("memory {index}"), part.read(0, part.len())));
        }
        Ok(Self(items))
    }

    /// The same without PIC, IOAPIC and PIT: a PIT that ticks changes them at any time.
    pub(crate) fn without_chips(mut self) -> Self {
        self.0
            .retain(|(what, _)| !what.starts_with("chip") && what != "pit");
        self
    }

    /// Whether another one is the same; else where they differ.
    pub(crate) fn same(&self, other: &Self) -> Result<(), String> {
        if self.0.len() != other.0.len() {
            return Err("something can be seen in one of them only".into());
        }
        for ((what, was), (_, is)) in self.0.iter().zip(&other.0) {
            let differs = was.iter().zip(is).position(|(was, is)| was != is);
            if let Some(at) = differs {
                return Err(format!(
                    "{what}, byte {at:#x}: {:x?} became {:x?}",
                    &was[at..(at + 16).min(was.len())],
                    &is[at..(at + 16).min(is.len())]
                ));
            }
        }
        Ok(())
    }
}
