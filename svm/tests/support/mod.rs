// SPDX-License-Identifier: GPL-2.0-only

//! A machine without AMD-V: memory, devices and a VMCB that tests write as the CPU would.
#![allow(dead_code, reason = "each test file uses some of it")]
#![allow(
    missing_docs,
    unreachable_pub,
    reason = "for tests only, and the names say it"
)]

pub mod outer;

use svm::cpu::Guest;
use svm::dispatch::{dispatch, nested_fault, Action, Platform, Policy};
use svm::exit::{Exit, ExitCode};
use svm::features::SvmFeatures;
use svm::inject::{after_exit, prepare, Entry, InterruptSource};
use svm::nested::Nested;
use svm::requests::Requests;
use svm::state::VcpuState;
use svm::vmcb::Vmcb;
use x86::cpu::{ExtendedState, GuestMemory, MemError, X87};
use x86::cpuid::Entry as Leaf;
use x86::features::{Feature, Features};
use x86::fxsave;
use x86::msr::Origin;
use x86::regs::{Cr0, Cr4, Efer, Exception, SegAttr, SegReg, Segment};

pub const RAM: usize = 0x10000;
/// Where the tests put code.
pub const CODE: u64 = 0x1000;
/// A port and an address of devices in the kernel.
pub const KERNEL_PORT: u16 = 0x40;
pub const KERNEL_MMIO: u64 = 0xfee0_0000;
/// An address of a device of the VMM.
pub const USER_MMIO: u64 = 0xd000_0000;

/// Memory and devices.
pub struct World {
    pub ram: Vec<u8>,
    pub kernel_port: u32,
    pub kernel_mmio: u64,
    pub kernel_accesses: u32,
    pub tsc: u64,
    pub now: Option<(u64, u64)>,
    pub would_sleep: bool,
    pub read_only: bool,
    /// Another CPU writes this byte before the next write near to it.
    pub race: Option<(usize, u8)>,
    /// Another CPU writes this byte right before so many reads are done.
    pub change: Option<(u32, usize, u8)>,
    /// What memory answers to a nested fault.
    pub fault: Result<(), MemError>,
    pub requests: Requests,
    pub apic_inits: u32,
    pub wbinvds: u32,
    pub woken: Option<u32>,
    pub yielded: Option<u32>,
    pub ipis: Option<(u32, u128, u32)>,
    pub cr8: Option<(u8, u8)>,
    pub set_tpr: bool,
    pub reads: u32,
    pub msr_denied: bool,
    pub xmm: [u128; 16],
    pub ymm_high: [u128; 16],
    pub mmx: [u64; 8],
    pub x87: X87,
    pub mxcsr: u32,
}

impl Default for World {
    fn default() -> Self {
        Self {
            ram: vec![0; RAM],
            kernel_port: 0x1234_5678,
            kernel_mmio: 0,
            kernel_accesses: 0,
            tsc: 1000,
            now: None,
            would_sleep: false,
            read_only: false,
            race: None,
            change: None,
            fault: Err(MemError::Unbacked),
            requests: Requests::empty(),
            apic_inits: 0,
            wbinvds: 0,
            woken: None,
            yielded: None,
            ipis: None,
            cr8: None,
            set_tpr: false,
            reads: 0,
            msr_denied: false,
            xmm: [0; 16],
            ymm_high: [0; 16],
            mmx: [0; 8],
            x87: X87::default(),
            mxcsr: 0x1f80,
        }
    }
}

impl World {
    fn range(&self, gpa: u64, length: usize) -> Result<std::ops::Range<usize>, MemError> {
        if self.would_sleep {
            return Err(MemError::WouldSleep);
        }
        assert!(
            gpa % 4096 + length as u64 <= 4096,
            "an access of memory crosses a page"
        );
        let start = usize::try_from(gpa).map_err(|_| MemError::Unbacked)?;
        match start.checked_add(length) {
            Some(end) if end <= self.ram.len() => Ok(start..end),
            _ => Err(MemError::Unbacked),
        }
    }
}

impl World {
    fn lose_race(&mut self, gpa: u64) {
        if let Some((at, byte)) = self.race.filter(|(at, _)| gpa.abs_diff(*at as u64) < 8) {
            self.ram[at] = byte;
            self.race = None;
        }
    }
}

