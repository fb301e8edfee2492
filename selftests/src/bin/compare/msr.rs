// SPDX-License-Identifier: GPL-2.0-only

//! All MSRs: as a VMM gets and sets them, and as a guest reads and writes them.

use kvm_bindings::*;
use selftests::kvm::{msrs, number, set_cpuid, supported_cpuid, Handle};
use selftests::machine::{map, Vcpu};
use selftests::memory::Mapping;
use selftests::tap::equal;

use crate::access::{Access, Key, Outcome, Outcomes};
use crate::random::Random;

/// The numbers that AMD, Intel, KVM, Hyper-V and Xen use, with their neighbourhood.
const RANGES: &[(u32, u32)] = &[
    (0, 0x1fff),
    (0x4000_0000, 0x4000_01ff),
    (0x4b56_4d00, 0x4b56_4d1f),
    (0xc000_0000, 0xc000_1fff),
    (0xc001_0000, 0xc001_3fff),
    (0xffff_fff0, 0xffff_ffff),
];

fn all() -> impl Iterator<Item = u32> {
    RANGES.iter().flat_map(|&(first, last)| first..=last)
}

/// What is read depends on the time, or on the time at which something else was written.
const RUNNING: &[u32] = &[0x10, 0x3b, 0xe7, 0xe8, 0x6e0, 0x839, 0xc000_0104];

/// A real-mode guest of KVM that sets EFER.LME hangs a host on QEMU (the guest `long-mode-armed`).
const EFER: u32 = 0xc000_0080;

/// Values that every register is set to.
const BOUNDARIES: &[u64] = &[0, 1, u64::MAX];

fn outcome(index: u32, value: Option<u64>) -> Outcome {
    match value {
        None => Outcome::Refused,
        Some(_) if RUNNING.contains(&index) => Outcome::Done,
        Some(value) => Outcome::Value(value),
    }
}

/// A virtual CPU in real mode with interrupt controllers in the kernel, and the program of
/// [`CODE`].
struct Machine {
    vcpu: Vcpu,
    ram: Mapping,
    _vm: Handle,
}

const RAM: usize = 0x10_0000;
/// Not a power of two, as everything here: some registers make the hypervisor write where they
/// point to.
const CODE_AT: usize = 0x9400;
const HANDLER_AT: usize = CODE_AT + 0x38;
/// Where the accesses are, 16 bytes each: index, value, what to do, and whether it was #GP.
const TABLE: usize = 0x2_4000;
const MOST: usize = 3999;
const READ: u8 = 0;
const WRITE: u8 = 1;
const END: u8 = 2;

/// Goes through the table, executes RDMSR and WRMSR, and tells by an OUT that it is at the end;
/// behind it the handler of #GP, which skips the instruction.
const CODE: &[u8] = &[
    0xb8, 0x00, 0x24, 0x8e, 0xd8, 0x31, 0xf6, // mov $2400h, %ds; xor %si, %si
    0x66, 0x8b, 0x0c, 0x66, 0x8b, 0x44, 0x04, // 1: mov (%si), %ecx; mov 4(%si), %eax
    0x66, 0x8b, 0x54, 0x08, 0x8a, 0x5c, 0x0d, // mov 8(%si), %edx; mov 13(%si), %bl
    0xc6, 0x44, 0x0d, 0x00, 0x80, 0x7c, 0x0c, 0x01, // movb $0, 13(%si); cmpb $1, 12(%si)
    0x77, 0x15, 0x74, 0x04, // ja 4f; je 2f
    0x0f, 0x32, 0xeb, 0x02, // rdmsr; jmp 3f
    0x0f, 0x30, // 2: wrmsr
    0x66, 0x89, 0x44, 0x04, 0x66, 0x89, 0x54, 0x08, // 3: mov %eax, 4(%si); mov %edx, 8(%si)
    0x83, 0xc6, 0x10, 0xeb, 0xd3, // add $16, %si; jmp 1b
    0xe6, 0x10, 0xeb, 0xc8, // 4: out %al, $10h; and again
    0x55, 0x89, 0xe5, 0x83, 0x46, 0x02, 0x02, 0x5d, // push %bp; addw $2, 2(%sp); pop %bp
    0xc6, 0x44, 0x0d, 0x01, 0xcf, // movb $1, 13(%si); iret
];

