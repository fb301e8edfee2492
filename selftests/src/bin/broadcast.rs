// SPDX-License-Identifier: GPL-2.0-only

//! Interrupts for all vCPUs at once, from everything that can send one, in a VM of many vCPUs that
//! are halted. Each must get each. In the boot `stretches` the emulator's plugin counts meanwhile
//! how long the host has interrupts off for it.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::ExitCode;
use std::ptr::addr_of;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kvm_bindings::*;
use selftests::guest::{Guest, Irqchip, Mode};
use selftests::kvm::{number, Errno, Handle};
use selftests::machine::{catch_interruptions, set_up, Machine, Vcpu};
use selftests::patience;
use selftests::tap::Tap;

const CPUS: u32 = 128;
const VECTOR: u8 = 0x40;
/// A GSI of an MSI, and one of the IOAPIC.
const MSI_GSI: u32 = 30;
const PIN: u32 = 20;
/// The vCPUs' counters, the interrupt table, and the handler's place behind the program's.
const COUNTERS: usize = 0x10_0000;
const IDT: usize = 0x11_0000;
const HANDLER: usize = 0x60;

/// Turns the local APIC on in x2APIC mode, and halts for ever; the handler counts at [RBX].
const PROGRAM: &[u8] = &[
    0xb9, 0x1b, 0, 0, 0, // mov ecx, IA32_APIC_BASE
    0x0f, 0x32, // rdmsr
    0x0d, 0, 0x0c, 0, 0, // or eax, enabled and x2APIC
    0x0f, 0x30, // wrmsr
    0xb9, 0x0f, 0x08, 0, 0, // mov ecx, the spurious-interrupt register
    0xb8, 0xff, 0x01, 0, 0, // mov eax, enabled
    0x31, 0xd2, // xor edx, edx
    0x0f, 0x30, // wrmsr
    0xb9, 0x35, 0x08, 0, 0, // mov ecx, LVT0
    0xb8, 0, 0, 0x01, 0, // mov eax, masked: the PIC is another's business
    0x0f, 0x30, // wrmsr
    0x48, 0xff, 0x43, 0x08, // inc qword [rbx + 8]: ready
    0xfb, // sti
    0xf4, // hlt
    0xeb, 0xfc, // jmp to sti
];
const HANDLE: &[u8] = &[
    0x48, 0xff, 0x03, // inc qword [rbx]
    0xb9, 0x0b, 0x08, 0, 0, // mov ecx, the EOI register
    0x31, 0xc0, // xor eax, eax
    0x31, 0xd2, // xor edx, edx
    0x0f, 0x30, // wrmsr
    0x48, 0xcf, // iretq
];

/// What the tests work on.
struct Many {
    machine: Machine,
}

impl Many {
    fn new(device: &Handle) -> Result<Self, String> {
        let mut code = PROGRAM.to_vec();
        code.resize(HANDLER, 0x90);
        code.extend(HANDLE);
        let guest = Guest {
            name: "broadcast".into(),
            code,
            mode: Mode::Long64,
            irqchip: Irqchip::Kernel,
            pit: true,
            cpus: CPUS,
            limit: None,
            after_hlt: false,
            rom: false,
            feature: None,
            bugs: Vec::new(),
            expected: Vec::new(),
        };
        let machine = Machine::new(device, &guest)?;
        let handler = (selftests::machine::LOAD + HANDLER) as u64;
        // An interrupt gate to the 64-bit code segment, below 64 KiB.
        let gate = [handler & 0xffff | 0x8 << 16 | 0x8e00 << 32, 0];
        machine
            .ram
            .write_words(IDT + usize::from(VECTOR) * 16, &gate);
        for (id, vcpu) in machine.vcpus.iter().enumerate() {
            set_up(&vcpu.handle, &machine.ram, Mode::Long64)?;
            let mut sregs: kvm_sregs = vcpu.handle.get(number::GET_SREGS)?;
            (sregs.idt.base, sregs.idt.limit) = (IDT as u64, 0xfff);
            vcpu.handle.set(number::SET_SREGS, &sregs)?;
            let mut regs: kvm_regs = vcpu.handle.get(number::GET_REGS)?;
            regs.rbx = (COUNTERS + 16 * id) as u64;
            regs.rsp -= 0x400 * id as u64;
            vcpu.handle.set(number::SET_REGS, &regs)?;
            vcpu.handle
                .set(number::SET_MP_STATE, &kvm_mp_state { mp_state: 0 })?;
        }
        Ok(Self { machine })
    }

