// SPDX-License-Identifier: GPL-2.0-only

//! A small CPU for the emulator's tests and fuzzers: registers, memory, a log of accesses.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "a test uses a part of it, a fuzz target may use another"
)]

use std::collections::BTreeMap;
use x86::cpu::Access;
use x86::cpu::Cpu;
use x86::cpu::ExtendedState;
use x86::cpu::Stop;
use x86::cpu::X87;
use x86::decode::CodeSize;
use x86::decode::Insn;
use x86::emulate::emulate;
use x86::emulate::fetch;
use x86::features::Feature;
use x86::fxsave;
use x86::regs::vector;
use x86::regs::Cr0;
use x86::regs::Cr4;
use x86::regs::Efer;
use x86::regs::Exception;
use x86::regs::Rflags;
use x86::regs::SegAttr;
use x86::regs::SegReg;
use x86::regs::Segment;

/// What the emulator did to the world outside its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Read(u64, usize, Access),
    Write(u64, usize),
    Probe(u64, usize),
    /// A write of the CPU's own.
    Mark(u64, usize),
    CompareExchange(u64, usize),
    In(u16, u8),
    Out(u16, u8, u32),
}

/// What an instruction can change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: Rflags,
    /// XMM, and the upper half of YMM.
    pub ymm: [[u128; 2]; 16],
    /// The x87 unit and MXCSR: the beginning of an FXSAVE image.
    pub x87: [u8; 160],
    pub memory: BTreeMap<u64, u8>,
}

/// The CPU. Memory that was never written reads as a mixture of its address.
#[derive(Clone, Debug)]
pub struct Mock {
    pub state: State,
    pub segments: [Segment; 8],
    pub cr0: Cr0,
    pub cr4: Cr4,
    pub efer: Efer,
    pub cpl: u8,
    pub gdtr: Segment,
    pub idtr: Segment,
    pub shadow: bool,
    pub features: Feature,
    pub xcr0: u64,
    pub events: Vec<Event>,
    /// The access with this number, counted from 0 in `events`, stops.
    pub stop_at: Option<(usize, Stop)>,
    /// So many locked accesses find memory changed by another CPU; of a descriptor the base.
    pub lost_races: usize,
}

/// A flat segment with these attributes.
pub fn flat(attributes: SegAttr) -> Segment {
    Segment {
        selector: 8,
        attributes,
        limit: 0xffff_ffff,
        base: 0,
    }
}

pub const CODE: SegAttr = SegAttr::CODE
    .union(SegAttr::WRITABLE)
    .union(SegAttr::S)
    .union(SegAttr::P);
pub const DATA: SegAttr = SegAttr::WRITABLE.union(SegAttr::S).union(SegAttr::P);

pub const RAX: usize = 0;
pub const RCX: usize = 1;
pub const RDX: usize = 2;
pub const RBX: usize = 3;
pub const RSP: usize = 4;
pub const RBP: usize = 5;
pub const RSI: usize = 6;
pub const RDI: usize = 7;

pub const UD: Stop = Stop::Exception(Exception::UD);
pub const GP: Stop = Stop::Exception(Exception::GP0);
pub const SS: Stop = Stop::Exception(Exception::with_code(vector::SS, 0));
pub const DE: Stop = Stop::Exception(Exception::new(vector::DE));
pub const NM: Stop = Stop::Exception(Exception::new(vector::NM));

/// The bits that MXCSR has.
const MXCSR_MASK: u32 = 0xffff;

fn initial_x87() -> [u8; 160] {
    let mut image = [0; fxsave::SIZE];
    fxsave::reset(&mut image);
    std::array::from_fn(|index| image[index])
}

/// A CPU with this code and these general-purpose registers.
pub fn cpu(mode: CodeSize, code: &[u8], registers: &[(usize, u64)]) -> Mock {
    let mut mock = Mock::with_code(mode, code);
    for (index, value) in registers {
        mock.state.gpr[*index] = *value;
    }
    mock
}

/// Executes one instruction that must succeed and end behind its last byte.
pub fn run(mode: CodeSize, code: &[u8], registers: &[(usize, u64)]) -> Mock {
    let mut mock = cpu(mode, code, registers);
    mock.step().expect("no fault");
    assert_eq!(mock.state.rip, 0x1000 + code.len() as u64);
    mock
}

