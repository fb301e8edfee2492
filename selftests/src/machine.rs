// SPDX-License-Identifier: GPL-2.0-only

//! The machine that a tiny guest runs in.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use kvm_bindings::*;

use crate::guest::{Guest, Irqchip, Mode, INTERRUPTED};
use crate::kvm::{number, set_cpuid, supported_cpuid, Answer, Errno, Handle};
use crate::memory::{Mapping, PAGE};
use crate::patience;
use crate::snapshot::Snapshot;
use crate::trace::{Next, Trace};

/// Guest memory from address 0.
pub const RAM: usize = 2 << 20;
/// Where the guest's code is, and where it begins.
pub const LOAD: usize = 0x8000;
/// The read-only slot of guests that ask for one: a page of 0x90, one with the descriptors, of
/// which none was ever loaded, and a task state segment; the page tables twice: with accessed and
/// dirty bits, and without; and an interrupt table, whose gates lead to 16 bytes each at
/// [`ROM_STUBS`].
pub const ROM: u64 = 0xc000_0000;
const ROM_PAGES: usize = 3 + 2 * TABLES;
/// `guests/report.inc` knows the following, too.
const ROM_TSS: usize = PAGE + 0x800;
const ROM_IDT: usize = (2 + 2 * TABLES) * PAGE;
const ROM_STUBS: u64 = 0x9_0000;
/// Pages of tables.
const TABLES: usize = 6;

/// The bit of CPUID leaf 8000_0001 ECX that guests here do not see, unless they are about it.
const SVM: u32 = 1 << 2;
const GDT: usize = 0x1000;
const PAGE_TABLES: usize = 0x2000;
const STACK: u64 = 0x8_0000;
const REAL_STACK: u64 = 0x7000;

/// What a guest may ask for: the low byte of the double word that it writes to the port, and an
/// argument in the rest.
pub mod ask {
    /// `KVM_NMI`.
    pub const NMI: u8 = 1;
    /// `KVM_INTERRUPT` with the argument as the vector, when the guest is ready for it.
    pub const INTERRUPT: u8 = 2;
    /// Raise the interrupt line of the argument.
    pub const RAISE: u8 = 3;
    /// Lower it.
    pub const LOWER: u8 = 4;
    /// Inject the exception of the argument by `KVM_SET_VCPU_EVENTS`.
    pub const EXCEPTION: u8 = 5;
    /// Send the MSI whose data is the argument to local APIC 0.
    pub const MSI: u8 = 6;
    /// As [`EXCEPTION`], with error code 0.
    pub const EXCEPTION_ERROR: u8 = 7;
}

/// A virtual CPU and the pages that it shares with this program.
pub struct Vcpu {
    /// The file descriptor.
    pub handle: Handle,
    page: Mapping,
}

impl Vcpu {
    /// Makes the virtual CPU `id`.
    pub fn create(device: &Handle, vm: &Handle, id: u32) -> Result<Self, String> {
        let size = device.call(number::GET_VCPU_MMAP_SIZE, 0)?;
        let handle = vm.open_with(number::CREATE_VCPU, id.into())?;
        let page = Mapping::of_file(handle.fd(), size as usize).map_err(|e| e.to_string())?;
        Ok(Self { handle, page })
    }

    /// A copy of the shared structure.
    pub fn shared(&self) -> kvm_run {
        let start = self.page.start().cast::<kvm_run>();
        // SAFETY: The mapping begins with this structure, in which any bits are valid.
        unsafe { start.read_volatile() }
    }

    /// Changes the shared structure.
    pub fn share(&self, change: impl FnOnce(&mut kvm_run)) {
        let mut shared = self.shared();
        change(&mut shared);
        // SAFETY: As above; the kernel does not use the page while this thread is here.
        unsafe { self.page.start().cast::<kvm_run>().write_volatile(shared) };
    }

    /// `KVM_RUN`.
    pub fn run(&self) -> Answer {
        self.handle.call(number::RUN, 0)
    }

    /// The shared pages.
    pub fn page(&self) -> &Mapping {
        &self.page
    }
}

