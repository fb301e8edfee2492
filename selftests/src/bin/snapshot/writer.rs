// SPDX-License-Identifier: GPL-2.0-only

//! A guest whose CPUs write to random places, and exit now and then.

use std::arch::global_asm;

use kvm_bindings::*;
use selftests::guest::{Guest, Irqchip, Mode};
use selftests::kvm::{number, Errno, Handle};
use selftests::machine::{map, Machine, LOAD};
use selftests::memory::Mapping;

use crate::state::State;

/// Where the memory is that they write to.
pub(crate) const TARGET: u64 = 64 << 20;
/// Where CPU 0's stack ends; those of the others follow.
const STACKS: u64 = 0x8_1000;
const STACK: u64 = 0x1000;

/// The guest and its memory.
pub(crate) struct Writer {
    pub(crate) machine: Machine,
    pub(crate) target: Mapping,
}

fn code() -> Vec<u8> {
    extern "C" {
        static writer_guest: u8;
        static writer_guest_end: u8;
    }
    // SAFETY: The assembly below lies between the two, and nobody writes it.
    unsafe {
        let start = &raw const writer_guest;
        let end = &raw const writer_guest_end;
        std::slice::from_raw_parts(start, end.offset_from(start) as usize).to_vec()
    }
}

// R8 is the state of the random numbers, R9 where the memory begins, R10 a mask of words in it, R11
// how many writes there are between two exits. The port is read, so that an answer is pending at
// each exit.
global_asm!(
    ".pushsection .rodata",
    ".global writer_guest",
    ".global writer_guest_end",
    "writer_guest:",
    "1: mov %r11, %rcx",
    "2: mov %r8, %rax",
    "shl $13, %rax",
    "xor %rax, %r8",
    "mov %r8, %rax",
    "shr $7, %rax",
    "xor %rax, %r8",
    "mov %r8, %rax",
    "shl $17, %rax",
    "xor %rax, %r8",
    "mov %r8, %rdx",
    "shr $11, %rdx",
    "and %r10, %rdx",
    "lock xadd %r8, (%r9, %rdx, 8)",
    "movq %rdx, %xmm3",
    "push %r8",
    "pop %rbx",
    "xor %rdx, %r8",
    "or $1, %r8",
    "loop 2b",
    "in $0x11, %eax",
    "xor %rax, %r8",
    "or $1, %r8",
    "jmp 1b",
    "writer_guest_end:",
    ".popsection",
    options(att_syntax)
);

impl Writer {
    /// With so many CPUs, and so many bytes, a power of two, to write to.
    pub(crate) fn new(device: &Handle, cpus: u32, bytes: usize) -> Result<Self, String> {
        let guest = Guest {
            name: "writer".into(),
            code: code(),
            mode: Mode::Long64,
            irqchip: Irqchip::Kernel,
            pit: true,
            cpus,
            limit: None,
            after_hlt: false,
            feature: None,
            rom: false,
            bugs: Vec::new(),
            expected: Vec::new(),
        };
        let machine = Machine::new(device, &guest)?;
        let target = Mapping::anonymous(bytes).map_err(|error| error.to_string())?;
        // SAFETY: Only a wish for larger pages.
        unsafe { libc::madvise(target.start().cast(), bytes, libc::MADV_HUGEPAGE) };
        map(&machine.vm, 7, 0, TARGET, &target)?;
        let sregs: kvm_sregs = machine.vcpus[0].handle.get(number::GET_SREGS)?;
        for (id, vcpu) in (0..).zip(&machine.vcpus) {
            let mut own = sregs;
            let base: kvm_sregs = vcpu.handle.get(number::GET_SREGS)?;
            own.apic_base = base.apic_base;
            vcpu.handle.set(number::SET_SREGS, &own)?;
            let regs = kvm_regs {
                rip: LOAD as u64,
                rsp: STACKS + id * STACK,
                rflags: 2,
                r8: 0x9e37_79b9_7f4a_7c15 ^ id,
                r9: TARGET,
                r10: bytes as u64 / 8 - 1,
                r11: 16,
                ..Default::default()
            };
            vcpu.handle.set(number::SET_REGS, &regs)?;
            let mp_state = KVM_MP_STATE_RUNNABLE;
            vcpu.handle
                .set(number::SET_MP_STATE, &kvm_mp_state { mp_state })?;
        }
        Ok(Self { machine, target })
    }

    /// All of it that can be seen.
    pub(crate) fn look(&self, device: &Handle) -> Result<State, String> {
        State::of(device, &self.machine, &[&self.machine.ram, &self.target])
    }

    /// It is as it was in `state`; `round` is said otherwise.
    pub(crate) fn is_back(&self, device: &Handle, state: &State, round: u64) -> Result<(), String> {
        let now = self.look(device)?;
        state
            .same(&now)
            .map_err(|error| format!("round {round}: {error}"))
    }

    /// One CPU goes on to its next exits, this many, and gets answers that depend on `seed`.
    pub(crate) fn run_one(&self, id: usize, exits: u64, seed: u64) -> Result<(), String> {
        let vcpu = &self.machine.vcpus[id];
        for count in 0..exits {
            // The signal of a child's end may meet this thread while another one is made.
            while let Err(error) = vcpu.run() {
                if error != Errno(libc::EINTR) {
                    return Err(error.into());
                }
            }
            let shared = vcpu.shared();
            if shared.exit_reason != KVM_EXIT_IO {
                return Err(format!("CPU {id}: exit {}", shared.exit_reason));
            }
            // SAFETY: The exit reason says which part of the union is meant.
            let offset = unsafe { shared.__bindgen_anon_1.io.data_offset } as usize;
            let answer = (seed.wrapping_mul(count + 1) as u32).to_le_bytes();
            vcpu.page().write(offset, &answer);
        }
        Ok(())
    }

    /// All CPUs do, beside each other.
    pub(crate) fn run(&self, exits: u64, seed: u64) -> Result<(), String> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.machine.vcpus.len())
                .map(|id| scope.spawn(move || self.run_one(id, exits, seed ^ id as u64)))
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| "a panic".to_owned())?)
        })
    }
}