impl GuestMemory for World {
    fn read_gpa(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), MemError> {
        self.reads += 1;
        if let Some((_, at, byte)) = self.change.filter(|(reads, ..)| *reads == self.reads) {
            self.ram[at] = byte;
        }
        let range = self.range(gpa, buf.len())?;
        buf.copy_from_slice(&self.ram[range]);
        Ok(())
    }

    fn write_gpa(&mut self, gpa: u64, data: &[u8]) -> Result<(), MemError> {
        let range = self.range(gpa, data.len())?;
        if self.read_only {
            return Err(MemError::ReadOnly);
        }
        self.lose_race(gpa);
        self.ram[range].copy_from_slice(data);
        Ok(())
    }

    fn compare_exchange_gpa(
        &mut self,
        gpa: u64,
        size: usize,
        old: u64,
        new: u64,
    ) -> Result<Result<(), u64>, MemError> {
        assert!(gpa % size as u64 == 0);
        let value = |bytes: u64| bytes & (u64::MAX >> (64 - 8 * size));
        assert_eq!((old, new), (value(old), value(new)), "of {size} bytes");
        self.lose_race(gpa);
        let mut bytes = [0; 8];
        self.read_gpa(gpa, &mut bytes[..size])?;
        let current = u64::from_le_bytes(bytes);
        if current != old {
            return Ok(Err(current));
        }
        self.write_gpa(gpa, &new.to_le_bytes()[..size])?;
        Ok(Ok(()))
    }
}

impl Platform for World {
    fn real_time_at_tsc(&self) -> Option<(u64, u64)> {
        self.now
    }
    fn tsc(&self) -> u64 {
        self.tsc
    }
    fn port_in(&mut self, port: u16, _size: u8) -> Option<u32> {
        (port == KERNEL_PORT).then(|| {
            self.kernel_accesses += 1;
            self.kernel_port
        })
    }
    /// Bytes from 40h on.
    fn port_answer(&self, offset: usize, bytes: &mut [u8]) {
        for (at, byte) in (offset + 0x40..).zip(bytes) {
            *byte = at as u8;
        }
    }
    fn port_out(&mut self, port: u16, _size: u8, value: u32) -> bool {
        if port == KERNEL_PORT {
            self.kernel_accesses += 1;
            self.kernel_port = value;
        }
        port == KERNEL_PORT
    }
    fn mmio_read(&mut self, gpa: u64, data: &mut [u8]) -> bool {
        if gpa & !7 != KERNEL_MMIO {
            return false;
        }
        self.kernel_accesses += 1;
        let bytes = self.kernel_mmio.to_le_bytes();
        let length = data.len();
        data.copy_from_slice(&bytes[..length]);
        true
    }
    fn mmio_write(&mut self, gpa: u64, data: &[u8]) -> bool {
        if gpa & !7 != KERNEL_MMIO {
            return false;
        }
        self.kernel_accesses += 1;
        let mut bytes = [0; 8];
        bytes[..data.len()].copy_from_slice(data);
        self.kernel_mmio = u64::from_le_bytes(bytes);
        true
    }
    fn msr_denied(&self, _index: u32, _write: bool) -> bool {
        self.msr_denied
    }
    fn apic_base(&self) -> u64 {
        0xfee0_0900
    }
    fn init_apic(&mut self) {
        self.apic_inits += 1;
    }
    fn set_apic_base(&mut self, _value: u64, _origin: Origin) -> Result<(), Exception> {
        Ok(())
    }
    fn x2apic_read(&mut self, register: u8) -> Result<u64, Exception> {
        Ok(u64::from(register))
    }
    fn x2apic_write(&mut self, _register: u8, _value: u64) -> Result<(), Exception> {
        Ok(())
    }
    fn tsc_deadline(&mut self, _origin: Origin) -> u64 {
        77
    }
    fn set_tsc_deadline(&mut self, _value: u64, _origin: Origin) {}
    fn cr8_written(&mut self, old: u8, new: u8) -> bool {
        self.cr8 = Some((old, new));
        self.set_tpr
    }
    fn request(&mut self, requests: Requests) {
        self.requests |= requests;
    }
    fn wbinvd(&mut self) {
        self.wbinvds += 1;
    }
    fn wake(&mut self, apic_id: u32) {
        self.woken = Some(apic_id);
    }
    fn yield_to(&mut self, apic_id: u32) {
        self.yielded = Some(apic_id);
    }
    fn send_ipis(&mut self, lowest: u32, set: u128, message: u32) -> u32 {
        self.ipis = Some((lowest, set, message));
        set.count_ones()
    }
}

