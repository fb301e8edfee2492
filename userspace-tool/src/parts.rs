// SPDX-License-Identifier: GPL-2.0-only

//! The parts of a virtual machine that have a state: reading it, and putting it back.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use pacifica_vm::{Feature, Snapshot, Time};

use crate::boot::{cpu, Entry};
use crate::console::Console;
use crate::devices::bus::{lock, Shared};
use crate::devices::pci::PciPorts;
use crate::devices::power::PowerManagement;
use crate::devices::rtc::Rtc;
use crate::devices::serial::Serial;
use crate::devices::virtio::pci::VirtioPci;
use crate::error::{Error, Result};
use crate::fork::{Child, Jobs};
use crate::generation;
use crate::layout::SCI_IRQ;
use crate::memory::GuestMemory;
use crate::outcome::{Outcome, Stop};
use crate::state::file::{self, Form};
use crate::state::{self, chips, vcpu};

/// The parts. Their states are read and written while the processors rest.
pub(crate) struct Parts {
    /// The machine, as its machine.toml has it.
    pub(crate) machine: String,
    /// The size of its memory.
    pub(crate) memory_size: u64,
    /// Whether it has interrupt controllers.
    pub(crate) irqchip: bool,
    /// The module's handles. Those of processors are not for `KVM_RUN`.
    pub(crate) kvm: Kvm,
    pub(crate) vm: Arc<VmFd>,
    pub(crate) vcpus: Vec<VcpuFd>,
    /// The devices on ports, and those on the bus.
    pub(crate) devices: Devices,
    pub(crate) functions: Vec<Shared<VirtioPci>>,
    pub(crate) memory: GuestMemory,
    /// An instant that the machine can go back to.
    pub(crate) instant: Mutex<Option<Instant>>,
}

/// An instant: what the module keeps, and the states of the devices.
pub(crate) struct Instant {
    snapshot: Snapshot,
    devices: state::Devices,
}

/// The devices on ports.
pub(crate) struct Devices {
    pub(crate) serial: Shared<Serial>,
    pub(crate) rtc: Shared<Rtc>,
    pub(crate) power: Shared<PowerManagement>,
    pub(crate) pci: Shared<PciPorts>,
}

impl Parts {
    /// The devices on ports, as after reset.
    pub(crate) fn devices(
        vm: &Arc<VmFd>,
        irqchip: bool,
        console: &Console,
        stop: &Arc<Stop>,
    ) -> Result<Devices> {
        Ok(Devices {
            serial: Shared::new(Mutex::new(Serial::new(console.writer()?)?)),
            rtc: Shared::new(Mutex::new(Rtc::new())),
            power: Shared::new(Mutex::new(power(vm, irqchip, stop))),
            pci: Shared::new(Mutex::new(PciPorts::new(stop.clone()))),
        })
    }

    /// Sets the processors up for a kernel that begins here.
    pub(crate) fn set_up(&self, entry: Entry) -> Result<()> {
        generation::renew(&self.memory)?;
        let first = self.vcpus.first();
        first.map_or(Ok(()), |first| cpu::set_up(first, &self.memory, entry))
    }

    /// The devices finish what they have begun, and rest.
    fn rest(&self) {
        (self.functions.iter()).for_each(|function| lock(function).rest());
    }

    /// The devices go on.
    pub(crate) fn go_on(&self) {
        (self.functions.iter()).for_each(|function| lock(function).go_on());
        // One whose processors were paused is not to wonder where the time went; a device that
        // does not know this does without.
        for vcpu in &self.vcpus {
            let _ = vcpu.kvmclock_ctrl();
        }
    }

    /// Does something while the devices rest.
    fn at_rest<T>(&self, action: impl FnOnce() -> T) -> T {
        self.rest();
        let result = action();
        self.go_on();
        result
    }

    /// The state of all. Devices rest.
    fn state(&self) -> Result<state::State> {
        let vcpu = |vcpu| vcpu::State::read(&self.kvm, vcpu, self.irqchip);
        let chips = self.irqchip.then(|| chips::State::read(&self.vm));
        Ok(state::State {
            machine: self.machine.clone(),
            vcpus: self.vcpus.iter().map(vcpu).collect::<Result<_>>()?,
            chips: chips.transpose()?,
            devices: self.state_of_devices(),
        })
    }

    fn state_of_devices(&self) -> state::Devices {
        let functions = self.functions.iter();
        state::Devices {
            serial: lock(&self.devices.serial).state(),
            rtc: lock(&self.devices.rtc).state(),
            power: lock(&self.devices.power).state(),
            pci: lock(&self.devices.pci).state(),
            functions: functions.map(|function| lock(function).state()).collect(),
        }
    }

    /// Puts a state in the place of that of a machine that has not run yet.
    pub(crate) fn restore(&self, state: &state::State) -> Result<()> {
        if state.vcpus.len() != self.vcpus.len() || state.chips.is_some() != self.irqchip {
            return Err(wrong("it has other processors than its machine"));
        }
        if let Some(chips) = &state.chips {
            chips.write(&self.vm)?;
        }
        for (state, vcpu) in state.vcpus.iter().zip(&self.vcpus) {
            state.write(&self.kvm, vcpu)?;
        }
        // They interrupt: the controllers must be there.
        self.restore_devices(&state.devices)?;
        self.renew()
    }

