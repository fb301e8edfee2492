// SPDX-License-Identifier: GPL-2.0-only

//! The machine that the random probes run in. In each mode it begins in the same state, whatever
//! ran before.
//!
//! ```text
//!   0       interrupt vectors of real mode      5000  TSS
//!   800     GDT                                 6000  256 HLTs: where events end
//!   1000    IDT                                 7000  stacks
//!   2000    page tables                         8000  code, then HLTs
//!   d0000   no memory                           e0000 memory again
//! ```

use std::fmt::Write;
use std::time::{Duration, Instant};

use kvm_bindings::*;
use selftests::kvm::{number, set_cpuid, supported_cpuid, Errno, Handle, Xsave};
use selftests::machine::Vcpu;
use selftests::memory::Mapping;

use crate::cases::Mode;
use crate::probe::{Probe, NO_END};

const RAM: usize = 0xd_0000;
/// Where there is no memory, and where there is again.
pub(crate) const DEVICE: u64 = RAM as u64;
pub(crate) const DEVICE_END: u64 = 0xe_0000;
const GDT: usize = 0x800;
pub(crate) const IDT: usize = 0x1000;
pub(crate) const TABLES: usize = 0x2000;
const TSS: u64 = 0x5000;
const ENDS: u64 = 0x6000;
const STACK: u64 = 0x7000;
pub(crate) const CODE: u64 = 0x8000;
/// What probes write to and may find changed.
const CODE_END: usize = 0x9000;
/// The selectors: code of 64 and of 32 bits, data; the same for programs.
const CODE_64: u16 = 0x8;
const DATA: u16 = 0x10;
const CODE_32: u16 = 0x18;
const USER_DATA: u16 = 0x20;
const USER_64: u16 = 0x28;
const USER_32: u16 = 0x30;
const TASK: u16 = 0x40;
pub(crate) const HLT: u8 = 0xf4;
/// No probe needs as many exits.
const MOST_EXITS: usize = 40;

/// Which machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Config {
    /// Interrupt controllers in the kernel.
    pub(crate) chips: bool,
    /// `KVM_CAP_EXCEPTION_PAYLOAD` and `KVM_CAP_X86_TRIPLE_FAULT_EVENT`.
    pub(crate) payload: bool,
}

pub(crate) struct Machine {
    pub(crate) vm: Handle,
    pub(crate) vcpu: Vcpu,
    pub(crate) ram: Mapping,
}

/// A short name for any bytes.
pub(crate) fn fnv(bytes: &[u8]) -> u32 {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    bytes.iter().fold(0x811c_9dc5, step)
}

/// An error as a word.
pub(crate) fn errno<T>(answer: Result<T, Errno>) -> String {
    match answer {
        Ok(_) => "ok".into(),
        Err(Errno(number)) => format!("errno-{number}"),
    }
}

fn segment(base: u64, selector: u16, kind: u8, mode: Mode, user: bool) -> kvm_segment {
    let wide = !mode.is_16_bit();
    let code = kind == 0xb;
    kvm_segment {
        base,
        limit: if wide { 0xffff_ffff } else { 0xffff },
        selector,
        type_: kind,
        s: 1,
        dpl: if user { 3 } else { 0 },
        present: 1,
        l: u8::from(mode == Mode::Long && code),
        db: u8::from(wide && !(mode == Mode::Long && code)),
        g: u8::from(wide),
        ..Default::default()
    }
}

impl Machine {
    pub(crate) fn new(device: &Handle, config: Config) -> Result<Self, String> {
        Self::with_cpuid(device, config, &supported_cpuid(device)?)
    }