/// A VM with its memory and virtual CPUs.
pub struct Machine {
    /// The VM.
    pub vm: Handle,
    /// Its virtual CPUs.
    pub vcpus: Vec<Vcpu>,
    /// Its memory.
    pub ram: Mapping,
    _rom: Mapping,
}

/// Maps `memory` at a guest-physical address.
pub fn map(vm: &Handle, slot: u32, flags: u32, address: u64, memory: &Mapping) -> Answer {
    let region = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: address,
        memory_size: memory.len() as u64,
        userspace_addr: memory.start() as u64,
    };
    vm.set(number::SET_USER_MEMORY_REGION, &region)
}

/// Why a guest cannot run on this device, if so.
pub fn missing(device: &Handle, guest: &Guest) -> Option<&'static str> {
    let has = |capability| device.extension(capability) > 0;
    if guest.irqchip == Irqchip::Kernel && !has(KVM_CAP_IRQCHIP) {
        Some("the device has no in-kernel interrupt controllers")
    } else if guest.irqchip == Irqchip::Split && !has(KVM_CAP_SPLIT_IRQCHIP) {
        Some("the device has no in-kernel local APIC")
    } else if guest.pit && !has(KVM_CAP_PIT2) {
        Some("the device has no in-kernel PIT")
    } else if guest.rom && !has(KVM_CAP_READONLY_MEM) {
        Some("the device has no read-only slots")
    } else if guest
        .feature
        .is_some_and(|(leaf, bit)| !offers(device, leaf, bit))
    {
        Some("the device does not offer the feature that this is about")
    } else {
        None
    }
}

/// Whether this bit of ECX of this CPUID leaf is offered.
pub fn offers(device: &Handle, function: u32, bit: u32) -> bool {
    let entries = supported_cpuid(device).unwrap_or_default();
    entries
        .iter()
        .any(|leaf| leaf.function == function && leaf.index == 0 && leaf.ecx >> bit & 1 != 0)
}

impl Machine {
    /// Makes the machine that the guest's header asks for.
    pub fn new(device: &Handle, guest: &Guest) -> Result<Self, String> {
        let vm = device.open_with(number::CREATE_VM, 0)?;
        vm.call(number::SET_TSS_ADDR, 0xfffb_d000)?;
        let ram = Mapping::anonymous(RAM).map_err(|e| e.to_string())?;
        ram.write(LOAD, &guest.code);
        map(&vm, 0, 0, 0, &ram)?;
        let rom = Mapping::anonymous(ROM_PAGES * PAGE).map_err(|e| e.to_string())?;
        write_rom(&rom);
        if guest.rom {
            map(&vm, 1, KVM_MEM_READONLY, ROM, &rom)?;
        }
        match guest.irqchip {
            Irqchip::None => {}
            Irqchip::Kernel => {
                vm.call(number::CREATE_IRQCHIP, 0)?;
            }
            Irqchip::Split => {
                let mut cap = kvm_enable_cap {
                    cap: KVM_CAP_SPLIT_IRQCHIP,
                    ..Default::default()
                };
                cap.args[0] = 24;
                vm.set(number::ENABLE_CAP, &cap)?;
            }
        }
        if guest.pit {
            let config = kvm_pit_config {
                flags: KVM_PIT_SPEAKER_DUMMY,
                ..Default::default()
            };
            vm.set(number::CREATE_PIT2, &config)?;
        }
        let cpuid = supported_cpuid(device)?;
        let mut vcpus = Vec::new();
        for id in 0..guest.cpus {
            let vcpu = Vcpu::create(device, &vm, id)?;
            let mut own = cpuid.clone();
            for leaf in &mut own {
                match leaf.function {
                    1 => leaf.ebx = leaf.ebx & 0x00ff_ffff | id << 24,
                    0xb => leaf.edx = id,
                    0x8000_0001 if guest.feature != Some((0x8000_0001, 2)) => leaf.ecx &= !SVM,
                    _ => {}
                }
            }
            set_cpuid(&vcpu.handle, &own)?;
            vcpus.push(vcpu);
        }
        set_up(&vcpus[0].handle, &ram, guest.mode)?;
        Ok(Self {
            vm,
            vcpus,
            ram,
            _rom: rom,
        })
    }

