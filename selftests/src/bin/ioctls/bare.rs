// SPDX-License-Identifier: GPL-2.0-only

//! A VM with one virtual CPU in real mode and a page of code.

use kvm_bindings::*;
use selftests::kvm::{number, set_cpuid, supported_cpuid, Handle};
use selftests::machine::{map, Vcpu};
use selftests::memory::Mapping;

/// Guest memory, from address 0.
pub(crate) const RAM: usize = 0x10_0000;
/// Where the code is.
pub(crate) const CODE: u64 = 0x1000;
/// OUT of AL to port 0x10; the tests' way to come back.
pub(crate) const OUT: [u8; 2] = [0xe6, 0x10];

/// The device, a VM on it, and what the VM is made of.
pub(crate) struct Bare {
    pub(crate) device: Handle,
    pub(crate) vm: Handle,
    pub(crate) ram: Mapping,
    pub(crate) vcpu: Vcpu,
}

/// Opens the device and makes a VM.
pub(crate) fn vm(path: &str) -> Result<(Handle, Handle), String> {
    let device = Handle::open(path).map_err(|e| format!("{path}: {e}"))?;
    let vm = device.open_with(number::CREATE_VM, 0)?;
    Ok((device, vm))
}

impl Bare {
    /// A VM without in-kernel devices, ready to run the code.
    pub(crate) fn new(path: &str, code: &[u8]) -> Result<Self, String> {
        Self::with(path, code, |_| Ok(()))
    }

    /// As [`Bare::new`], with something done to the VM before its virtual CPU is made.
    pub(crate) fn with(
        path: &str,
        code: &[u8],
        prepare: impl FnOnce(&Handle) -> Result<(), String>,
    ) -> Result<Self, String> {
        Self::with_id(path, code, 0, prepare)
    }

    /// The same with a virtual CPU of this number, which runs also if it is not the first.
    pub(crate) fn with_id(
        path: &str,
        code: &[u8],
        id: u32,
        prepare: impl FnOnce(&Handle) -> Result<(), String>,
    ) -> Result<Self, String> {
        let (device, vm) = vm(path)?;
        let ram = Mapping::anonymous(RAM).map_err(|e| e.to_string())?;
        ram.write(CODE as usize, code);
        map(&vm, 0, 0, 0, &ram)?;
        prepare(&vm)?;
        let vcpu = Vcpu::create(&device, &vm, id)?;
        if id != 0 {
            let mp_state = KVM_MP_STATE_RUNNABLE;
            vcpu.handle
                .set(number::SET_MP_STATE, &kvm_mp_state { mp_state })?;
        }
        set_cpuid(&vcpu.handle, &supported_cpuid(&device)?)?;
        let bare = Self {
            device,
            vm,
            ram,
            vcpu,
        };
        bare.start()?;
        Ok(bare)
    }

    /// One whose guest does not exit by itself.
    pub(crate) fn endless(path: &str, code: &[u8]) -> Result<Self, String> {
        Self::new(path, code)?.interrupts_on()
    }

    /// Lets the guest have interrupts on: on Bochs the host's do not end it else
    /// (`bochs-intr-masked` in guests/excuses).
    pub(crate) fn interrupts_on(self) -> Result<Self, String> {
        let mut regs: kvm_regs = self.vcpu.handle.get(number::GET_REGS)?;
        regs.rflags |= 1 << 9;
        self.vcpu.handle.set(number::SET_REGS, &regs)?;
        Ok(self)
    }

    /// Sets the virtual CPU to the beginning of the code.
    pub(crate) fn start(&self) -> Result<(), String> {
        let mut sregs: kvm_sregs = self.vcpu.handle.get(number::GET_SREGS)?;
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        self.vcpu.handle.set(number::SET_SREGS, &sregs)?;
        let regs = kvm_regs {
            rip: CODE,
            rsp: 0x8000,
            rflags: 2,
            ..Default::default()
        };
        self.vcpu.handle.set(number::SET_REGS, &regs)?;
        Ok(())
    }

    /// Runs until the guest writes a byte to a port; answers the byte.
    pub(crate) fn byte(&self) -> Result<u8, String> {
        self.vcpu.run()?;
        let shared = self.vcpu.shared();
        if shared.exit_reason != KVM_EXIT_IO {
            return Err(format!(
                "exit {} instead of KVM_EXIT_IO",
                shared.exit_reason
            ));
        }
        // SAFETY: The exit reason says which part of the union is meant.
        let io = unsafe { shared.__bindgen_anon_1.io };
        Ok(self.vcpu.page().read(io.data_offset as usize, 1)[0])
    }

    /// Runs once; answers the exit's reason.
    pub(crate) fn exit(&self) -> Result<u32, String> {
        self.vcpu.run()?;
        Ok(self.vcpu.shared().exit_reason)
    }
}