    pub(crate) fn with_cpuid(
        device: &Handle,
        config: Config,
        table: &[kvm_cpuid_entry2],
    ) -> Result<Self, String> {
        let vm = device.open_with(number::CREATE_VM, 0)?;
        vm.call(number::SET_TSS_ADDR, 0xfffb_d000)?;
        let ram = Mapping::anonymous(DEVICE_END as usize + 0x1_0000).map_err(|e| e.to_string())?;
        map_part(&vm, 0, &ram, 0, RAM)?;
        map_part(&vm, 1, &ram, DEVICE_END as usize, 0x1_0000)?;
        for cap in [KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT] {
            let cap = kvm_enable_cap {
                cap,
                args: [1, 0, 0, 0],
                ..Default::default()
            };
            if config.payload {
                vm.set(number::ENABLE_CAP, &cap)?;
            }
        }
        if config.chips {
            vm.call(number::CREATE_IRQCHIP, 0)?;
        }
        let vcpu = Vcpu::create(device, &vm, 0)?;
        set_cpuid(&vcpu.handle, table)?;
        let machine = Self { vm, vcpu, ram };
        // KVM drops the XMM registers that a new vCPU is given before it has run once.
        machine.fill(Mode::Real);
        machine.reset(Mode::Real, false)?;
        let _ = machine.run(&mut Probe::default(), Duration::from_secs(1))?;
        Ok(machine)
    }

