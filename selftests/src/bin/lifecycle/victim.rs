// SPDX-License-Identifier: GPL-2.0-only

//! A small VM to be run and killed.

use kvm_bindings::*;
use selftests::kvm::{number, set_cpuid, supported_cpuid, Errno, Handle};
use selftests::machine::{map, Vcpu};
use selftests::memory::Mapping;

/// What the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Spins with interrupts off.
    Spin,
    /// Writes to a port for ever.
    Ports,
    /// Reads memory that is not there for ever.
    Mmio,
    /// Touches all its memory, page after page, for ever.
    Memory,
    /// Waits in HLT, which only its VMM's death ends.
    Timer,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [
        Self::Spin,
        Self::Ports,
        Self::Mmio,
        Self::Memory,
        Self::Timer,
    ];

    fn code(self) -> &'static [u8] {
        match self {
            // cli; 1: jmp 1b
            Self::Spin => &[0xfa, 0xeb, 0xfe],
            // 1: out %al, $0x10; jmp 1b
            Self::Ports => &[0xe6, 0x10, 0xeb, 0xfc],
            // mov $0xf000, %ax; mov %ax, %ds; 1: mov 0, %al; jmp 1b
            Self::Mmio => &[0xb8, 0, 0xf0, 0x8e, 0xd8, 0xa0, 0, 0, 0xeb, 0xfb],
            // 1: mov $0x4000, %bx; 2: incb (%bx); add $0x1000, %bx; cmp $0xe000, %bx; jb 2b; jmp 1b
            Self::Memory => &[
                0xbb, 0, 0x40, 0xfe, 0x07, 0x81, 0xc3, 0, 0x10, 0x81, 0xfb, 0, 0xe0, 0x72, 0xf4,
                0xeb, 0xef,
            ],
            // sti; 1: hlt; jmp 1b
            Self::Timer => &[0xfb, 0xf4, 0xeb, 0xfd],
        }
    }
}

/// The VM.
pub(crate) struct Victim {
    pub(crate) device: Handle,
    pub(crate) vm: Handle,
    pub(crate) vcpus: Vec<Vcpu>,
    /// Its memory.
    pub(crate) ram: Mapping,
}

impl Victim {
    /// Makes the VM, with two virtual CPUs at the beginning of the code.
    pub(crate) fn new(path: &str, kind: Kind) -> Result<Self, String> {
        let device = Handle::open(path).map_err(|e| format!("{path}: {e}"))?;
        let vm = device.open_with(number::CREATE_VM, 0)?;
        let ram = Mapping::anonymous(0x8_0000).map_err(|e| e.to_string())?;
        ram.write(0x1000, kind.code());
        map(&vm, 0, 0, 0, &ram)?;
        if kind == Kind::Timer {
            vm.call(number::CREATE_IRQCHIP, 0)?;
        }
        let cpuid = supported_cpuid(&device)?;
        let mut vcpus = Vec::new();
        for id in 0..2 {
            let vcpu = Vcpu::create(&device, &vm, id)?;
            set_cpuid(&vcpu.handle, &cpuid)?;
            let mut sregs: kvm_sregs = vcpu.handle.get(number::GET_SREGS)?;
            sregs.cs.base = 0;
            sregs.cs.selector = 0;
            vcpu.handle.set(number::SET_SREGS, &sregs)?;
            let regs = kvm_regs {
                rip: 0x1000,
                rsp: 0x3000,
                rflags: 2,
                ..Default::default()
            };
            vcpu.handle.set(number::SET_REGS, &regs)?;
            vcpus.push(vcpu);
        }
        Ok(Self {
            device,
            vm,
            vcpus,
            ram,
        })
    }

    /// Runs the first virtual CPU through so many exits. A host that freezes processes interrupts,
    /// too.
    pub(crate) fn steps(&self, count: u32) -> Result<(), String> {
        let step = || match self.vcpus[0].run() {
            Ok(_) | Err(Errno(libc::EINTR)) => Ok(()),
            Err(errno) => Err(errno.into()),
        };
        (0..count).try_for_each(|_| step())
    }

    /// Runs one or two virtual CPUs for ever, each on its thread.
    pub(crate) fn run_on_threads(&self, count: usize) {
        std::thread::scope(|scope| {
            for vcpu in self.vcpus.iter().take(count) {
                scope.spawn(move || loop {
                    let _ = vcpu.run();
                });
            }
        });
    }
}