impl Mock {
    /// A CPU at privilege level 0 with flat segments, or in real mode for 16-bit code.
    pub fn new(mode: CodeSize) -> Self {
        let mut segments = [flat(DATA | SegAttr::DB); 8];
        segments[SegReg::Cs as usize] = flat(match mode {
            CodeSize::Bits16 => CODE,
            CodeSize::Bits32 => CODE | SegAttr::DB,
            CodeSize::Bits64 => CODE | SegAttr::L,
        });
        let mut mock = Self {
            state: State {
                gpr: [0; 16],
                rip: 0x1000,
                rflags: Rflags::RESERVED1,
                ymm: [[0; 2]; 16],
                x87: initial_x87(),
                memory: BTreeMap::new(),
            },
            segments,
            cr0: Cr0::PE,
            cr4: Cr4::OSFXSR | Cr4::OSXSAVE,
            efer: Efer::empty(),
            cpl: 0,
            gdtr: Segment::default(),
            idtr: Segment::default(),
            shadow: false,
            features: Feature::all(),
            xcr0: 7,
            events: Vec::new(),
            stop_at: None,
            lost_races: 0,
        };
        match mode {
            CodeSize::Bits16 => {
                mock.cr0 = Cr0::empty();
                for segment in &mut mock.segments {
                    segment.limit = 0xffff;
                    segment.attributes.remove(SegAttr::DB);
                }
            }
            CodeSize::Bits32 => {}
            CodeSize::Bits64 => mock.efer = Efer::LME | Efer::LMA,
        }
        mock
    }

    /// Puts code at RIP.
    pub fn with_code(mode: CodeSize, code: &[u8]) -> Self {
        let mut mock = Self::new(mode);
        mock.poke(mock.state.rip, code);
        mock
    }

    /// All that FXSAVE knows of, as an image.
    fn image(&self) -> [u8; fxsave::SIZE] {
        let mut image = [0; fxsave::SIZE];
        image[..self.state.x87.len()].copy_from_slice(&self.state.x87);
        for index in 0..16 {
            fxsave::set_xmm(&mut image, index, self.state.ymm[usize::from(index)][0]);
        }
        image
    }

    pub fn segment_mut(&mut self, register: SegReg) -> &mut Segment {
        &mut self.segments[register as usize]
    }

    pub fn peek(&self, linear: u64, size: usize) -> u64 {
        let mut bytes = [0; 8];
        for (index, byte) in bytes.iter_mut().take(size).enumerate() {
            *byte = self.byte(linear.wrapping_add(index as u64));
        }
        u64::from_le_bytes(bytes)
    }

    pub fn poke(&mut self, linear: u64, bytes: &[u8]) {
        for (index, byte) in bytes.iter().enumerate() {
            self.state
                .memory
                .insert(linear.wrapping_add(index as u64), *byte);
        }
    }

    fn byte(&self, linear: u64) -> u8 {
        let mixture = (linear.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
        *self.state.memory.get(&linear).unwrap_or(&mixture)
    }

    /// Fetches and executes one instruction, a repeated one to its end.
    pub fn step(&mut self) -> Result<Insn, Stop> {
        let insn = fetch(self, &[])?;
        let rip = self.state.rip;
        self.events.clear();
        loop {
            emulate(self, &insn)?;
            if self.state.rip != rip {
                return Ok(insn);
            }
        }
    }

    fn log(&mut self, event: Event) -> Result<(), Stop> {
        let number = self.events.len();
        self.events.push(event);
        match self.stop_at {
            Some((at, stop)) if at == number => Err(stop),
            _ => Ok(()),
        }
    }
}

impl Cpu for Mock {
    fn gpr(&self, index: u8) -> u64 {
        self.state.gpr[usize::from(index)]
    }
    fn set_gpr(&mut self, index: u8, value: u64) {
        self.state.gpr[usize::from(index)] = value;
    }
    fn rip(&self) -> u64 {
        self.state.rip
    }
    fn set_rip(&mut self, value: u64) {
        self.state.rip = value;
    }
    fn rflags(&self) -> Rflags {
        self.state.rflags
    }
    fn set_rflags(&mut self, value: Rflags) {
        self.state.rflags = value;
    }
    fn begin_interrupt_shadow(&mut self) {
        self.shadow = true;
    }
    fn segment(&self, reg: SegReg) -> Segment {
        self.segments[reg as usize]
    }
    fn set_segment(&mut self, reg: SegReg, value: Segment) {
        self.segments[reg as usize] = value;
    }
    fn set_cpl(&mut self, value: u8) {
        self.cpl = value;
    }
    fn gdtr(&self) -> Segment {
        self.gdtr
    }
    fn set_gdtr(&mut self, value: Segment) {
        self.gdtr = value;
    }
    fn idtr(&self) -> Segment {
        self.idtr
    }
    fn set_idtr(&mut self, value: Segment) {
        self.idtr = value;
    }
    fn load_machine_status_word(&mut self, value: u16) -> Result<(), Stop> {
        let value = Cr0::from_bits_retain(u64::from(value & 0xf));
        self.cr0 = self.cr0.difference(Cr0::from_bits_retain(0xe)) | value;
        Ok(())
    }
    fn cr0(&self) -> Cr0 {
        self.cr0
    }
    fn cr4(&self) -> Cr4 {
        self.cr4
    }
    fn efer(&self) -> Efer {
        self.efer
    }
    fn cpl(&self) -> u8 {
        self.cpl
    }