    /// Tables, and HLTs wherever something ends.
    pub(crate) fn fill(&self, mode: Mode) {
        self.ram.write(0, &[0; ENDS as usize]);
        self.ram.write(ENDS as usize, &[HLT; 0x1000]);
        let stack: Vec<u8> = (0..0x1000u32).map(|at| (at ^ at >> 4) as u8).collect();
        self.ram.write(STACK as usize, &stack);
        self.ram
            .write(CODE as usize, &[HLT; CODE_END - CODE as usize]);
        self.ram.write(RAM - 0x1000, &stack);
        self.ram.write(DEVICE_END as usize, &stack);
        for vector in 0..=255 {
            self.gate(mode, vector, good_gate(mode, vector));
        }
        let gdt = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_9b00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0,
            0x0000_8900_0000_0067 | TSS << 16,
            0,
        ];
        self.ram.write_words(GDT, &gdt);
        if mode != Mode::Real {
            let table = |number: u64| (TABLES as u64 + 0x1000 * number) | 7;
            self.ram.write_words(TABLES, &[table(1)]);
            self.ram.write_words(TABLES + 0x1000, &[table(2)]);
            // 2 MiB, accessed and dirty.
            self.ram.write_words(TABLES + 0x2000, &[0xe7]);
            let tss = TSS as usize;
            if mode == Mode::Long {
                // RSP0, IST1, and IST2, which is no address.
                self.ram.write_words(tss + 4, &[STACK + 0xf00]);
                self.ram.write_words(tss + 36, &[STACK + 0xd00, 1 << 50]);
            } else {
                // ESP0 and SS0.
                self.ram.write_words(tss + 4, &[STACK + 0xf00]);
                self.ram.write(tss + 8, &DATA.to_le_bytes());
            }
        }
    }

    /// Writes an entry of the IDT.
    pub(crate) fn gate(&self, mode: Mode, vector: u8, gate: [u64; 2]) {
        let vector = usize::from(vector);
        match mode {
            Mode::Real => self.ram.write(4 * vector, &gate[0].to_le_bytes()[..4]),
            Mode::Long => self.ram.write_words(IDT + 16 * vector, &gate),
            _ => self.ram.write_words(IDT + 8 * vector, &gate[..1]),
        }
    }

    /// The state in which everything begins.
    pub(crate) fn reset(&self, mode: Mode, user: bool) -> Result<(), String> {
        let vcpu = &self.vcpu.handle;
        vcpu.set(number::SET_GUEST_DEBUG, &kvm_guest_debug::default())?;
        let runnable = kvm_mp_state {
            mp_state: KVM_MP_STATE_RUNNABLE,
        };
        vcpu.set(number::SET_MP_STATE, &runnable)?;
        vcpu.set(number::SET_VCPU_EVENTS, &all_events())?;
        vcpu.set(number::SET_DEBUGREGS, &quiet_debug())?;
        vcpu.set(number::SET_SREGS, &self.sregs(mode, user)?)?;
        vcpu.set(number::SET_REGS, &regs(mode))?;
        let mut xsave = Xsave::default();
        // FCW, MXCSR, and that x87, SSE and AVX are there.
        xsave.0[0] = 0x37f;
        xsave.0[6] = 0x1f80;
        for (at, word) in xsave.0[40..104].iter_mut().enumerate() {
            *word = 0x0101_0101 * at as u32;
        }
        xsave.0[128] = 7;
        vcpu.set(number::SET_XSAVE, &xsave)?;
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        xcrs.xcrs[0].value = 7;
        vcpu.set(number::SET_XCRS, &xcrs)?;
        self.vcpu.share(|shared| {
            shared.request_interrupt_window = 0;
            shared.immediate_exit = 0;
            shared.cr8 = 0;
        });
        Ok(())
    }

    /// Segments and tables of a mode.
    pub(crate) fn sregs(&self, mode: Mode, user: bool) -> Result<kvm_sregs, String> {
        let mut sregs: kvm_sregs = self.vcpu.handle.get(number::GET_SREGS)?;
        let user = user || mode == Mode::Virtual8086;
        let flat = !mode.is_16_bit();
        let rpl = if user { 3 } else { 0 };
        let data = |paragraph: u16| match flat {
            true => {
                let selector = if user { USER_DATA } else { DATA };
                segment(0, selector | rpl, 3, mode, user)
            }
            false => segment(u64::from(paragraph) << 4, paragraph, 3, mode, user),
        };
        sregs.ds = data(0xd000);
        (sregs.es, sregs.fs, sregs.gs) = (sregs.ds, sregs.ds, sregs.ds);
        sregs.ss = data(0x700);
        let code = match (mode, user) {
            (Mode::Long, false) => CODE_64,
            (Mode::Long, true) => USER_64,
            (_, false) => CODE_32,
            (_, true) => USER_32,
        };
        let kind = if mode == Mode::Virtual8086 { 3 } else { 0xb };
        sregs.cs = match flat {
            true => segment(0, code | rpl, kind, mode, user),
            false => segment(CODE, (CODE >> 4) as u16, kind, mode, user),
        };
        sregs.gdt = table(GDT as u64, 0x4f);
        sregs.idt = match mode {
            Mode::Real => table(0, 0x3ff),
            _ => table(IDT as u64, 0xfff),
        };
        sregs.tr = kvm_segment {
            base: TSS,
            limit: 0x67,
            selector: TASK,
            // QEMU gives up on a busy one where an exception changes the stack by it.
            type_: if mode == Mode::Long { 0xb } else { 9 },
            present: 1,
            ..Default::default()
        };
        sregs.ldt = kvm_segment {
            type_: 2,
            limit: 0xffff,
            present: 1,
            ..Default::default()
        };
        sregs.interrupt_bitmap = [0; 4];
        sregs.apic_base = 0xfee0_0900;
        (sregs.cr2, sregs.cr8) = (0, 0);
        sregs.cr4 = 0x600;
        (sregs.cr0, sregs.efer, sregs.cr3) = match mode {
            Mode::Real => (0x30, 0, 0),
            Mode::Long => {
                sregs.cr4 |= 0x4_0020;
                (0x8000_0031, 0x500, TABLES as u64)
            }
            _ => (0x31, 0, 0),
        };
        Ok(sregs)
    }

    /// Runs the guest to an HLT, or to what else ends it; devices answer meanwhile. Whether the
    /// machine is as good as before.
    pub(crate) fn run(&self, probe: &mut Probe, limit: Duration) -> Result<bool, String> {
        let mut trace = String::new();
        let start = Instant::now();
        let _alarm = Alarm::start();
        let mut exits = 0;
        while exits < MOST_EXITS {
            match self.vcpu.run() {
                Ok(_) => {}
                // With interrupt controllers in the kernel a guest sleeps there.
                Err(Errno(libc::EINTR)) if self.halted()? => {
                    probe.put("exit", "halted");
                    probe.put("trace", trace);
                    return Ok(true);
                }
                Err(Errno(libc::EINTR)) if start.elapsed() < limit => continue,
                Err(Errno(libc::EINTR)) => {
                    probe.put("exit", NO_END);
                    return Ok(false);
                }
                Err(Errno(other)) => {
                    probe.put("exit", format!("errno-{other}"));
                    probe.put("trace", trace);
                    return Ok(false);
                }
            }
            exits += 1;
            let shared = self.vcpu.shared();
            match shared.exit_reason {
                KVM_EXIT_MMIO => self.mmio(&mut trace),
                KVM_EXIT_IO => self.port(&shared, &mut trace),
                reason => {
                    probe.put("exit", exit_name(&shared));
                    probe.put("trace", trace);
                    let broken = [KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR];
                    return Ok(!broken.contains(&reason));
                }
            }
        }
        probe.put("exit", "endless");
        probe.put("trace", trace);
        Ok(false)
    }

    fn halted(&self) -> Result<bool, String> {
        let state: kvm_mp_state = self.vcpu.handle.get(number::GET_MP_STATE)?;
        Ok(state.mp_state == KVM_MP_STATE_HALTED)
    }

    fn mmio(&self, trace: &mut String) {
        // SAFETY: The exit reason says which part of the union is meant.
        let access = unsafe { self.vcpu.shared().__bindgen_anon_1.mmio };
        let length = (access.len as usize).min(8);
        let address = access.phys_addr;
        if access.is_write != 0 {
            let _ = write!(trace, "w{address:x}:{:02x?};", &access.data[..length]);
        } else {
            let _ = write!(trace, "r{address:x}:{length};");
            let data = std::array::from_fn(|at| (address as u8).wrapping_add(at as u8) ^ 0x5a);
            self.vcpu
                .share(|shared| shared.__bindgen_anon_1.mmio.data = data);
        }
    }

    fn port(&self, shared: &kvm_run, trace: &mut String) {
        // SAFETY: As above.
        let io = unsafe { shared.__bindgen_anon_1.io };
        for index in 0..io.count as usize {
            let size = usize::from(io.size).min(4);
            let offset = io.data_offset as usize + index * size;
            if u32::from(io.direction) == KVM_EXIT_IO_IN {
                self.vcpu
                    .page()
                    .write(offset, &[0xa1, 0xa2, 0xa3, 0xa4][..size]);
                let _ = write!(trace, "in{:x}:{size};", io.port);
            } else {
                let data = self.vcpu.page().read(offset, size);
                let _ = write!(trace, "out{:x}:{data:02x?};", io.port);
            }
        }
    }

    /// Everything that can be asked for.
    pub(crate) fn describe(&self, probe: &mut Probe) -> Result<(), String> {
        let vcpu = &self.vcpu.handle;
        let regs: kvm_regs = vcpu.get(number::GET_REGS)?;
        let sregs: kvm_sregs = vcpu.get(number::GET_SREGS)?;
        probe.put("rip", format!("{:x}", regs.rip));
        probe.put("flags", format!("{:x}", regs.rflags));
        probe.put("regs", words(&general(&regs)));
        probe.put("segments", segments(&sregs));
        probe.put(
            "control",
            words(&[
                cr0_bits(sregs.cr0),
                sregs.cr2,
                sregs.cr3,
                sregs.cr4,
                sregs.cr8,
                sregs.efer,
            ]),
        );
        let debug: kvm_debugregs = vcpu.get(number::GET_DEBUGREGS)?;
        probe.put("dr6", format!("{:x}", debug.dr6));
        probe.put("dr7", format!("{:x}", debug.dr7));
        probe.put("events", self.events()?);
        let stack = self.ram.read(STACK as usize, 0x1000);
        probe.put("stack", format!("{:x}", fnv(&stack)));
        Ok(())
    }

    /// What `KVM_GET_VCPU_EVENTS` says, as far as it has a meaning: the vector of an exception that
    /// there is, `exception.pending` with `KVM_VCPUEVENT_VALID_PAYLOAD`, and so on.
    pub(crate) fn events(&self) -> Result<String, String> {
        let e: kvm_vcpu_events = self.vcpu.handle.get(number::GET_VCPU_EVENTS)?;
        let (x, i, n, s) = (e.exception, e.interrupt, e.nmi, e.smi);
        let mut text = String::new();
        let payload = e.flags & KVM_VCPUEVENT_VALID_PAYLOAD != 0;
        let pending = payload && x.pending != 0;
        if x.injected != 0 || pending {
            let _ = write!(text, "x{}{}:{}", x.injected, u8::from(pending), x.nr);
            if x.has_error_code != 0 {
                let _ = write!(text, ":{:x}", x.error_code);
            }
            if payload && e.exception_has_payload != 0 {
                let _ = write!(text, ":payload-{:x}", e.exception_payload);
            }
        }
        if i.injected != 0 {
            let _ = write!(text, ",i{}:{}", i.nr, i.soft);
        }
        let _ = write!(
            text,
            ",shadow{},n{}{}{},s{}{}{}{},t{},v{:x},f{:x}",
            i.shadow,
            n.injected,
            n.pending,
            n.masked,
            s.smm,
            s.pending,
            s.smm_inside_nmi,
            s.latched_init,
            e.triple_fault.pending,
            e.sipi_vector,
            e.flags & !KVM_VCPUEVENT_VALID_SMM
        );
        Ok(text)
    }

    /// Whether an NMI has not been delivered, or cannot be.
    pub(crate) fn nmis_wait(&self) -> Result<bool, String> {
        let e: kvm_vcpu_events = self.vcpu.handle.get(number::GET_VCPU_EVENTS)?;
        Ok((e.nmi.injected | e.nmi.pending | e.nmi.masked) != 0)
    }

    /// The stack's topmost words, for a reader.
    pub(crate) fn top(&self, rsp: u64) -> String {
        let at = (rsp.wrapping_sub(STACK) as usize).min(0xfd0);
        let bytes = self.ram.read(STACK as usize + at, 48);
        let each = bytes
            .chunks(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()));
        words(&each.collect::<Vec<_>>())
    }
}

