// SPDX-License-Identifier: GPL-2.0-only

//! One round: a few VMs, and threads that do everything to them at once.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use kvm_bindings::*;
use selftests::cpus::{pin, usable};
use selftests::kvm::{number, supported_cpuid, Answer, Errno, Handle};

use crate::guest;
use crate::report::Report;
use crate::rng::Rng;
use crate::table::{implemented, Argument, Ioctl, Kind, IOCTLS};
use crate::world::{self, *};

/// How long a round's threads work.
const TIME: Duration = Duration::from_millis(400);
const THREADS: usize = 4;

/// What a thread has.
struct Thread<'a> {
    rng: Rng,
    index: usize,
    fixed: &'a Fixed,
    report: &'a Report,
    /// The names of the ioctls that the module has.
    known: &'a [&'static str],
}

/// Runs a round; its child process ends after it.
pub(crate) fn round(path: &str, seed: u64, number: u64, report: &Report) -> Result<(), String> {
    let mut rng = Rng::new(seed, number);
    let threads = 1 + rng.below(THREADS);
    let cpuid = supported_cpuid(&Handle::open(path).map_err(|e| e.to_string())?)?;
    let fixed = Fixed::new(cpuid, threads, rng.once_in(2));
    set_up(path, &mut rng, &fixed)?;
    let known = implemented();
    let stop = AtomicBool::new(false);
    let ids = [const { AtomicI32::new(0) }; THREADS];
    let working = AtomicU64::new(threads as u64);
    std::thread::scope(|scope| {
        for index in 0..threads {
            let mut thread = Thread {
                rng: Rng::new(rng.next(), index as u64),
                index,
                fixed: &fixed,
                report,
                known: &known,
            };
            let (ids, stop, working) = (&ids, &stop, &working);
            scope.spawn(move || {
                // SAFETY: A plain system call.
                ids[index].store(unsafe { libc::gettid() }, SeqCst);
                while !stop.load(SeqCst) {
                    thread.act();
                }
                ids[index].store(0, SeqCst);
                working.fetch_sub(1, SeqCst);
            });
        }
        // Signals end whatever waits.
        let start = Instant::now();
        while working.load(SeqCst) != 0 {
            std::thread::sleep(Duration::from_millis(3));
            stop.store(start.elapsed() > TIME, SeqCst);
            for id in &ids {
                let id = id.load(SeqCst);
                if id != 0 {
                    // SAFETY: A signal that a handler takes, to a thread of this process.
                    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), id, libc::SIGUSR1) };
                }
            }
        }
    });
    Ok(())
}

/// Opens the device.
fn open(path: &str) -> Result<RawFd, String> {
    use std::os::fd::IntoRawFd;
    let file = std::fs::File::options().read(true).write(true).open(path);
    Ok(file.map_err(|error| error.to_string())?.into_raw_fd())
}

/// The VMs that a round begins with: with memory, some with interrupt controllers.
fn set_up(path: &str, rng: &mut Rng, fixed: &Fixed) -> Result<(), String> {
    for index in 0..DEVICES {
        fixed.put(Kind::Device, index, open(path)?);
    }
    for index in 0..6 {
        fixed.new_event(index);
    }
    guest::fill_memory(rng);
    let device = fixed.at(Kind::Device, 0);
    for index in 0..1 + rng.below(VMS) {
        let vm = world::ioctl(device, number::CREATE_VM, 0)?;
        fixed.put(Kind::Vm, index, vm);
        let region = kvm_userspace_memory_region {
            flags: rng.pick(&[0, KVM_MEM_LOG_DIRTY_PAGES]),
            memory_size: RAM_SIZE as u64,
            userspace_addr: RAM as u64,
            ..Default::default()
        };
        let argument = std::ptr::from_ref(&region) as usize;
        world::ioctl(vm, number::SET_USER_MEMORY_REGION, argument)?;
        match rng.below(4) {
            0 => {}
            1 => enable(vm, KVM_CAP_SPLIT_IRQCHIP, 24),
            _ => {
                world::ioctl(vm, number::CREATE_IRQCHIP, 0)?;
                if rng.once_in(2) {
                    let pit = kvm_pit_config::default();
                    world::ioctl(vm, number::CREATE_PIT2, std::ptr::from_ref(&pit) as usize)?;
                }
            }
        }
        if rng.once_in(4) {
            enable(vm, KVM_CAP_X86_USER_SPACE_MSR, 7);
        }
        if rng.once_in(4) {
            enable(vm, KVM_CAP_DIRTY_LOG_RING, rng.pick(&[0x1000, 0x8000]));
        }
        for id in 0..1 + rng.below(3) {
            let vcpu = world::ioctl(vm, number::CREATE_VCPU, id)?;
            fixed.keep(rng, Kind::Vcpu, vcpu);
            set_cpuid(fixed, vcpu);
            if rng.once_in(2) {
                start_clock(vcpu);
            }
            guest::set_state(rng, vcpu);
        }
    }
    Ok(())
}