    /// In a child of fork(2): this machine becomes the one that the snapshot tells of, with the
    /// memory of this process. The parent's is let go.
    pub fn fork_from(
        &mut self,
        device: &Handle,
        snapshot: &Snapshot,
        flags: u64,
    ) -> Result<(), String> {
        let vm = snapshot.fork(flags)?;
        let mut vcpus = Vec::new();
        for id in 0..self.vcpus.len() as u32 {
            vcpus.push(Vcpu::create(device, &vm, id)?);
        }
        (self.vcpus, self.vm) = (vcpus, vm);
        Ok(())
    }

    /// Runs the guest to its end; answers what it did.
    pub fn run(&self, guest: &Guest) -> Vec<String> {
        let over = AtomicBool::new(false);
        let mut traces = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.vcpus.len())
                .map(|id| {
                    let over = &over;
                    scope.spawn(move || self.run_cpu(guest, id, over))
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_default())
                .collect::<Vec<_>>()
        });
        let mut lines = traces.remove(0);
        for (id, trace) in traces.into_iter().enumerate() {
            lines.extend(trace.iter().map(|line| format!("cpu{} {line}", id + 1)));
        }
        lines
    }

    /// Runs one CPU, with a second thread that interrupts it when its time is over. That is when it
    /// hangs; for a guest that is to be interrupted, some time after it has said all before that.
    fn run_cpu(&self, guest: &Guest, id: usize, over: &AtomicBool) -> Vec<String> {
        // SAFETY: This only asks for the calling thread's name.
        let thread = unsafe { libc::pthread_self() };
        let (late, lines) = (AtomicBool::new(false), AtomicUsize::new(0));
        let (finish, finished) = mpsc::channel::<()>();
        let (is_late, said) = (&late, &lines);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let pause = Duration::from_millis(50);
                let all = guest.lines_before_interruption();
                let (mut left, mut going_on) =
                    (patience::limit(), guest.limit.map(Duration::from_millis));
                while finished.recv_timeout(pause).is_err() {
                    left = left.saturating_sub(pause);
                    if said.load(Ordering::SeqCst) >= all {
                        going_on = going_on.map(|time| time.saturating_sub(pause));
                    }
                    if left.is_zero() || going_on.is_some_and(|time| time.is_zero()) {
                        is_late.store(true, Ordering::SeqCst);
                    }
                    if is_late.load(Ordering::SeqCst) || id != 0 && over.load(Ordering::SeqCst) {
                        // SAFETY: The thread lives until this scope has ended.
                        unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
                    }
                }
            });
            let mut trace = Trace::default();
            loop {
                let step = self.step(guest, id, &mut trace);
                lines.store(trace.lines.len(), Ordering::SeqCst);
                match step {
                    Step::Go => {}
                    Step::Interrupted if late.load(Ordering::SeqCst) => {
                        trace.line(INTERRUPTED);
                        break;
                    }
                    Step::Interrupted if id != 0 && over.load(Ordering::SeqCst) => break,
                    Step::Interrupted => {}
                    Step::End => break,
                }
            }
            if id == 0 {
                over.store(true, Ordering::SeqCst);
            }
            // The other thread may have ended by itself.
            let _ = finish.send(());
            trace.lines
        })
    }

    /// Enters the guest once and deals with why it came back.
    pub fn step(&self, guest: &Guest, id: usize, trace: &mut Trace) -> Step {
        let vcpu = &self.vcpus[id];
        match vcpu.run() {
            Ok(_) => {}
            Err(Errno(libc::EINTR)) => return Step::Interrupted,
            Err(Errno(libc::EAGAIN)) => return Step::Go,
            Err(error) => {
                trace.line(format!("KVM_RUN: {error:?}"));
                return Step::End;
            }
        }
        let shared = vcpu.shared();
        match shared.exit_reason {
            KVM_EXIT_IO => return self.port(vcpu, &shared, trace),
            KVM_EXIT_MMIO => mmio(vcpu, trace),
            KVM_EXIT_IRQ_WINDOW_OPEN => {
                trace.line("window");
                vcpu.share(|shared| shared.request_interrupt_window = 0);
                if let Err(error) = self.interrupt(vcpu) {
                    trace.line(format!("KVM_INTERRUPT: {error:?}"));
                    return Step::End;
                }
            }
            KVM_EXIT_HLT => {
                trace.line("hlt");
                return if guest.after_hlt { Step::Go } else { Step::End };
            }
            KVM_EXIT_SHUTDOWN => {
                trace.line("shutdown");
                return Step::End;
            }
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: The exit reason says which part of the union is meant.
                let suberror = unsafe { shared.__bindgen_anon_1.internal.suberror };
                trace.line(format!("internal-error {suberror}"));
                return Step::End;
            }
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: As above.
                let reason = unsafe {
                    shared
                        .__bindgen_anon_1
                        .fail_entry
                        .hardware_entry_failure_reason
                };
                trace.line(format!("fail-entry {reason:#x}"));
                return Step::End;
            }
            KVM_EXIT_IOAPIC_EOI => {
                // SAFETY: As above.
                let vector = unsafe { shared.__bindgen_anon_1.eoi.vector };
                trace.line(format!("ioapic-eoi {vector:#x}"));
            }
            KVM_EXIT_SET_TPR => trace.line(format!("set-tpr {:#x}", shared.cr8)),
            KVM_EXIT_INTR => return Step::Interrupted,
            other => {
                trace.line(format!("exit {other}"));
                return Step::End;
            }
        }
        Step::Go
    }

    /// One exit for IN, OUT, INS or OUTS, each element apart.
    fn port(&self, vcpu: &Vcpu, shared: &kvm_run, trace: &mut Trace) -> Step {
        // SAFETY: The exit reason says which part of the union is meant.
        let io = unsafe { shared.__bindgen_anon_1.io };
        let size = usize::from(io.size);
        for index in 0..io.count as usize {
            let offset = io.data_offset as usize + index * size;
            let mut data = vcpu.page().read(offset, size);
            if u32::from(io.direction) == KVM_EXIT_IO_IN {
                trace.input(io.port, &mut data);
                vcpu.page().write(offset, &data);
                continue;
            }
            match trace.out(io.port, &data) {
                Next::Run => {}
                Next::Done => return Step::End,
                Next::Ask(what) => {
                    if let Err(error) = self.ask(vcpu, what) {
                        trace.line(format!("ask {what:#x}: {error:?}"));
                        return Step::End;
                    }
                }
            }
        }
        Step::Go
    }

    fn ask(&self, vcpu: &Vcpu, what: u32) -> Answer {
        let argument = what >> 8;
        let line = |level| kvm_irq_level {
            __bindgen_anon_1: kvm_irq_level__bindgen_ty_1 { irq: argument },
            level,
        };
        match what.to_le_bytes()[0] {
            ask::NMI => vcpu.handle.call(number::NMI, 0),
            ask::INTERRUPT => {
                PENDING.with(|pending| pending.set(argument));
                if vcpu.shared().ready_for_interrupt_injection != 0 {
                    return self.interrupt(vcpu);
                }
                vcpu.share(|shared| shared.request_interrupt_window = 1);
                Ok(0)
            }
            ask::RAISE => self.vm.set(number::IRQ_LINE, &line(1)),
            ask::LOWER => self.vm.set(number::IRQ_LINE, &line(0)),
            code @ (ask::EXCEPTION | ask::EXCEPTION_ERROR) => {
                let mut events: kvm_vcpu_events = vcpu.handle.get(number::GET_VCPU_EVENTS)?;
                events.exception.injected = 1;
                events.exception.nr = argument.to_le_bytes()[0];
                events.exception.has_error_code = u8::from(code == ask::EXCEPTION_ERROR);
                vcpu.handle.set(number::SET_VCPU_EVENTS, &events)
            }
            ask::MSI => {
                let msi = kvm_msi {
                    address_lo: 0xfee0_0000,
                    data: argument,
                    ..Default::default()
                };
                self.vm.set(number::SIGNAL_MSI, &msi)
            }
            _ => Err(Errno(libc::ENOSYS)),
        }
    }

    fn interrupt(&self, vcpu: &Vcpu) -> Answer {
        let irq = PENDING.with(std::cell::Cell::get);
        vcpu.handle.set(number::INTERRUPT, &kvm_interrupt { irq })
    }
}