fn map_part(vm: &Handle, slot: u32, ram: &Mapping, at: usize, length: usize) -> Result<(), String> {
    let region = kvm_userspace_memory_region {
        slot,
        guest_phys_addr: at as u64,
        memory_size: length as u64,
        userspace_addr: ram.start() as u64 + at as u64,
        ..Default::default()
    };
    vm.set(number::SET_USER_MEMORY_REGION, &region)?;
    Ok(())
}

/// A gate that leads to a HLT of this vector's own.
pub(crate) fn good_gate(mode: Mode, vector: u8) -> [u64; 2] {
    let end = ENDS + u64::from(vector);
    let code = u64::from(if mode == Mode::Long { CODE_64 } else { CODE_32 });
    match mode {
        Mode::Real => [end, 0],
        Mode::Long => [end & 0xffff | code << 16 | 0xee00 << 32, 0],
        _ => [end & 0xffff | code << 16 | 0xee00 << 32, 0],
    }
}

/// The first registers.
pub(crate) fn regs(mode: Mode) -> kvm_regs {
    let flat = !mode.is_16_bit();
    let device = if flat { DEVICE } else { 0 };
    kvm_regs {
        rax: 0x0123_4567_89ab_cd05,
        rbx: device + 0x300,
        rcx: 3,
        rdx: 0x80,
        rdi: device + 0x100,
        rsi: device + 0x200,
        rbp: device + 0x700,
        rsp: if flat { STACK + 0x800 } else { 0x800 },
        rip: if flat { CODE } else { 0 },
        rflags: if mode == Mode::Virtual8086 {
            0x2_3002
        } else {
            2
        },
        r8: 0x8888_8888_8888_8888,
        ..Default::default()
    }
}