impl ExtendedState for World {
    fn xmm(&mut self, index: u8) -> u128 {
        self.xmm[usize::from(index)]
    }
    fn set_xmm(&mut self, index: u8, value: u128) {
        self.xmm[usize::from(index)] = value;
    }
    fn ymm_high(&mut self, index: u8) -> u128 {
        self.ymm_high[usize::from(index)]
    }
    fn set_ymm_high(&mut self, index: u8, value: u128) {
        self.ymm_high[usize::from(index)] = value;
    }
    fn mxcsr(&mut self) -> u32 {
        self.mxcsr
    }
    fn set_mxcsr(&mut self, value: u32) -> bool {
        self.mxcsr = value;
        true
    }
    fn fxsave(&mut self, image: &mut [u8; fxsave::SIZE]) {
        image.fill(0);
        fxsave::set_x87(image, self.x87);
        fxsave::set_mxcsr(image, self.mxcsr);
        for (index, value) in (0..).zip(self.xmm) {
            fxsave::set_xmm(image, index, value);
        }
    }
    fn fxrstor(&mut self, image: &[u8; fxsave::SIZE]) -> bool {
        self.x87 = fxsave::x87(image);
        self.mxcsr = fxsave::mxcsr(image);
        self.xmm = std::array::from_fn(|index| fxsave::xmm(image, index as u8));
        true
    }
    fn x87(&mut self) -> X87 {
        self.x87
    }
    fn set_x87(&mut self, value: X87) {
        self.x87 = value;
    }
    fn mmx(&mut self, index: u8) -> u64 {
        self.mmx[usize::from(index)]
    }
    fn use_mmx(&mut self, write: Option<(u8, u64)>) {
        self.x87.tags = 0xff;
        if let Some((index, value)) = write {
            self.mmx[usize::from(index)] = value;
        }
    }
}

/// An interrupt controller of one line.
#[derive(Default)]
pub struct Line {
    pub vector: Option<u8>,
    pub watch_cr8: bool,
}

impl InterruptSource for Line {
    fn has_interrupt(&self) -> bool {
        self.vector.is_some()
    }
    fn acknowledge(&mut self) -> Option<u8> {
        self.vector.take()
    }
    fn watch_cr8(&self) -> bool {
        self.watch_cr8
    }
}

/// A VMCB of zeros, on which VMRUN fails.
pub fn zeroed_vmcb() -> Box<Vmcb> {
    // SAFETY: a VMCB is made of integers.
    Box::new(unsafe { std::mem::zeroed() })
}

/// Bytes of a VMCB, as the CPU writes them.
pub fn bytes(vmcb: &mut Vmcb) -> &mut [u8; 4096] {
    // SAFETY: a VMCB is 4096 bytes of integers without padding; all bit patterns are valid.
    unsafe { &mut *std::ptr::from_mut(vmcb).cast::<[u8; 4096]>() }
}

