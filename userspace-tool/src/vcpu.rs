// SPDX-License-Identifier: GPL-2.0-only

//! A virtual processor and the thread that runs it.

use std::fmt::Write;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use kvm_bindings::{
    kvm_run, kvm_segment, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use nix::errno::Errno;
use nix::sys::mman::{madvise, MmapAdvise};
use vmm_sys_util::signal::{register_signal_handler, Killable, SIGRTMIN};

use crate::devices::bus::Bus;
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::outcome::{Outcome, Stop};

/// The part of the page shared with the module that is used behind [`VcpuFd`]'s back.
#[derive(Debug, Clone, Copy)]
struct RunPage(NonNull<kvm_run>);

// SAFETY: The page is memory shared with the kernel; other threads use only the one byte in it that
// may be written at any time, and atomically. The mapping outlives all uses: see `VcpuThread`.
unsafe impl Send for RunPage {}

impl RunPage {
    /// Makes the next or the current `KVM_RUN` return at once (the latter together with a signal).
    fn request_exit(self) {
        // SAFETY: The pointer leads to a live mapping of at least a whole `kvm_run`; the kernel and
        // this program access this byte as a single unit.
        let flag = unsafe { AtomicU8::from_ptr(&raw mut (*self.0.as_ptr()).immediate_exit) };
        flag.store(1, Ordering::SeqCst);
    }

    /// Takes a request back. What is looked at afterwards is not older than this.
    fn forget_exit(self) {
        // SAFETY: As above.
        let flag = unsafe { AtomicU8::from_ptr(&raw mut (*self.0.as_ptr()).immediate_exit) };
        flag.store(0, Ordering::SeqCst);
    }

    /// The size of one access, after an exit for I/O. [`VcpuExit`] does not tell it.
    fn io_size(self) -> usize {
        // SAFETY: As above. All bit patterns are valid for the union's member, and only this thread
        // and the kernel, which is not in `KVM_RUN` now, use it.
        let size =
            unsafe { (&raw const (*self.0.as_ptr()).__bindgen_anon_1.io.size).read_volatile() };
        usize::from(size)
    }

    /// The kind and the data of an internal error, after an exit for one.
    fn internal_error(self) -> (u32, Vec<u64>) {
        // SAFETY: As above.
        let error =
            unsafe { (&raw const (*self.0.as_ptr()).__bindgen_anon_1.internal).read_volatile() };
        let count = usize::try_from(error.ndata).map_or(0, |count| count.min(error.data.len()));
        (error.suberror, error.data[..count].to_vec())
    }
}

/// What comes after a run of the guest.
enum Next {
    /// Another run.
    Go,
    /// The thread has been called.
    Called,
    /// The end.
    End(Outcome),
}

/// Where a processor begins after a reset: the offset, and the base of the code segment.
const RESET_VECTOR: (u64, u64) = (0xfff0, 0xffff_0000);

/// A virtual processor.
#[derive(Debug)]
pub(crate) struct Vcpu {
    fd: VcpuFd,
    id: u32,
    page: RunPage,
}

impl Vcpu {
    /// Wraps processor number `id`.
    pub(crate) fn new(mut fd: VcpuFd, id: u32, vm: &VmFd) -> Result<Self> {
        leave_out(fd.get_kvm_run(), vm)?;
        let page = RunPage(NonNull::from(fd.get_kvm_run()));
        Ok(Self { fd, id, page })
    }

    /// The module's handle.
    pub(crate) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Another handle, for other threads while this processor rests: never for `KVM_RUN`.
    pub(crate) fn handle(&self, vm: &VmFd) -> Result<VcpuFd> {
        // SAFETY: The descriptor is open, and the answer is a new one or an error.
        let copy = unsafe { libc::fcntl(self.fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
        if copy < 0 {
            return Err(Error::system("dup", io::Error::last_os_error()));
        }
        // SAFETY: The descriptor is a processor's, and nothing else owns it.
        let handle = unsafe { vm.create_vcpu_from_rawfd(copy) };
        let mut handle = handle.map_err(|error| Error::kvm("mmap", error))?;
        leave_out(handle.get_kvm_run(), vm)?;
        Ok(handle)
    }

    /// Runs the guest until there is an outcome.
    fn run(&mut self, bus: &Bus, stop: &Stop, gate: &Gate) {
        let passenger = gate.enter();
        loop {
            // First, so that no request that comes behind it is lost.
            self.page.forget_exit();
            if gate.is_closed() {
                self.complete(bus, stop);
                passenger.pass();
            }
            if stop.outcome().is_some() {
                return;
            }
            if let Next::End(outcome) = self.step(bus) {
                stop.request(outcome);
            }
        }
    }

    /// Lets the module finish the instruction whose access this program has served: the registers
    /// are those behind it then.
    fn complete(&mut self, bus: &Bus, stop: &Stop) {
        while stop.outcome().is_none() {
            self.page.request_exit();
            match self.step(bus) {
                Next::Called => return,
                Next::Go => {}
                Next::End(outcome) => stop.request(outcome),
            }
        }
    }

    /// Runs the guest until it needs something, and provides that.
    fn step(&mut self, bus: &Bus) -> Next {
        let page = self.page;
        let reason = match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                bus.read(port, page.io_size(), data);
                return Next::Go;
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                bus.write(port, page.io_size(), data);
                return Next::Go;
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                bus.read_memory(address, data);
                return Next::Go;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                bus.write_memory(address, data);
                return Next::Go;
            }
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => return Next::Called,
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
                return Next::End(Outcome::PowerOff)
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => {
                return Next::End(Outcome::Reset)
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => {
                "it reported a crash".to_string()
            }
            Ok(VcpuExit::Shutdown) => "shutdown (triple fault)".to_string(),
            Ok(VcpuExit::Hlt) => "it halted, and there is nothing that could wake it".to_string(),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                format!("the processor refused to enter it (reason {reason:#x}, host CPU {cpu})")
            }
            Ok(VcpuExit::InternalError) => {
                let (kind, data) = page.internal_error();
                format!(
                    "the module cannot go on ({}, data {data:x?})",
                    internal_error_name(kind)
                )
            }
            Ok(VcpuExit::MemoryFault { gpa, size, .. }) => {
                format!("its memory at {gpa:#x} ({size} bytes) is not accessible")
            }
            Ok(exit) => format!("an exit that this program did not ask for: {exit:?}"),
            Err(error) => match Errno::from_raw(error.errno()) {
                // A kick, or a processor that now waits for its start-up interrupt.
                Errno::EINTR | Errno::EAGAIN => return Next::Called,
                _ => {
                    return Next::End(Outcome::Host(format!(
                        "KVM_RUN failed on processor {}: {error}",
                        self.id
                    )))
                }
            },
        };
        Next::End(Outcome::Crash(self.report(&reason)))
    }

    /// A report on a crash, for a human.
    fn report(&self, reason: &str) -> String {
        let mut text = format!("processor {}: {reason}\n", self.id);
        match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(regs), Ok(sregs)) => {
                if (regs.rip, sregs.cs.base) == RESET_VECTOR {
                    text.push_str("(the module has reset the processor already: these are its registers after that)\n");
                }
                // Writing to a string does not fail.
                let _ = write_registers(&mut text, &regs, &sregs);
            }
            (Err(error), _) | (_, Err(error)) => {
                let _ = writeln!(text, "its registers cannot be read: {error}");
            }
        }
        text
    }
}