impl Machine {
    fn new(path: &str) -> Result<Self, String> {
        let device = Handle::open(path).map_err(|e| format!("{path}: {e}"))?;
        let vm = device.open_with(number::CREATE_VM, 0)?;
        let ram = Mapping::anonymous(RAM).map_err(|e| e.to_string())?;
        map(&vm, 0, 0, 0, &ram)?;
        vm.call(number::CREATE_IRQCHIP, 0)?;
        let vcpu = Vcpu::create(&device, &vm, 0)?;
        set_cpuid(&vcpu.handle, &supported_cpuid(&device)?)?;
        let mut sregs: kvm_sregs = vcpu.handle.get(number::GET_SREGS)?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.handle.set(number::SET_SREGS, &sregs)?;
        Ok(Self { vcpu, ram, _vm: vm })
    }

    fn get(&self, index: u32) -> Option<u64> {
        let mut pair = [(index, 0)];
        let done = msrs(&self.vcpu.handle, number::GET_MSRS, &mut pair);
        (done == Ok(1)).then_some(pair[0].1)
    }

    fn set(&self, index: u32, value: u64) -> bool {
        msrs(&self.vcpu.handle, number::SET_MSRS, &mut [(index, value)]) == Ok(1)
    }

    /// Has the guest do these accesses, reads where there is no value; answers what came of each.
    fn run(&self, accesses: &[(u32, Option<u64>)]) -> Result<Vec<Option<u64>>, String> {
        let mut answers = Vec::with_capacity(accesses.len());
        for batch in accesses.chunks(MOST) {
            // The guest's own writes may reach all of its memory.
            self.ram.write(13 * 4, &(HANDLER_AT as u32).to_le_bytes());
            self.ram.write(CODE_AT, CODE);
            for (i, (index, value)) in batch.iter().enumerate() {
                let mut entry = [0; 16];
                entry[..4].copy_from_slice(&index.to_le_bytes());
                entry[4..12].copy_from_slice(&value.unwrap_or(0).to_le_bytes());
                entry[12] = if value.is_some() { WRITE } else { READ };
                self.ram.write(TABLE + 16 * i, &entry);
            }
            let mut end = [0; 16];
            end[12] = END;
            self.ram.write(TABLE + 16 * batch.len(), &end);
            let regs = kvm_regs {
                rip: CODE_AT as u64,
                rsp: 0x7700,
                rflags: 2,
                ..Default::default()
            };
            self.vcpu.handle.set(number::SET_REGS, &regs)?;
            self.vcpu.run()?;
            equal("exit", self.vcpu.shared().exit_reason, KVM_EXIT_IO)?;
            for i in 0..batch.len() {
                let entry = self.ram.read(TABLE + 16 * i, 16);
                let value = u64::from_le_bytes(entry[4..12].try_into().unwrap_or_default());
                answers.push((entry[13] == 0).then_some(value));
            }
        }
        Ok(answers)
    }
}

/// The registers that this device knows, but for those of Hyper-V: one of them ends the guest.
pub(crate) fn there(path: &str) -> Result<Vec<u32>, String> {
    let machine = Machine::new(path)?;
    let known = all()
        .filter(|index| index >> 28 != 4 || index >> 16 == 0x4b56)
        .filter(|index| machine.get(*index).is_some());
    // And those that can only be written.
    Ok(known.chain([0x49, 0x79, 0x10b, 0xc001_0020]).collect())
}