    fn count(&self, id: u32, place: usize) -> u64 {
        let bytes = self
            .machine
            .ram
            .read(COUNTERS + 16 * id as usize + place, 8);
        u64::from_le_bytes(bytes.try_into().unwrap_or_default())
    }

    fn counts(&self) -> Vec<u64> {
        (0..CPUS).map(|id| self.count(id, 0)).collect()
    }

    /// `send` brings every vCPU an interrupt.
    fn each_gets(
        &self,
        what: &str,
        send: impl FnOnce() -> Result<(), String>,
    ) -> Result<(), String> {
        let before = self.counts();
        send()?;
        patience::until(what, || {
            before
                .iter()
                .zip(self.counts())
                .all(|(before, now)| now > *before)
        })
    }

    /// The IOAPIC sends what comes at this pin to all.
    fn set_pin(&self, pin: u32, level: bool) -> Result<(), String> {
        self.write_pin(pin, u64::from(VECTOR) | u64::from(level) << 15 | 0xff << 56)
    }

    fn write_pin(&self, pin: u32, entry: u64) -> Result<(), String> {
        let mut chip = kvm_irqchip {
            chip_id: KVM_IRQCHIP_IOAPIC,
            ..Default::default()
        };
        self.machine.vm.exchange(number::GET_IRQCHIP, &mut chip)?;
        // SAFETY: The kernel has filled the IOAPIC's variant, of plain integers.
        unsafe { chip.chip.ioapic.redirtbl[pin as usize].bits = entry };
        self.machine.vm.set(number::SET_IRQCHIP, &chip)?;
        Ok(())
    }

    fn mask_pin(&self, pin: u32) -> Result<(), String> {
        const MASKED: u64 = 1 << 16;
        self.write_pin(pin, MASKED)
    }

    fn line(&self, level: u32) -> Result<(), String> {
        let mut line = kvm_irq_level {
            level,
            ..Default::default()
        };
        line.__bindgen_anon_1.irq = PIN;
        self.machine.vm.set(number::IRQ_LINE, &line)?;
        Ok(())
    }
}

fn message() -> kvm_msi {
    kvm_msi {
        address_lo: 0xfee0_0000 | 0xff << 12,
        data: VECTOR.into(),
        ..Default::default()
    }
}

fn msi(many: &Many) -> Result<(), String> {
    many.each_gets("an MSI", || {
        many.machine.vm.set(number::SIGNAL_MSI, &message())?;
        Ok(())
    })
}

fn edge(many: &Many) -> Result<(), String> {
    many.set_pin(PIN, false)?;
    many.each_gets("an edge", || many.line(1).and_then(|()| many.line(0)))
}

/// The line stays high until somebody has taken it.
fn level(many: &Many) -> Result<(), String> {
    many.set_pin(PIN, true)?;
    let result = many.each_gets("a level", || many.line(1));
    many.line(0)?;
    many.set_pin(PIN, false)?;
    result
}

fn tick(many: &Many) -> Result<(), String> {
    many.set_pin(0, false)?;
    let mut pit: kvm_pit_state2 = many.machine.vm.get(number::GET_PIT2)?;
    pit.channels[0].mode = 2;
    pit.channels[0].count = 0x4000;
    many.each_gets("a tick of the PIT", || {
        many.machine.vm.set(number::SET_PIT2, &pit)?;
        Ok(())
    })?;
    // What comes after this is nobody's.
    many.mask_pin(0)
}

/// An eventfd whose interrupt is an MSI for all.
fn listen(many: &Many) -> Result<File, String> {
    #[repr(C)]
    struct Routing {
        header: kvm_irq_routing,
        entry: kvm_irq_routing_entry,
    }
    let mut entry = kvm_irq_routing_entry {
        gsi: MSI_GSI,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi.address_lo = message().address_lo;
    entry.u.msi.__bindgen_anon_1 = Default::default();
    entry.u.msi.data = VECTOR.into();
    let header = kvm_irq_routing {
        nr: 1,
        ..Default::default()
    };
    let routing = Routing { header, entry };
    let vm = &many.machine.vm;
    // SAFETY: The header counts the one entry that follows it.
    unsafe { vm.raw(number::SET_GSI_ROUTING, addr_of!(routing) as usize)? };
    // SAFETY: This makes a new descriptor.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(Errno::last().into());
    }
    // SAFETY: The descriptor is ours alone.
    let eventfd = unsafe { File::from_raw_fd(fd) };
    let irqfd = kvm_irqfd {
        fd: eventfd.as_raw_fd() as u32,
        gsi: MSI_GSI,
        ..Default::default()
    };
    vm.set(number::IRQFD, &irqfd)?;
    Ok(eventfd)
}