/// The names of the internal errors.
fn internal_error_name(kind: u32) -> String {
    match kind {
        1 => "an instruction that it cannot emulate".into(),
        2 => "simultaneous exceptions".into(),
        3 => "an exit while an event was being delivered".into(),
        4 => "an exit that it does not know".into(),
        other => format!("suberror {other}"),
    }
}

/// Writes the registers, a few to a line.
fn write_registers(
    text: &mut String,
    regs: &kvm_bindings::kvm_regs,
    sregs: &kvm_bindings::kvm_sregs,
) -> std::fmt::Result {
    let r = regs;
    writeln!(text, "RIP={:016x} RFLAGS={:08x}", r.rip, r.rflags)?;
    for row in [
        [
            ("RAX", r.rax),
            ("RBX", r.rbx),
            ("RCX", r.rcx),
            ("RDX", r.rdx),
        ],
        [
            ("RSI", r.rsi),
            ("RDI", r.rdi),
            ("RBP", r.rbp),
            ("RSP", r.rsp),
        ],
        [("R8 ", r.r8), ("R9 ", r.r9), ("R10", r.r10), ("R11", r.r11)],
        [
            ("R12", r.r12),
            ("R13", r.r13),
            ("R14", r.r14),
            ("R15", r.r15),
        ],
    ] {
        let row = row.map(|(name, value)| format!("{name}={value:016x}"));
        writeln!(text, "{}", row.join(" "))?;
    }
    for (name, segment) in [
        ("CS", &sregs.cs),
        ("SS", &sregs.ss),
        ("DS", &sregs.ds),
        ("ES", &sregs.es),
        ("FS", &sregs.fs),
        ("GS", &sregs.gs),
        ("TR", &sregs.tr),
        ("LDT", &sregs.ldt),
    ] {
        write_segment(text, name, segment)?;
    }
    for (name, table) in [("GDT", &sregs.gdt), ("IDT", &sregs.idt)] {
        writeln!(
            text,
            "{name:<3}      base={:016x} limit={:08x}",
            table.base, table.limit
        )?;
    }
    writeln!(
        text,
        "CR0={:08x} CR2={:016x} CR3={:016x} CR4={:08x} CR8={:x} EFER={:x} APIC={:x}",
        sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.cr8, sregs.efer, sregs.apic_base
    )
}