fn table(base: u64, limit: u16) -> kvm_dtable {
    kvm_dtable {
        base,
        limit,
        ..Default::default()
    }
}

/// Nothing pending, and all of it valid.
pub(crate) fn all_events() -> kvm_vcpu_events {
    kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    }
}

/// No breakpoints: one that the delivery of an event meets ends QEMU.
fn quiet_debug() -> kvm_debugregs {
    kvm_debugregs {
        dr6: 0xffff_0ff0,
        dr7: 0x400,
        ..Default::default()
    }
}

/// CR0 without its reserved bits and ET: a CPU ignores a write of them (APM vol. 2, 3.1.1), and KVM
/// shows a VMM what it has set.
pub(crate) fn cr0_bits(cr0: u64) -> u64 {
    const RESERVED: u64 = 0x1ffa_ffd0;
    cr0 & !RESERVED
}

pub(crate) fn words(values: &[u64]) -> String {
    let each: Vec<_> = values.iter().map(|value| format!("{value:x}")).collect();
    each.join(",")
}

pub(crate) fn general(r: &kvm_regs) -> [u64; 16] {
    [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ]
}

pub(crate) fn segments(s: &kvm_sregs) -> String {
    let all = [s.es, s.cs, s.ss, s.ds, s.fs, s.gs, s.ldt, s.tr];
    let each: Vec<_> = all.iter().map(one_segment).collect();
    each.join(",")
}

