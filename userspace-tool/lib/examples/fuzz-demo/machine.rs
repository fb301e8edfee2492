// SPDX-License-Identifier: GPL-2.0-only

//! The executor: one run of the guest, from the snapshot to its end, and back.

use std::path::Path;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use pacifica_vm::kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use pacifica_vm::vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryRegion};
use pacifica_vm::{is_limit, Memory, Snapshot, Time};

use crate::symbols::Symbols;
use crate::Outcome;

// What guest/guest.h says.
const ENTRY: u64 = 0x10000;
const INPUT: GuestAddress = GuestAddress(0x9000);
const COVERAGE: GuestAddress = GuestAddress(0x8000);
/// How many places the guest tells apart.
pub(crate) const COVERAGE_SIZE: usize = 4096;
/// The longest input.
pub(crate) const INPUT_MOST: usize = 4096 - 4;
const PORT_READY: u16 = 0xd0;
const PORT_DONE: u16 = 0xd1;
const PORT_CRASH: u16 = 0xd2;
const HANG: u64 = 0x100;

const MEMORY: usize = 2 << 20;
/// Old contents that may be kept: what the guest can write to.
const LIMIT: u64 = 1 << 20;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// By itself.
    Done,
    /// By a bug: what it was, and where.
    Crash(String),
}

/// The guest, which can be run again and again.
pub(crate) struct Machine {
    // The snapshot, the vCPU and the VM go before the memory.
    snapshot: Option<Snapshot>,
    vcpu: VcpuFd,
    vm: VmFd,
    memory: Memory,
    symbols: Symbols,
}

impl Machine {
    /// Starts the guest that is in this directory, and takes the snapshot when it is ready.
    pub(crate) fn start(node: &str, directory: &Path) -> Outcome<Self> {
        let kvm = pacifica_vm::open(node).map_err(|error| format!("{node}: {error}"))?;
        let vm = kvm.create_vm()?;
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY)])?;
        for (slot, region) in (0..).zip(memory.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.mapping().as_ptr() as u64,
            };
            // SAFETY: The mapping is the guest's alone, and this object drops it last.
            unsafe { vm.set_user_memory_region(slot) }?;
        }
        let file = directory.join("guest.bin");
        let image = std::fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        memory.write_slice(&image, GuestAddress(ENTRY))?;
        let mut vcpu = vm.create_vcpu(0)?;
        set_up(&vcpu)?;
        match vcpu.run()? {
            VcpuExit::IoOut(PORT_READY, _) => {}
            other => return Err(format!("the guest does not start: {other:?}").into()),
        }
        let mut machine = Self {
            snapshot: None,
            vcpu,
            vm,
            memory,
            symbols: Symbols::read(&directory.join("guest.symbols"))?,
        };
        machine.snapshot = Some(Snapshot::take(&machine.vm, &machine.memory, LIMIT)?);
        Ok(machine)
    }

    /// Runs the guest with an input. What it came by is added to `coverage`, which is zeros.
    pub(crate) fn run(
        &mut self,
        input: &[u8],
        coverage: &mut [u8; COVERAGE_SIZE],
    ) -> Outcome<Exit> {
        let mut message = (input.len() as u32).to_le_bytes().to_vec();
        message.extend(input);
        // The library announces it, so that the reset takes it back.
        self.memory.write_slice(&message, INPUT)?;
        let exit = match self.vcpu.run() {
            Ok(VcpuExit::IoOut(PORT_DONE, _)) => Exit::Done,
            Ok(VcpuExit::IoOut(PORT_CRASH, _)) => {
                let regs = self.vcpu.get_regs()?;
                let place = self.symbols.name(regs.rbx);
                Exit::Crash(match regs.rax {
                    HANG => format!("hang in {place}"),
                    0 => format!("divide error in {place}"),
                    14 => format!("page fault in {place}, at {:#x}", regs.rcx),
                    vector => format!("exception {vector} in {place}"),
                })
            }
            Ok(VcpuExit::Shutdown) => Exit::Crash("triple fault".into()),
            Ok(other) => Exit::Crash(format!("{other:?}")),
            Err(error) if is_limit(&error) => Exit::Crash("writes without end".into()),
            Err(error) => return Err(format!("KVM_RUN: {error}").into()),
        };
        // Not `read_slice`, after which the page would be kept as if it had been written.
        self.memory.peek(coverage, COVERAGE)?;
        Ok(exit)
    }

    /// Back to the snapshot; answers how many pages were put back. The coverage is zeros again,
    /// too.
    pub(crate) fn reset(&mut self) -> Outcome<u64> {
        let snapshot = self.snapshot.as_ref().ok_or("no snapshot")?;
        Ok(snapshot.reset(Time::GoesBack)?)
    }
}

/// Protected mode with flat segments, at the entry.
fn set_up(vcpu: &VcpuFd) -> Outcome {
    let mut sregs = vcpu.get_sregs()?;
    let data = kvm_segment {
        limit: u32::MAX,
        selector: 16,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    sregs.cs = kvm_segment {
        selector: 8,
        type_: 11,
        ..data
    };
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs)?;
    let regs = kvm_regs {
        rip: ENTRY,
        rflags: 2,
        ..Default::default()
    };
    Ok(vcpu.set_regs(&regs)?)
}