/// A capability of a VM; where there is no such thing it is refused.
fn enable(vm: RawFd, cap: u32, argument: u64) {
    let mut cap = kvm_enable_cap {
        cap,
        ..Default::default()
    };
    cap.args[0] = argument;
    let _ = world::ioctl(vm, number::ENABLE_CAP, std::ptr::from_ref(&cap) as usize);
}

/// The guest's paravirtual clock, as the guest starts it.
fn start_clock(vcpu: RawFd) {
    let msr: [u64; 3] = [1, 0x4b56_4d01, 0x7001];
    let _ = world::ioctl(vcpu, number::SET_MSRS, msr.as_ptr() as usize);
}

fn set_cpuid(fixed: &Fixed, vcpu: RawFd) {
    let mut words = vec![fixed.cpuid.len() as u64];
    for entry in &fixed.cpuid {
        let mut entry_words = [0u64; size_of::<kvm_cpuid_entry2>() / 8];
        // SAFETY: Both are plain data of the same size.
        unsafe {
            (&raw mut entry_words)
                .cast::<kvm_cpuid_entry2>()
                .write(*entry)
        };
        words.extend(entry_words);
    }
    let _ = world::ioctl(vcpu, number::SET_CPUID2, words.as_ptr() as usize);
}

impl Thread<'_> {
    /// Anything.
    fn act(&mut self) {
        match self.rng.below(64) {
            0..=35 => self.call(),
            36..=49 => self.run(),
            50..=53 => self.change_memory(),
            54 => self.change_run_page(),
            55 => self.change_mapping(),
            56 => self.use_event(),
            57 => self.touch_file(),
            58 => self.migrate(),
            59 if self.fixed.closes => self.close(),
            60 if self.rng.once_in(16) => self.fork(),
            61 => {
                if let Some(vcpu) = self.fixed.file(&mut self.rng, Kind::Vcpu) {
                    guest::set_state(&mut self.rng, vcpu);
                }
            }
            62 if self.rng.once_in(8) => guest::fill_memory(&mut self.rng),
            _ => {}
        }
    }

    /// Any ioctl, most often on a file that has it.
    fn call(&mut self) {
        let ioctl = &IOCTLS[self.rng.below(IOCTLS.len())];
        let kind = match self.rng.below(32) {
            0 => self.rng.pick(&[Kind::Device, Kind::Vm, Kind::Vcpu]),
            _ => ioctl.kind,
        };
        let Some(fd) = self.fixed.file(&mut self.rng, kind) else {
            return;
        };
        let same = |other: &&Ioctl| other.kind == kind && other.number == ioctl.number;
        match IOCTLS.iter().find(same) {
            Some(there) if there.number == number::RUN => self.run(),
            Some(there) => self.check(there, fd),
            None => {
                let answer = world::ioctl(fd, ioctl.number, 0x1000);
                self.expect(kind, ioctl.name, answer, &[libc::ENOTTY, libc::EINVAL]);
            }
        }
    }

    fn check(&mut self, ioctl: &Ioctl, fd: RawFd) {
        // One number of old says no size.
        let size = match ioctl.number.size() {
            0 => 64,
            size => size,
        };
        let made = match ioctl.argument {
            Argument::Value(usual) => {
                let value = match self.rng.below(4) {
                    0 => self.rng.value(),
                    _ => self.rng.pick(usual),
                };
                let answer = world::ioctl(fd, ioctl.number, value as usize);
                return self.judge(ioctl, answer, Reach::All);
            }
            Argument::Made(make) => make(&mut self.rng, self.fixed, size),
            Argument::State(get) => {
                let mut state = vec![0u8; size];
                state[0] = self.rng.below(4) as u8;
                let _ = world::ioctl(fd, get, state.as_mut_ptr() as usize);
                self.rng.mutate(&mut state);
                if ioctl.name.starts_with("SET_SREGS") {
                    guest::spare_emulator(&mut state);
                }
                state
            }
        };
        let (address, mut reach) = place(&mut self.rng, self.index, &made);
        // What an array's header says may lead further than the memory goes.
        if reach == Reach::All && made.len() != size {
            reach = Reach::Part;
        }
        let answer = world::ioctl(fd, ioctl.number, address);
        self.judge(ioctl, answer, reach);
    }

    /// Whether the documentation knows this answer.
    fn judge(&mut self, ioctl: &Ioctl, answer: Answer, reach: Reach) {
        if let Ok(fd) = answer {
            match ioctl.name {
                "CREATE_VM" => self.fixed.keep(&mut self.rng, Kind::Vm, fd),
                "CREATE_VCPU" => self.fixed.keep(&mut self.rng, Kind::Vcpu, fd),
                "GET_STATS_FD" | "CREATE_GUEST_MEMFD" if fd > 2 => {
                    // SAFETY: The descriptor is new.
                    unsafe { libc::close(fd) };
                }
                _ => {}
            }
        }
        let mut allowed = ioctl.errors.to_vec();
        allowed.push(libc::ENOMEM);
        if reach != Reach::All {
            allowed.push(libc::EFAULT);
        }
        let ambiguous = IOCTLS
            .iter()
            .filter(|other| other.name == ioctl.name)
            .count()
            > 1;
        if !self.known.contains(&ioctl.name) || ambiguous {
            allowed.extend([libc::ENOTTY, libc::EINVAL]);
        }
        self.report.count(ioctl, answer.is_ok());
        if reach == Reach::None && answer.is_ok() && ioctl.name != "SET_SIGNAL_MASK" {
            let text = format!(
                "{:?} {} succeeds without its argument",
                ioctl.kind, ioctl.name
            );
            self.report.fail(&text);
        }
        self.expect(ioctl.kind, ioctl.name, answer, &allowed);
    }

    fn expect(&self, kind: Kind, name: &str, answer: Answer, allowed: &[i32]) {
        let Err(errno) = answer else { return };
        // A descriptor that was closed may be another's by now.
        let closed = [libc::EBADF, libc::ENOTTY];
        if allowed.contains(&errno.0) || self.fixed.closes && closed.contains(&errno.0) {
            return;
        }
        self.report
            .fail(&format!("{kind:?} {name}: {errno:?} is not documented"));
    }

    /// `KVM_RUN`, some times in a row.
    fn run(&mut self) {
        let index = self.rng.below(VCPUS);
        let vcpu = self.fixed.at(Kind::Vcpu, index);
        if vcpu <= 0 {
            return;
        }
        let Some(ioctl) = IOCTLS.iter().find(|ioctl| ioctl.number == number::RUN) else {
            return;
        };
        for _ in 0..1 + self.rng.below(24) {
            let answer = world::ioctl(vcpu, number::RUN, 0);
            self.judge(ioctl, answer, Reach::All);
            let mut reason = [0; 4];
            peek(RUN_PAGES + index * RUN_STRIDE + 8, &mut reason);
            self.report.exit(u32::from_le_bytes(reason));
            match (answer, u32::from_le_bytes(reason)) {
                (Err(Errno(libc::EINTR)), _) => break,
                (Err(_), _)
                | (_, KVM_EXIT_SHUTDOWN | KVM_EXIT_FAIL_ENTRY)
                | (_, KVM_EXIT_INTERNAL_ERROR) => guest::set_state(&mut self.rng, vcpu),
                _ => {}
            }
        }
    }

    /// The guests' memory: written, given back, protected, gone.
    fn change_memory(&mut self) {
        let pages = 1 + self.rng.below(16);
        let address = RAM + self.rng.below(RAM_SIZE / 4096 - pages) * 4096;
        let length = pages * 4096;
        let usable = libc::PROT_READ | libc::PROT_WRITE;
        let at = address as *mut libc::c_void;
        // SAFETY: The guests' memory, which nothing here refers to.
        unsafe {
            match self.rng.below(8) {
                0 => drop(libc::munmap(at, length)),
                1 => drop(libc::mprotect(at, length, libc::PROT_READ)),
                2 => drop(libc::mprotect(at, length, libc::PROT_NONE)),
                3 => drop(libc::madvise(at, length, libc::MADV_DONTNEED)),
                4 => drop(libc::madvise(at, length, libc::MADV_PAGEOUT)),
                5 => drop(libc::madvise(RAM as *mut _, RAM_SIZE, libc::MADV_HUGEPAGE)),
                6 => map(address, length, usable),
                _ => {
                    let mut bytes = [0; 64];
                    self.rng.fill(&mut bytes);
                    poke(address + self.rng.below(4000), &bytes);
                }
            }
        }
        if self.rng.once_in(4) {
            map(RAM, RAM_SIZE, usable);
            guest::fill_memory(&mut self.rng);
        }
    }

    /// What a vCPU shares with its VMM, at any moment.
    fn change_run_page(&mut self) {
        let page = RUN_PAGES + self.rng.below(VCPUS) * RUN_STRIDE;
        let mut bytes = [0; 8];
        match self.rng.below(5) {
            // request_interrupt_window, immediate_exit
            0 => drop(poke(
                page,
                &[self.rng.below(2) as u8, self.rng.below(2) as u8],
            )),
            1 => drop(poke(page, &[0, 0])),
            // Which registers are exchanged here.
            2 => {
                let sets = [self.rng.below(8) as u64, self.rng.below(8) as u64];
                let at = std::mem::offset_of!(kvm_run, kvm_valid_regs);
                poke(page + at, &sets.map(u64::to_le_bytes).concat());
            }
            _ => {
                self.rng.fill(&mut bytes);
                poke(page + self.rng.below(0x3000 / 8) * 8, &bytes);
            }
        }
    }

    /// The mappings of those pages.
    fn change_mapping(&mut self) {
        let index = self.rng.below(VCPUS);
        let address = RUN_PAGES + index * RUN_STRIDE;
        let vcpu = self.fixed.at(Kind::Vcpu, index);
        if self.rng.once_in(4) {
            map(address, 0x4000, libc::PROT_NONE);
        } else if vcpu > 0 {
            let _ = map_shared(
                vcpu,
                address,
                1 + self.rng.below(4),
                self.rng.below(4) as i64 * 4096,
            );
            let _ = map_shared(vcpu, address, 3, 0);
        }
    }

    fn use_event(&mut self) {
        let event = self.fixed.event(&mut self.rng);
        let mut value = 1u64;
        match self.rng.below(4) {
            0 => self.fixed.new_event(self.rng.next() as usize),
            // SAFETY: Eight bytes of this function's own; a bad descriptor is refused.
            1 => drop(unsafe { libc::read(event.max(3), (&raw mut value).cast(), 8) }),
            // SAFETY: As above.
            _ => drop(unsafe { libc::write(event.max(3), (&raw const value).cast(), 8) }),
        }
    }

    /// What else can be done with a file.
    fn touch_file(&mut self) {
        let kind = self.rng.pick(&[Kind::Device, Kind::Vm, Kind::Vcpu]);
        let Some(fd) = self.fixed.file(&mut self.rng, kind) else {
            return;
        };
        let mut bytes = [0u8; 64];
        let mut poll = libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: The kernel writes to this function's own memory only.
        unsafe {
            libc::read(fd, bytes.as_mut_ptr().cast(), 64);
            libc::write(fd, bytes.as_ptr().cast(), 64);
            libc::lseek(fd, 4096, libc::SEEK_SET);
            libc::poll(&raw mut poll, 1, 0);
            let copy = libc::dup(fd);
            if copy > 2 {
                libc::close(copy);
            }
        }
    }

    fn migrate(&mut self) {
        let cpus = usable();
        let one = [self.rng.pick(cpus)];
        let _ = pin(if self.rng.once_in(2) { cpus } else { &one });
    }

    fn close(&mut self) {
        match self.rng.below(4) {
            0 => self.fixed.put(Kind::Vm, self.rng.below(VMS), 0),
            _ => self.fixed.put(Kind::Vcpu, self.rng.below(VCPUS), 0),
        }
    }

    /// The VMs are of no use to a child.
    fn fork(&mut self) {
        let Some(vm) = self.fixed.file(&mut self.rng, Kind::Vm) else {
            return;
        };
        // SAFETY: The child makes system calls only, and ends.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                let answer = libc::ioctl(vm, number::CHECK_EXTENSION.0, 0);
                let errno = *libc::__errno_location();
                libc::_exit(i32::from(answer >= 0 || errno != libc::EIO));
            }
            let mut status = 0;
            while child > 0 && libc::waitpid(child, &raw mut status, 0) < 0 {}
            if child > 0 && status != 0 && !self.fixed.closes {
                self.report
                    .fail(&format!("a child used a VM of its parent: {status:#x}"));
            }
        }
    }
}