    /// The guest hears that it is another machine now.
    fn renew(&self) -> Result<()> {
        generation::renew(&self.memory)?;
        lock(&self.devices.power).announce_generation();
        Ok(())
    }

    fn restore_devices(&self, state: &state::Devices) -> Result<()> {
        lock(&self.devices.serial).restore(&state.serial)?;
        lock(&self.devices.rtc).restore(state.rtc);
        lock(&self.devices.power).restore(&state.power);
        lock(&self.devices.pci).restore(&state.pci);
        if state.functions.len() != self.functions.len() {
            return Err(wrong("it has another number of devices than its machine"));
        }
        for (number, (function, state)) in self.functions.iter().zip(&state.functions).enumerate() {
            let restored = lock(function).restore(state);
            restored.map_err(|reason| wrong(&format!("device {}: {reason}", number + 1)))?;
        }
        Ok(())
    }

    /// Writes the machine to the file that is given. Processors rest.
    pub(crate) fn save(&self, form: Form, files: Vec<OwnedFd>) -> std::result::Result<u64, String> {
        let file = files.into_iter().next().map(File::from);
        let file = file.ok_or("no descriptor of a file came with the request")?;
        self.at_rest(|| {
            let state = self.state().map_err(|error| error.to_string())?;
            file::write(&file, form, (&self.memory, self.memory_size), state)
                .map_err(|error| error.to_string())
        })
    }
}

impl Parts {
    /// Becomes two; the other one is described so, and has these files. Processors rest.
    pub(crate) fn fork(
        &self,
        other: (&str, String),
        files: Vec<OwnedFd>,
        jobs: &Jobs,
    ) -> std::result::Result<(), String> {
        self.at_rest(|| {
            let state = self.state().map_err(|error| error.to_string())?;
            let child = Child::new(other, files, state, &self.memory, &self.kvm)?;
            // Disks are the first devices.
            for (function, file) in self.functions.iter().zip(&child.files.disks) {
                let copied = lock(function).behind(|disk| disk.copy(file));
                copied.map_err(|error| format!("a copy of a disk: {error}"))?;
            }
            jobs.ask(child).map_err(|error| error.to_string())
        })
    }

    /// Takes a snapshot, in the place of one that is there. Processors rest.
    pub(crate) fn snapshot(&self) -> std::result::Result<(), String> {
        if pacifica_vm::version(&self.kvm, Feature::Snapshot) == 0 {
            return Err("this device has no snapshots: run the machine on /dev/pacifica".into());
        }
        let mut instant = lock(&self.instant);
        self.at_rest(|| {
            *instant = None;
            let taken = self.instant();
            if taken.is_err() {
                // Without a snapshot no device keeps anything, and that cannot fail.
                for function in &self.functions {
                    let _ = lock(function).behind(|device| device.keep(false));
                }
            }
            *instant = Some(taken?);
            Ok(())
        })
    }

    /// This instant. Devices rest.
    fn instant(&self) -> std::result::Result<Instant, String> {
        for function in &self.functions {
            let kept = lock(function).behind(|device| device.keep(true));
            kept.map_err(|error| error.to_string())?;
        }
        // The module needs no more than all of memory.
        let snapshot = Snapshot::take(&*self.vm, &self.memory, self.memory_size);
        Ok(Instant {
            snapshot: snapshot.map_err(|error| error.to_string())?,
            devices: self.state_of_devices(),
        })
    }

    /// Goes back to the snapshot; says how many pages of memory were put back. Processors rest. A
    /// machine of which only a part has gone back is ended: it must not go on.
    pub(crate) fn reset(&self, stop: &Stop) -> std::result::Result<u64, String> {
        let instant = lock(&self.instant);
        let instant = instant.as_ref().ok_or("there is no snapshot of it")?;
        self.rest();
        let kept = |function: &Shared<VirtioPci>| lock(function).behind(|disk| disk.is_kept());
        if !self.functions.iter().all(kept) {
            self.go_on();
            return Err("too much of a disk has changed since its snapshot".into());
        }
        let result = self.go_back(instant);
        match &result {
            Ok(_) => self.go_on(),
            // Devices go on resting.
            Err(reason) => stop.request(Outcome::Host(format!(
                "the machine has gone back to its snapshot in part only: {reason}"
            ))),
        }
        result
    }

    fn go_back(&self, instant: &Instant) -> std::result::Result<u64, String> {
        let pages = instant.snapshot.reset(Time::GoesOn);
        let pages = pages.map_err(|error| error.to_string())?;
        for function in &self.functions {
            let back = lock(function).behind(|device| device.go_back());
            back.map_err(|error| format!("a disk: {error}"))?;
        }
        self.restore_devices(&instant.devices)
            .and_then(|()| self.renew())
            .map_err(|error| error.to_string())?;
        Ok(pages)
    }
}

/// A state that does not belong to its machine.
fn wrong(reason: &str) -> Error {
    Error::State(reason.into())
}

/// The power management, whose interrupt is a level. Without interrupt controllers, it has none.
fn power(fd: &Arc<VmFd>, irqchip: bool, stop: &Arc<Stop>) -> PowerManagement {
    let fd = fd.clone();
    let line = move |up| {
        if irqchip {
            // The line is there, and either level is allowed.
            let _ = fd.set_irq_line(u32::from(SCI_IRQ), up);
        }
    };
    PowerManagement::new(stop.clone(), Box::new(line))
}
