// SPDX-License-Identifier: GPL-2.0-only

//! The machine that a measured guest runs in.

use std::arch::asm;
use std::ptr::addr_of;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kvm_bindings::*;
use selftests::guest::{Guest, Irqchip, Mode};
use selftests::kvm::{number, Answer, Errno, Handle};
use selftests::machine::{set_up, Machine, Vcpu, LOAD};

use crate::guests::{Code, BELL, END, HANDLER, RESULTS, RESULT_COUNT, VECTOR};

/// The interrupt that an eventfd of [`listen`] causes.
const GSI: u32 = 24;
const IDT: usize = 0x1_8000;

/// Makes a machine for this guest; with an APIC, each CPU has one.
pub(crate) fn machine(
    device: &Handle,
    codes: &[Code],
    irqchip: Irqchip,
) -> Result<Machine, String> {
    let mut code = Vec::new();
    for part in codes {
        code.extend(part.bytes());
    }
    let guest = Guest {
        name: "measure".into(),
        code,
        mode: Mode::Long64,
        irqchip,
        pit: false,
        cpus: codes.len() as u32,
        limit: None,
        after_hlt: false,
        rom: false,
        feature: None,
        bugs: Vec::new(),
        expected: Vec::new(),
    };
    let machine = Machine::new(device, &guest)?;
    for (id, vcpu) in machine.vcpus.iter().enumerate() {
        start(&machine, &vcpu.handle, id, codes[0].bytes().len(), irqchip)?;
    }
    Ok(machine)
}

/// Lets the CPU begin at its own part of the code, with its own stack and interrupt table.
fn start(
    machine: &Machine,
    vcpu: &Handle,
    id: usize,
    part: usize,
    irqchip: Irqchip,
) -> Result<(), String> {
    set_up(vcpu, &machine.ram, Mode::Long64)?;
    let begin = LOAD + id * part;
    let handler = (begin + HANDLER) as u64;
    let table = IDT + id * 0x1000;
    // An interrupt gate to the 64-bit code segment, below 64 KiB.
    let gate = [handler & 0xffff | 0x8 << 16 | 0x8e00 << 32, 0];
    machine.ram.write_words(table + VECTOR as usize * 16, &gate);
    let mut sregs: kvm_sregs = vcpu.get(number::GET_SREGS)?;
    sregs.idt.base = table as u64;
    sregs.idt.limit = 0xfff;
    vcpu.set(number::SET_SREGS, &sregs)?;
    let mut regs: kvm_regs = vcpu.get(number::GET_REGS)?;
    regs.rip = begin as u64;
    regs.rsp -= id as u64 * 0x1000;
    vcpu.set(number::SET_REGS, &regs)?;
    if irqchip != Irqchip::None {
        vcpu.set(number::SET_MP_STATE, &kvm_mp_state { mp_state: 0 })?;
    }
    Ok(())
}

/// What the guest is given in RBX.
pub(crate) fn set_pointer(vcpu: &Handle, pointer: u64) -> Answer {
    let mut regs: kvm_regs = vcpu.get(number::GET_REGS)?;
    regs.rbx = pointer;
    vcpu.set(number::SET_REGS, &regs)
}

/// An eventfd.
pub(crate) fn eventfd() -> Result<std::fs::File, String> {
    use std::os::fd::FromRawFd;
    // SAFETY: This makes a new descriptor.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(Errno::last().into());
    }
    // SAFETY: The descriptor is ours alone.
    Ok(unsafe { std::fs::File::from_raw_fd(fd) })
}

/// Writes to this port, or to this address if `len` is 0, signal the eventfd.
pub(crate) fn ring(machine: &Machine, fd: i32, addr: u64, len: u32) -> Answer {
    let port = if len == 0 {
        0
    } else {
        1 << kvm_ioeventfd_flag_nr_pio
    };
    machine.vm.set(
        number::IOEVENTFD,
        &kvm_ioeventfd {
            addr,
            len,
            fd,
            flags: port,
            ..Default::default()
        },
    )
}