/// Writes a field of the VMCB as the CPU does.
pub fn poke(vmcb: &mut Vmcb, offset: usize, value: u64) {
    bytes(vmcb)[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
}

pub fn peek(vmcb: &mut Vmcb, offset: usize) -> u64 {
    let bytes = bytes(vmcb)[offset..offset + 8].try_into();
    u64::from_le_bytes(bytes.expect("eight bytes"))
}

pub const EXITCODE: usize = 0x70;
pub const EXITINFO1: usize = 0x78;
pub const EXITINFO2: usize = 0x80;
pub const EXITINTINFO: usize = 0x88;
pub const NRIP: usize = 0xc8;

/// What CPUID answers: x87, SSE, AVX and PKRU among others.
fn cpuid() -> Vec<Leaf> {
    let features = [0x00a2_0f10, 0, 1 << 26, 1 << 9];
    vec![
        Leaf::new(1, features),
        Leaf::indexed(0xd, 0, [0x207, 0, 0x988, 0]),
        Leaf::indexed(0xd, 1, [0xf, 1, 0, 0]),
        Leaf::indexed(0xd, 2, [256, 576, 0, 0]),
        Leaf::indexed(0xd, 9, [8, 2432, 2, 0]),
        Leaf::new(0x4000_1234, [0x4000_1234, 0, 0xcccc, 0xdddd]),
        Leaf::indexed(0x8000_0001, 7, [0x8000_0001, 7, 0xcccc, 0xdddd]),
    ]
}

/// One vCPU in its world.
pub struct Machine {
    pub vmcb: Box<Vmcb>,
    pub state: VcpuState,
    pub world: World,
    pub line: Line,
    pub host: SvmFeatures,
    pub cpuid: Vec<Leaf>,
    pub policy: Policy,
    pub nested: Option<Box<Nested>>,
}

impl Machine {
    /// In real mode at [`CODE`].
    pub fn real(host: SvmFeatures) -> Self {
        let mut vmcb = zeroed_vmcb();
        let mut state = VcpuState::new();
        state.features = Features {
            set: Feature::all(),
            xcr0: 0x207,
            max_phys_bits: 40,
        };
        state.reset(&mut vmcb, host, 0x00a2_0f10);
        let mut cs = vmcb.segment(SegReg::Cs);
        cs.base = 0;
        cs.selector = 0;
        vmcb.set_segment(SegReg::Cs, cs);
        vmcb.set_rip(CODE);
        vmcb.set_asid(1);
        Self {
            vmcb,
            state,
            world: World::default(),
            line: Line::default(),
            host,
            cpuid: cpuid(),
            policy: Policy::empty(),
            nested: None,
        }
    }

    /// In 64-bit mode at [`CODE`]; the first 4 GiB are mapped to themselves by 1 GiB pages.
    pub fn long(host: SvmFeatures) -> Self {
        let mut machine = Self::real(host);
        let ram = &mut machine.world.ram;
        ram[0x8000..0x8008].copy_from_slice(&0x9007_u64.to_le_bytes());
        for n in 0..4_u64 {
            let at = 0x9000 + 8 * n as usize;
            ram[at..at + 8].copy_from_slice(&(n << 30 | 0x87).to_le_bytes());
        }
        let vmcb = &mut machine.vmcb;
        vmcb.set_cr0(Cr0::PE | Cr0::PG | Cr0::ET | Cr0::NE | Cr0::WP);
        vmcb.set_cr3(0x8000);
        vmcb.set_cr4(Cr4::PAE | Cr4::MCE | Cr4::OSXSAVE | Cr4::OSFXSR);
        vmcb.set_efer(Efer::SVME | Efer::LME | Efer::LMA | Efer::NXE);
        let attributes = SegAttr::P | SegAttr::S | SegAttr::WRITABLE | SegAttr::CODE | SegAttr::L;
        vmcb.set_segment(
            SegReg::Cs,
            Segment {
                selector: 8,
                attributes,
                limit: u32::MAX,
                base: 0,
            },
        );
        machine
    }

    pub fn code(mut self, code: &[u8]) -> Self {
        let at = CODE as usize;
        self.world.ram[at..at + code.len()].copy_from_slice(code);
        self
    }

    pub fn guest(&mut self) -> Guest<'_, World> {
        Guest {
            vmcb: &mut self.vmcb,
            state: &mut self.state,
            platform: &mut self.world,
            host: self.host,
            cpuid: &mut self.cpuid,
            policy: self.policy,
            nested: self.nested.as_deref_mut(),
        }
    }

    /// The CPU exits, and the exit is handled.
    pub fn exit(&mut self, code: ExitCode, info1: u64, info2: u64) -> Action {
        self.leave(code, info1, info2);
        self.handle()
    }

    /// The CPU exits.
    pub fn leave(&mut self, code: ExitCode, info1: u64, info2: u64) {
        poke(&mut self.vmcb, EXITCODE, code.0);
        poke(&mut self.vmcb, EXITINFO1, info1);
        poke(&mut self.vmcb, EXITINFO2, info2);
        let (rax, rsp) = (self.state.regs.gpr[0], self.state.regs.gpr[4]);
        self.vmcb.set_rax(rax);
        self.vmcb.set_rsp(rsp);
        after_exit(&mut self.vmcb, &mut self.state, self.host);
    }

    /// The exit is handled.
    pub fn handle(&mut self) -> Action {
        let exit = Exit::decode(&self.vmcb);
        let Exit::NestedFault { gpa, error } = exit else {
            return dispatch(&mut self.guest(), exit);
        };
        let answer = match self.world.would_sleep {
            true => Err(MemError::WouldSleep),
            false => self.world.fault,
        };
        match answer {
            Ok(()) => Action::Resume,
            Err(why) => nested_fault(&mut self.guest(), gpa, error, why),
        }
    }

    pub fn prepare(&mut self) -> Entry {
        prepare(&mut self.vmcb, &mut self.state, &mut self.line)
    }

    pub fn exception(&self) -> Option<Exception> {
        self.state.events.exception.map(|queued| queued.exception)
    }
}