/// Writes one segment register.
fn write_segment(text: &mut String, name: &str, segment: &kvm_segment) -> std::fmt::Result {
    let s = segment;
    writeln!(
        text,
        "{name:<3}={:04x} base={:016x} limit={:08x} type={:x} s={} dpl={} p={} l={} db={} g={}",
        s.selector, s.base, s.limit, s.type_, s.s, s.dpl, s.present, s.l, s.db, s.g
    )
}

/// Keeps a processor's page out of children: with it, they would keep this virtual machine.
fn leave_out(page: &mut kvm_run, vm: &VmFd) -> Result<()> {
    let start = NonNull::from(page).cast();
    // SAFETY: The range is one whole mapping, and this advice does not change its contents.
    unsafe { madvise(start, vm.run_size(), MmapAdvise::MADV_DONTFORK) }
        .map_err(|error| Error::system("madvise", error))
}

/// The signal that interrupts `KVM_RUN`.
fn kick_signal() -> i32 {
    SIGRTMIN()
}

/// Does nothing: that the signal arrives is enough.
extern "C" fn on_kick(
    _signal: libc::c_int,
    _info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
}

/// Makes the kick signal harmless to everything but `KVM_RUN`.
pub(crate) fn install_kick_handler() -> Result<()> {
    register_signal_handler(kick_signal(), on_kick)
        .map_err(|error| Error::system("sigaction", error))
}

/// A processor's panic ends the program: a guest cannot go on without it, and the page that is
/// shared with the module must not go away while others may use it.
struct EndTogether;

impl Drop for EndTogether {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

/// A processor's thread. The thread gives the processor back when it ends, and the handle keeps it
/// until it is joined: so the page is mapped for as long as this value exists.
#[derive(Debug)]
pub(crate) struct VcpuThread {
    handle: JoinHandle<Vcpu>,
    page: RunPage,
}

impl VcpuThread {
    /// Starts a thread that runs the processor until there is an outcome.
    pub(crate) fn start(
        mut vcpu: Vcpu,
        bus: Arc<Bus>,
        stop: Arc<Stop>,
        gate: Arc<Gate>,
    ) -> Result<Self> {
        let page = vcpu.page;
        let handle = thread::Builder::new()
            .name(format!("vcpu{}", vcpu.id))
            .spawn(move || {
                let _guard = EndTogether;
                vcpu.run(&bus, &stop, &gate);
                vcpu
            })
            .map_err(|error: io::Error| Error::system("clone", error))?;
        Ok(Self { handle, page })
    }

    /// Makes the thread look for an outcome now. The flag covers the moments before `KVM_RUN`, the
    /// signal those inside it.
    pub(crate) fn kick(&self) {
        self.page.request_exit();
        // A thread that has ended needs no signal.
        let _ = self.handle.kill(kick_signal());
    }

    /// Waits for the thread.
    pub(crate) fn join(self) {
        // It does not panic: see `EndTogether`.
        let _ = self.handle.join();
    }
}