/// The machine's doorbell signals the eventfd.
pub(crate) fn bell(machine: &Machine, fd: i32) -> Answer {
    ring(machine, fd, BELL.into(), 1)
}

/// The eventfd sends the machine's first CPU an MSI.
pub(crate) fn listen(machine: &Machine, fd: i32) -> Answer {
    #[repr(C)]
    struct Routing {
        header: kvm_irq_routing,
        entry: kvm_irq_routing_entry,
    }
    let mut entry = kvm_irq_routing_entry {
        gsi: GSI,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi.address_lo = 0xfee0_0000;
    entry.u.msi.__bindgen_anon_1 = Default::default();
    entry.u.msi.data = VECTOR;
    let routing = Routing {
        header: kvm_irq_routing {
            nr: 1,
            ..Default::default()
        },
        entry,
    };
    // SAFETY: The header counts the one entry that follows it.
    unsafe {
        machine
            .vm
            .raw(number::SET_GSI_ROUTING, addr_of!(routing) as usize)?;
    }
    machine.vm.set(
        number::IRQFD,
        &kvm_irqfd {
            fd: fd as u32,
            gsi: GSI,
            ..Default::default()
        },
    )
}

/// Runs the guest to its end and answers what it found. What the emulator's plugin counts is
/// counted from here to there.
pub(crate) fn run(machine: &Machine) -> Result<Vec<u64>, String> {
    begin();
    loop {
        machine.vcpus[0].run()?;
        match exit(&machine.vcpus[0]) {
            (KVM_EXIT_IO, END) => break,
            (KVM_EXIT_IO | KVM_EXIT_MMIO, _) => {}
            (reason, _) => return Err(format!("exit {reason}")),
        }
    }
    end();
    let bytes = machine.ram.read(RESULTS, RESULT_COUNT * 8);
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
    Ok(bytes.chunks_exact(8).map(word).collect())
}

/// Runs it beside a CPU that answers.
pub(crate) fn run_with(machine: &Machine, other: &Vcpu) -> Result<Vec<u64>, String> {
    beside(other, || run(machine))?
}

/// Does something while another CPU runs its guest in a thread of its own.
pub(crate) fn beside<T>(other: &Vcpu, work: impl FnOnce() -> T) -> Result<T, String> {
    let (thread, over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let answers = scope.spawn(|| {
            // SAFETY: This only asks for the calling thread's name.
            thread.store(unsafe { libc::pthread_self() }, Ordering::SeqCst);
            while !over.load(Ordering::SeqCst) {
                match other.run() {
                    Ok(_) | Err(Errno(libc::EINTR | libc::EAGAIN)) => {}
                    Err(error) => return Err(format!("the other CPU: {error:?}")),
                }
            }
            Ok(())
        });
        // Long enough for the other to be in its guest, and to sleep there if it does.
        std::thread::sleep(Duration::from_millis(50));
        let results = work();
        over.store(true, Ordering::SeqCst);
        while !answers.is_finished() {
            // SAFETY: The thread has not been joined, so its name is still its own.
            unsafe { libc::pthread_kill(thread.load(Ordering::SeqCst), libc::SIGUSR1) };
            std::thread::sleep(Duration::from_millis(1));
        }
        answers.join().map_err(|_| "the other CPU's thread")??;
        Ok(results)
    })
}

/// Why the vCPU came back, and by which port.
fn exit(vcpu: &Vcpu) -> (u32, u16) {
    let run: *const kvm_run = vcpu.page().start().cast();
    // SAFETY: The mapping begins with this structure, which the kernel does not write now; a
    // port that is none is any number.
    unsafe {
        (
            addr_of!((*run).exit_reason).read_volatile(),
            addr_of!((*run).__bindgen_anon_1.io.port).read_volatile(),
        )
    }
}

/// The marks between which `selftests/bench/count.c` counts.
pub(crate) fn begin() {
    // SAFETY: An instruction that does nothing.
    unsafe { asm!("nop dword ptr [rax + rax + 0x4d4d0001]") };
}

pub(crate) fn end() {
    // SAFETY: As above.
    unsafe { asm!("nop dword ptr [rax + rax + 0x4d4d0002]") };
}