thread_local! {
    /// The vector that waits for the guest to become ready.
    static PENDING: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// What became of one entry into a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The guest can be entered again.
    Go,
    /// A signal came.
    Interrupted,
    /// It is done.
    End,
}

fn mmio(vcpu: &Vcpu, trace: &mut Trace) {
    // SAFETY: The exit reason says which part of the union is meant.
    let access = unsafe { vcpu.shared().__bindgen_anon_1.mmio };
    let length = (access.len as usize).min(8);
    let mut data = access.data;
    if access.is_write != 0 {
        trace.mmio_write(access.phys_addr, &data[..length]);
    } else {
        trace.mmio_read(access.phys_addr, &mut data[..length]);
        vcpu.share(|shared| shared.__bindgen_anon_1.mmio.data = data);
    }
}

/// Lets `SIGUSR1` end a `KVM_RUN` and nothing else.
pub fn catch_interruptions() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: The handler does nothing, so it may run at any time.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
}

/// Sends `SIGUSR1` to the calling thread from another one, again and again, while `work` runs.
pub fn with_signals<T>(first: Duration, work: impl FnOnce() -> T) -> T {
    // SAFETY: This only asks for the calling thread's name.
    let thread = unsafe { libc::pthread_self() };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(first);
            while !done.load(Ordering::SeqCst) {
                // SAFETY: The thread lives until this scope has ended.
                unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let result = work();
        done.store(true, Ordering::SeqCst);
        result
    })
}