pub(crate) fn get(path: &str, _seed: u64, _there: &[u32]) -> Result<Outcomes, String> {
    let machine = Machine::new(path)?;
    Ok(all()
        .map(|index| {
            let key = Key {
                index,
                access: Access::Get,
                value: 0,
            };
            (key, outcome(index, machine.get(index)))
        })
        .collect())
}

pub(crate) fn set(path: &str, _seed: u64, _there: &[u32]) -> Result<Outcomes, String> {
    let machine = Machine::new(path)?;
    let mut outcomes = Outcomes::new();
    for index in all() {
        set_values(&machine, index, BOUNDARIES, &mut outcomes);
    }
    Ok(outcomes)
}

/// Sets one register to each of the values, and back.
fn set_values(machine: &Machine, index: u32, values: &[u64], outcomes: &mut Outcomes) {
    let before = machine.get(index);
    for &value in values {
        let done = machine.set(index, value);
        let after = match (done, before) {
            (false, _) => Outcome::Refused,
            (true, None) => Outcome::Done,
            (true, Some(_)) => outcome(index, machine.get(index)),
        };
        if let (true, Some(before)) = (done, before) {
            machine.set(index, before);
        }
        let key = Key {
            index,
            access: Access::Set,
            value,
        };
        outcomes.insert(key, after);
    }
}

pub(crate) fn guest(path: &str, _seed: u64, _there: &[u32]) -> Result<Outcomes, String> {
    let machine = Machine::new(path)?;
    let indices: Vec<u32> = all().collect();
    let mut outcomes = Outcomes::new();
    let reads: Vec<_> = indices.iter().map(|&index| (index, None)).collect();
    let values = machine.run(&reads)?;
    for (&index, &value) in indices.iter().zip(&values) {
        let key = Key {
            index,
            access: Access::Rdmsr,
            value: 0,
        };
        outcomes.insert(key, outcome(index, value));
    }
    let before: Vec<_> = indices.iter().copied().zip(values).collect();
    for &value in BOUNDARIES {
        write_values(&machine, &before, &[value], &mut outcomes)?;
    }
    Ok(outcomes)
}

/// The guest writes the values to each of the registers, reads each back, and restores it.
fn write_values(
    machine: &Machine,
    before: &[(u32, Option<u64>)],
    values: &[u64],
    outcomes: &mut Outcomes,
) -> Result<(), String> {
    let mut accesses = Vec::new();
    let mut keys = Vec::new();
    for &(index, before) in before {
        for &value in values {
            keys.push((index, value));
            accesses.extend([(index, Some(value)), (index, None)]);
            // One that cannot be read is not written again.
            accesses.push((index, before));
        }
    }
    // Three for each, so that no batch cuts them.
    let answers = machine.run(&accesses)?;
    for ((index, value), answer) in keys.into_iter().zip(answers.chunks(3)) {
        let after = match (answer[0], answer[1]) {
            (None, _) => Outcome::Refused,
            (Some(_), None) => Outcome::Done,
            (Some(_), read) => outcome(index, read),
        };
        let key = Key {
            index,
            access: Access::Wrmsr,
            value,
        };
        outcomes.insert(key, after);
    }
    Ok(())
}

/// Every single bit, and some random values, of the registers that one of the devices has.
pub(crate) fn values(path: &str, seed: u64, there: &[u32]) -> Result<Outcomes, String> {
    let machine = Machine::new(path)?;
    let mut random = Random::new(seed);
    let mut values: Vec<u64> = (0..64).map(|bit| 1 << bit).collect();
    values.extend((0..8).map(|_| random.next()));
    // Few bits are more often valid.
    values.extend((0..8).map(|_| random.next() & random.next() & random.next()));
    let mut outcomes = Outcomes::new();
    for &index in there {
        set_values(&machine, index, &values, &mut outcomes);
    }
    let before: Vec<_> = there
        .iter()
        .filter(|index| **index != EFER)
        .map(|&index| (index, machine.get(index)))
        .collect();
    write_values(&machine, &before, &values, &mut outcomes)?;
    Ok(outcomes)
}