    fn read(&mut self, linear: u64, buf: &mut [u8], access: Access) -> Result<(), Stop> {
        assert!(linear.checked_add(buf.len() as u64 - 1).is_some());
        self.log(Event::Read(linear, buf.len(), access))?;
        for (index, byte) in buf.iter_mut().enumerate() {
            *byte = self.byte(linear + index as u64);
        }
        Ok(())
    }

    fn write(&mut self, linear: u64, data: &[u8]) -> Result<(), Stop> {
        assert!(linear.checked_add(data.len() as u64 - 1).is_some());
        self.log(Event::Write(linear, data.len()))?;
        self.poke(linear, data);
        Ok(())
    }

    fn set_descriptor_type(&mut self, linear: u64, old: u64, kind: u8) -> Result<bool, Stop> {
        assert!(linear.checked_add(7).is_some());
        self.log(Event::Mark(linear + 5, 1))?;
        if self.lost_races > 0 {
            self.lost_races -= 1;
            let base = (self.peek(linear + 7, 1) as u8).wrapping_add(1);
            self.poke(linear + 7, &[base]);
        }
        let same = self.peek(linear, 8) == old;
        if same {
            self.poke(linear + 5, &[kind]);
        }
        Ok(same)
    }

    fn probe_write(&mut self, linear: u64, size: usize) -> Result<(), Stop> {
        assert!(linear.checked_add(size as u64 - 1).is_some());
        self.log(Event::Probe(linear, size))
    }

    fn compare_exchange(
        &mut self,
        linear: u64,
        size: usize,
        old: u64,
        new: u64,
    ) -> Result<Result<(), u64>, Stop> {
        assert!(matches!(size, 1 | 2 | 4 | 8));
        assert!(linear.checked_add(size as u64 - 1).is_some());
        self.log(Event::CompareExchange(linear, size))?;
        if self.lost_races > 0 {
            self.lost_races -= 1;
            let changed = (self.peek(linear, size) as u8).wrapping_add(1);
            self.poke(linear, &[changed]);
        }
        let current = self.peek(linear, size);
        if current != old {
            return Ok(Err(current));
        }
        self.poke(linear, &new.to_le_bytes()[..size]);
        Ok(Ok(()))
    }

    fn port_in(&mut self, port: u16, size: u8, _count: u16) -> Result<u32, Stop> {
        assert!(matches!(size, 1 | 2 | 4));
        self.log(Event::In(port, size))?;
        Ok(0x8765_4321)
    }

    fn port_out(&mut self, port: u16, size: u8, value: u32) -> Result<(), Stop> {
        assert!(matches!(size, 1 | 2 | 4));
        self.log(Event::Out(port, size, value))
    }

    fn has(&self, feature: Feature) -> bool {
        self.features.contains(feature)
    }

    fn xcr0(&self) -> u64 {
        self.xcr0
    }
}

impl ExtendedState for Mock {
    fn xmm(&mut self, index: u8) -> u128 {
        self.state.ymm[usize::from(index)][0]
    }
    fn set_xmm(&mut self, index: u8, value: u128) {
        self.state.ymm[usize::from(index)][0] = value;
    }
    fn ymm_high(&mut self, index: u8) -> u128 {
        self.state.ymm[usize::from(index)][1]
    }
    fn set_ymm_high(&mut self, index: u8, value: u128) {
        self.state.ymm[usize::from(index)][1] = value;
    }
    fn mxcsr(&mut self) -> u32 {
        fxsave::mxcsr(&self.state.x87)
    }
    fn set_mxcsr(&mut self, value: u32) -> bool {
        let valid = value & !MXCSR_MASK == 0;
        if valid {
            fxsave::set_mxcsr(&mut self.state.x87, value);
        }
        valid
    }
    fn fxsave(&mut self, image: &mut [u8; fxsave::SIZE]) {
        fxsave::save(&self.image(), MXCSR_MASK, image);
    }
    fn fxrstor(&mut self, image: &[u8; fxsave::SIZE]) -> bool {
        let mut whole = self.image();
        if !fxsave::restore(&mut whole, MXCSR_MASK, image) {
            return false;
        }
        let length = self.state.x87.len();
        self.state.x87.copy_from_slice(&whole[..length]);
        for index in 0..16 {
            self.state.ymm[usize::from(index)][0] = fxsave::xmm(&whole, index);
        }
        true
    }
    fn x87(&mut self) -> X87 {
        fxsave::x87(&self.state.x87)
    }
    fn set_x87(&mut self, value: X87) {
        fxsave::set_x87(&mut self.state.x87, value);
    }
    fn mmx(&mut self, index: u8) -> u64 {
        fxsave::mmx(&self.state.x87, index)
    }
    fn use_mmx(&mut self, write: Option<(u8, u64)>) {
        fxsave::use_mmx(&mut self.state.x87, write);
    }
}
