// SPDX-License-Identifier: GPL-2.0-only

//! The CPU that runs this test, as a machine that executes one instruction with given registers.
//!
//! A page of executable memory gets code that loads all registers, the instruction under test, and
//! code that saves all registers. What it addresses must be inside a mapped region.

#![allow(dead_code, unreachable_pub, reason = "a test uses a part of it")]

use super::emulate_mock::Mock;
use x86::regs::Rflags;

/// The mapping: code, saved state, then memory for operands. It lies low, so that 32-bit
/// addresses and absolute displacements reach it.
pub const BASE: u64 = 0x1000_0000;
const SIZE: usize = 0x10000;
const STATE: u64 = BASE + 0x1000;
const GPR_IN: u64 = STATE;
const GPR_OUT: u64 = STATE + 0x80;
const FLAGS_IN: u64 = STATE + 0x100;
const FLAGS_OUT: u64 = STATE + 0x108;
const HOST_RSP: u64 = STATE + 0x110;
const X87_IN: u64 = STATE + 0x200;
const X87_OUT: u64 = STATE + 0x400;
const YMM_IN: u64 = STATE + 0x600;
const YMM_OUT: u64 = STATE + 0x800;
const HOST_X87: u64 = STATE + 0xa00;
pub const DATA: u64 = BASE + 0x4000;
pub const DATA_SIZE: u64 = 0x8000;
pub const MIDDLE: u64 = DATA + DATA_SIZE / 2;

pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// Random bits, or a number at an edge.
    pub fn value(&mut self) -> u64 {
        const EDGES: [u64; 8] = [0, 1, 0x7f, 0x80, 0x7fff, 0x8000, 0x7fff_ffff, 1 << 63];
        match self.below(4) {
            0 => EDGES[self.below(8) as usize],
            1 => !EDGES[self.below(8) as usize],
            2 => self.below(256),
            _ => self.next(),
        }
    }
}

/// The mapped region, to which everything unsafe of this test is confined.
pub struct Machine;

impl Machine {
    /// Maps the region. There can be only one.
    pub fn new() -> Self {
        const MMAP: u64 = 9;
        const READ_WRITE_EXECUTE: u64 = 7;
        const PRIVATE_ANONYMOUS_FIXED_NOREPLACE: u64 = 0x10_0022;
        let result: u64;
        // SAFETY: A new mapping at an address where there was none; the kernel sees to that.
        unsafe {
            std::arch::asm!(
                "syscall",
                inlateout("rax") MMAP => result,
                in("rdi") BASE,
                in("rsi") SIZE,
                in("rdx") READ_WRITE_EXECUTE,
                in("r10") PRIVATE_ANONYMOUS_FIXED_NOREPLACE,
                in("r8") -1i64,
                in("r9") 0,
                out("rcx") _,
                out("r11") _,
            );
        }
        assert_eq!(result, BASE, "no executable memory to be had");
        Machine
    }

    pub fn bytes(&mut self, address: u64, size: usize) -> &mut [u8] {
        let end = address + size as u64;
        assert!(address >= BASE && end <= BASE + SIZE as u64);
        // SAFETY: Inside the mapping, to which `self` is the only way.
        unsafe { std::slice::from_raw_parts_mut(address as *mut u8, size) }
    }

    pub fn number(&mut self, address: u64) -> u64 {
        let bytes = self.bytes(address, 8);
        u64::from_le_bytes(bytes.try_into().expect("8 bytes"))
    }

    pub fn set_number(&mut self, address: u64, value: u64) {
        self.bytes(address, 8).copy_from_slice(&value.to_le_bytes());
    }