/// The registers that a line `regs` of an expectation may name.
pub fn register(vcpu: &Handle, name: &str) -> Option<u64> {
    let regs: kvm_regs = vcpu.get(number::GET_REGS).ok()?;
    let sregs: kvm_sregs = vcpu.get(number::GET_SREGS).ok()?;
    Some(match name {
        "rax" => regs.rax,
        "rbx" => regs.rbx,
        "rcx" => regs.rcx,
        "rdx" => regs.rdx,
        "rsi" => regs.rsi,
        "rdi" => regs.rdi,
        "rsp" => regs.rsp,
        "rbp" => regs.rbp,
        "r8" => regs.r8,
        "r9" => regs.r9,
        "r10" => regs.r10,
        "r11" => regs.r11,
        "r12" => regs.r12,
        "r13" => regs.r13,
        "r14" => regs.r14,
        "r15" => regs.r15,
        "rip" => regs.rip,
        "rflags" => regs.rflags,
        "cr0" => sregs.cr0,
        "cr2" => sregs.cr2,
        "cr3" => sregs.cr3,
        "cr4" => sregs.cr4,
        "cr8" => sregs.cr8,
        "efer" => sregs.efer,
        "cs" => sregs.cs.selector.into(),
        "ss" => sregs.ss.selector.into(),
        "ds" => sregs.ds.selector.into(),
        "tr" => sregs.tr.selector.into(),
        _ => return None,
    })
}

/// The descriptors that guests find at the selectors that `guests/report.inc` names.
fn descriptors() -> [u64; 9] {
    const TSS: u64 = 0x1100;
    [
        0,
        0x00af_9b00_0000_ffff,             // 0x08: 64-bit code
        0x00cf_9300_0000_ffff,             // 0x10: data
        0x00cf_9b00_0000_ffff,             // 0x18: 32-bit code
        0x0000_9b00_0000_ffff,             // 0x20: 16-bit code
        0x0000_9300_0000_ffff,             // 0x28: 16-bit data
        0x00cf_f300_0000_ffff,             // 0x30: user data
        0x00af_fb00_0000_ffff,             // 0x38: user 64-bit code
        0x0000_8b00_0000_0067 | TSS << 16, // 0x40: busy TSS; its upper half is zero
    ]
}

fn segment(selector: u16, descriptor: u64) -> kvm_segment {
    let bit = |number: u32| (descriptor >> number & 1) as u8;
    let granular = bit(55) != 0;
    let limit = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
    kvm_segment {
        base: descriptor >> 16 & 0xff_ffff | descriptor >> 32 & 0xff00_0000,
        limit: if granular { limit << 12 | 0xfff } else { limit },
        selector,
        type_: (descriptor >> 40 & 0xf) as u8,
        s: bit(44),
        dpl: (descriptor >> 45 & 3) as u8,
        present: bit(47),
        l: bit(53),
        db: bit(54),
        g: bit(55),
        ..Default::default()
    }
}