fn signal(mut eventfd: &File) -> Result<(), String> {
    eventfd
        .write_all(&1u64.to_ne_bytes())
        .map_err(|e| e.to_string())
}

fn irqfd(many: &Many) -> Result<(), String> {
    let eventfd = listen(many)?;
    (0..8).try_for_each(|_| many.each_gets("an irqfd", || signal(&eventfd)))
}

/// What was sent before the VMM reads a local APIC is there. No vCPU runs.
fn nothing_is_under_way(many: &Many) -> Result<(), String> {
    let eventfd = listen(many)?;
    signal(&eventfd)?;
    // The last one would get it last.
    for (id, vcpu) in many.machine.vcpus.iter().enumerate().rev() {
        let lapic: kvm_lapic_state = vcpu.handle.get(number::GET_LAPIC)?;
        if lapic.regs[0x200 + 0x10 * usize::from(VECTOR / 32)] & 1 == 0 {
            return Err(format!("the IRR of vCPU {id} lacks it"));
        }
    }
    Ok(())
}

/// Runs a vCPU until this is over; in `thread` is by whom.
fn serve(vcpu: &Vcpu, thread: &AtomicU64, over: &AtomicBool) -> Result<(), String> {
    // SAFETY: This only asks for the calling thread's name.
    thread.store(unsafe { libc::pthread_self() }, Ordering::SeqCst);
    while !over.load(Ordering::SeqCst) {
        match vcpu.run() {
            Err(Errno(libc::EINTR | libc::EAGAIN)) => {}
            Ok(_) => return Err(format!("exit {}", vcpu.shared().exit_reason)),
            Err(error) => return Err(format!("KVM_RUN: {error:?}")),
        }
    }
    Ok(())
}

/// Does this while all vCPUs run.
fn beside(many: &Many, work: impl FnOnce()) -> Result<(), String> {
    let over = AtomicBool::new(false);
    let names: Vec<_> = many
        .machine
        .vcpus
        .iter()
        .map(|_| AtomicU64::new(0))
        .collect();
    std::thread::scope(|scope| {
        let pairs = many.machine.vcpus.iter().zip(&names);
        let threads: Vec<_> = pairs
            .map(|(vcpu, name)| scope.spawn(|| serve(vcpu, name, &over)))
            .collect();
        work();
        over.store(true, Ordering::SeqCst);
        for (thread, name) in threads.iter().zip(&names) {
            while !thread.is_finished() {
                // SAFETY: The thread has not been joined, so its name is still its own.
                unsafe { libc::pthread_kill(name.load(Ordering::SeqCst), libc::SIGUSR1) };
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        for thread in threads {
            thread.join().map_err(|_| "a vCPU's thread")??;
        }
        Ok(())
    })
}

fn main() -> ExitCode {
    catch_interruptions();
    let mut tap = Tap::start();
    let path = std::env::var("DEVICE").unwrap_or_else(|_| "/dev/pacifica".into());
    let device = Handle::open(&path).map_err(|e| e.to_string());
    let many = match device.and_then(|device| Many::new(&device)) {
        Ok(many) => many,
        Err(error) => {
            tap.result("a VM with many vCPUs", Err(error));
            return tap.finish();
        }
    };
    let served = beside(&many, || {
        let ready = patience::until("all vCPUs are ready", || {
            (0..CPUS).all(|id| many.count(id, 8) == 1)
        });
        let ok = ready.is_ok();
        tap.result("all vCPUs are ready", ready);
        for (name, test) in [
            ("an MSI for all", msi as fn(&Many) -> Result<(), String>),
            ("an edge of the IOAPIC for all", edge),
            ("a level of the IOAPIC for all", level),
            ("a tick of the PIT for all", tick),
            ("an irqfd for all", irqfd),
        ] {
            if ok {
                tap.result(name, test(&many));
            }
        }
    });
    tap.result("all vCPUs come back", served);
    tap.result(
        "KVM_GET_LAPIC sees what was sent",
        nothing_is_under_way(&many),
    );
    tap.finish()
}