    /// Executes an instruction, with registers and flags from `mock` and back to it.
    pub fn execute(&mut self, instruction: &[u8], mock: &mut Mock) {
        for index in 0..16 {
            self.set_number(GPR_IN + 8 * index, mock.state.gpr[index as usize]);
            let ymm = mock.state.ymm[index as usize].map(u128::to_le_bytes);
            let bytes = self.bytes(YMM_IN + 32 * index, 32);
            bytes.copy_from_slice(&ymm.concat());
        }
        let x87 = mock.state.x87;
        self.bytes(X87_IN, x87.len()).copy_from_slice(&x87);
        self.set_number(FLAGS_IN, mock.state.rflags.bits());
        let (code, _) = program(instruction);
        self.bytes(BASE, code.len()).copy_from_slice(&code);
        // SAFETY: `program` keeps the calling convention, and the caller has checked that the
        // instruction touches nothing but registers and the region.
        unsafe {
            let function: extern "C" fn() = std::mem::transmute(BASE as *const u8);
            function();
        }
        for index in 0..16 {
            mock.state.gpr[index as usize] = self.number(GPR_OUT + 8 * index);
            for half in 0..2 {
                let bytes = self.bytes(YMM_OUT + 32 * index + 16 * half, 16).to_vec();
                let value = u128::from_le_bytes(bytes.try_into().expect("16 bytes"));
                mock.state.ymm[index as usize][half as usize] = value;
            }
        }
        let x87 = self.bytes(X87_OUT, mock.state.x87.len());
        mock.state.x87.copy_from_slice(x87);
        mock.state.rflags = Rflags::from_bits_retain(self.number(FLAGS_OUT));
    }
}

/// `opcode` with a register and the absolute address of its memory operand.
fn absolute(code: &mut Vec<u8>, prefix: &[u8], opcode: &[u8], register: u64, address: u64) {
    code.extend_from_slice(prefix);
    code.extend_from_slice(opcode);
    code.extend_from_slice(&[4 | ((register & 7) << 3) as u8, 0x25]);
    code.extend_from_slice(&(address as u32).to_le_bytes());
}

/// A function that loads all registers, executes the instruction, and saves all registers; and
/// where in it the instruction is.
pub fn program(instruction: &[u8]) -> (Vec<u8>, usize) {
    const SAVE: [u8; 10] = [0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57];
    const RESTORE: [u8; 10] = [0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b];
    let rex_w = |register: u64| [0x48 | ((register >> 3) << 2) as u8];
    // VMOVDQU with 32 bytes.
    let vmovdqu = |register: u64| [0xc5, 0x7e | ((!register >> 3) << 7) as u8];
    let (fxsave, fxrstor) = (0, 1);
    let mut code = SAVE.to_vec();
    absolute(&mut code, &[0x48], &[0x89], 4, HOST_RSP);
    absolute(&mut code, &[], &[0x0f, 0xae], fxsave, HOST_X87);
    absolute(&mut code, &[], &[0x0f, 0xae], fxrstor, X87_IN);
    absolute(&mut code, &[], &[0xff], 6, FLAGS_IN);
    code.push(0x9d);
    for index in 0..16 {
        let address = YMM_IN + 32 * index;
        absolute(&mut code, &vmovdqu(index), &[0x6f], index, address);
    }
    for index in 0..16 {
        absolute(&mut code, &rex_w(index), &[0x8b], index, GPR_IN + 8 * index);
    }
    let offset = code.len();
    code.extend_from_slice(instruction);
    for index in 0..16 {
        absolute(
            &mut code,
            &rex_w(index),
            &[0x89],
            index,
            GPR_OUT + 8 * index,
        );
    }
    for index in 0..16 {
        let address = YMM_OUT + 32 * index;
        absolute(&mut code, &vmovdqu(index), &[0x7f], index, address);
    }
    absolute(&mut code, &[], &[0x0f, 0xae], fxsave, X87_OUT);
    absolute(&mut code, &[], &[0x0f, 0xae], fxrstor, HOST_X87);
    absolute(&mut code, &[0x48], &[0x8b], 4, HOST_RSP);
    code.push(0x9c);
    absolute(&mut code, &[], &[0x8f], 0, FLAGS_OUT);
    code.push(0xfc);
    code.extend_from_slice(&RESTORE);
    code.push(0xc3);
    (code, offset)
}