/// See [`ROM`].
fn write_rom(rom: &Mapping) {
    /// Present, for user mode, an interrupt gate to the code of 64 bits (APM vol. 2, 4.8.4).
    const GATE: u64 = 0xee00_0008_0000;
    /// Bits of a descriptor's type: accessed, or, of a TSS, busy.
    const ACCESSED: u64 = 1 << 40;
    const BUSY: u64 = 1 << 41;
    const ACCESSED_DIRTY: u64 = 0x60;
    rom.write(0, &[0x90; PAGE]);
    let table = descriptors().map(|descriptor| match descriptor >> 44 & 1 {
        0 => descriptor & !BUSY,
        _ => descriptor & !ACCESSED,
    });
    rom.write_words(PAGE, &table);
    // RSP0.
    rom.write_words(ROM_TSS + 4, &[0x7_7000]);
    for vector in 0..256 {
        let offset = ROM_STUBS + 16 * vector;
        let gate = GATE | offset & 0xffff | (offset & 0xffff_0000) << 32;
        rom.write_words(ROM_IDT + 16 * vector as usize, &[gate, 0]);
    }
    for (first, marks) in [(2, ACCESSED_DIRTY), (2 + TABLES, 0)] {
        let tables = page_tables(ROM + (first * PAGE) as u64);
        let marked: Vec<u64> = tables
            .iter()
            .map(|entry| if *entry == 0 { 0 } else { entry | marks })
            .collect();
        rom.write_words(first * PAGE, &marked);
    }
}

/// Four GiB mapped to themselves, at every privilege, by tables that lie at `start`.
fn page_tables(start: u64) -> Vec<u64> {
    const TABLE: u64 = 0x7; // present, writable, user
    const LARGE: u64 = 0x80;
    let mut words = vec![0; 2 * 512];
    words[0] = (start + 0x1000) | TABLE;
    for gigabyte in 0..4 {
        words[512 + gigabyte] = (start + 0x2000 + gigabyte as u64 * 0x1000) | TABLE;
    }
    words.extend((0..4 * 512).map(|index: u64| index << 21 | TABLE | LARGE));
    words
}

/// Brings a CPU into the initial state of a guest of this mode.
pub fn set_up(vcpu: &Handle, ram: &Mapping, mode: Mode) -> Answer {
    const PE: u64 = 1;
    const MP_ET_NE_WP: u64 = 0x1_0032;
    const PG: u64 = 1 << 31;
    const PAE: u64 = 1 << 5;
    const OSFXSR_OSXMMEXCPT: u64 = 3 << 9;
    const LME_LMA: u64 = 5 << 8;

    let table = descriptors();
    ram.write_words(GDT, &table);
    let mut sregs: kvm_sregs = vcpu.get(number::GET_SREGS)?;
    let mut stack = STACK;
    if mode == Mode::Real16 {
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        stack = REAL_STACK;
    } else {
        let code = if mode == Mode::Long64 { 1 } else { 3 };
        sregs.cs = segment(code * 8, table[usize::from(code)]);
        let data = segment(0x10, table[2]);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = segment(0x40, table[8]);
        sregs.gdt = kvm_dtable {
            base: GDT as u64,
            limit: 0x4f,
            ..Default::default()
        };
        sregs.cr0 = PE | MP_ET_NE_WP;
    }
    if mode == Mode::Long64 {
        ram.write_words(PAGE_TABLES, &page_tables(PAGE_TABLES as u64));
        sregs.cr0 |= PG;
        sregs.cr3 = PAGE_TABLES as u64;
        sregs.cr4 = PAE | OSFXSR_OSXMMEXCPT;
        sregs.efer = LME_LMA;
    }
    vcpu.set(number::SET_SREGS, &sregs)?;
    vcpu.set(
        number::SET_REGS,
        &kvm_regs {
            rip: LOAD as u64,
            rsp: stack,
            rflags: 2,
            ..Default::default()
        },
    )
}