fn one_segment(s: &kvm_segment) -> String {
    format!(
        "{:x}@{:x}/{:x}:{:x}{}{}{}{}{}{}{}{}",
        s.selector,
        s.base,
        s.limit,
        s.type_,
        s.s,
        s.dpl,
        s.present,
        s.l,
        s.db,
        s.g,
        s.avl,
        s.unusable
    )
}

fn exit_name(shared: &kvm_run) -> String {
    // SAFETY: The exit reason says which part of the union is meant.
    unsafe {
        let parts = &shared.__bindgen_anon_1;
        match shared.exit_reason {
            KVM_EXIT_HLT => "hlt".into(),
            KVM_EXIT_SHUTDOWN => "shutdown".into(),
            KVM_EXIT_IRQ_WINDOW_OPEN => "window".into(),
            KVM_EXIT_INTERNAL_ERROR => format!("internal-{}", parts.internal.suberror),
            KVM_EXIT_FAIL_ENTRY => "fail-entry".into(),
            KVM_EXIT_DEBUG => {
                let arch = parts.debug.arch;
                // KVM leaves DR7 as it was there.
                format!("debug-{:x}:{:x}:{:x}", arch.exception, arch.pc, arch.dr6)
            }
            other => format!("exit-{other}"),
        }
    }
}

/// Signals that end a `KVM_RUN`, again and again until it is dropped.
struct Alarm;

impl Alarm {
    const EVERY: i64 = 3_000;

    fn start() -> Self {
        extern "C" fn nothing(_: libc::c_int) {}
        // SAFETY: The handler does nothing, so it may run at any time.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut());
        }
        Self::set(Self::EVERY);
        Self
    }

    fn set(microseconds: i64) {
        let time = libc::timeval {
            tv_sec: 0,
            tv_usec: microseconds,
        };
        let timer = libc::itimerval {
            it_interval: time,
            it_value: time,
        };
        // SAFETY: The structure is this function's own.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) };
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        Self::set(0);
    }
}
