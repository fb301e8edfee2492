// SPDX-License-Identifier: GPL-2.0-only

//! A virtual machine: memory, interrupt controllers, devices, processors.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvm_bindings::{
    kvm_pit_config, kvm_userspace_memory_region, CpuId, KVM_MAX_CPUID_ENTRIES,
    KVM_PIT_SPEAKER_DUMMY,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VmFd};
use vm_memory::{GuestMemory as _, GuestMemoryRegion};

use crate::boot::{self, acpi, cpu, cpuid, Boot};
use crate::console::Console;
use crate::control::server::Handler;
use crate::control::{Answer, Request, State, Status};
use crate::devices::bus::{lock, Bus, Shared};
use crate::devices::pci::msix::VmRoutes;
use crate::devices::pci::{PciPorts, DEVICES};
use crate::devices::power::{DebugExit, KeyboardController, PowerManagement};
use crate::devices::rtc::Rtc;
use crate::devices::serial::Serial;
use crate::devices::virtio::pci::{VirtioPci, WINDOW_SIZE};
use crate::devices::Devices;
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::kvm;
use crate::layout::{
    COM1, COM1_IRQ, COM_PORTS, DEBUG_EXIT, I8042_COMMAND, IDENTITY_MAP, PCI_CONFIG,
    PCI_CONFIG_PORTS, PCI_WINDOW, PM1A_EVENT, PM_PORTS, RTC, SCI_IRQ, TSS,
};
use crate::memory::{self, GuestMemory};
use crate::outcome::{Outcome, Stop};
use crate::summary::Counters;
use crate::vcpu::{self, Vcpu, VcpuThread};

/// How long a pause may take: a processor may wait for a console that is not read.
const PAUSE_LIMIT: Duration = Duration::from_secs(60);

/// What makes a virtual machine.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// What to start.
    pub(crate) boot: Boot,
    /// How many processors there are.
    pub(crate) cpus: u32,
    /// Whether there are interrupt controllers.
    pub(crate) irqchip: bool,
    /// What is plugged in.
    pub(crate) devices: Devices,
}

/// A virtual machine that runs. When it is dropped, its processors' threads end first: nothing uses
/// the memory any more when that goes.
pub(crate) struct Vm {
    threads: Arc<Mutex<Vec<VcpuThread>>>,
    gate: Arc<Gate>,
    stop: Arc<Stop>,
    power: Shared<PowerManagement>,
    config: Config,
    /// The first serial port, for its input.
    pub(crate) serial: Shared<Serial>,
    counters: Counters,
    _fd: Arc<VmFd>,
    _memory: GuestMemory,
}

impl Vm {
    /// Makes a virtual machine and starts its processors. `confine` is called between the two, when
    /// all that is needed is open.
    pub(crate) fn start(
        node: &Path,
        config: &Config,
        console: &Console,
        stop: &Arc<Stop>,
        confine: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let kvm = kvm::open(node)?;
        kvm::require(&kvm, node, config.irqchip)?;
        let limit = kvm.get_max_vcpus();
        if config.cpus as usize > limit {
            return Err(Error::TooManyCpus {
                asked: config.cpus,
                limit,
            });
        }
        let memory = memory::allocate(config.boot.memory_size)?;
        let tables = acpi::Tables::new(config.cpus);
        memory::write(
            &memory,
            "the ACPI tables",
            acpi::Tables::ADDRESS,
            &tables.bytes,
        )?;
        let entry = boot::load(&memory, &config.boot, acpi::Tables::ADDRESS)?;

        let fd = Arc::new(create(&kvm, config.irqchip)?);
        set_memory(&fd, &memory)?;
        let serial = Shared::new(Mutex::new(Serial::new(console.writer()?)?));
        let power = Shared::new(Mutex::new(power(&fd, config.irqchip, stop)));
        let mut bus = bus(&serial, &power, stop);
        let mut pci = PciPorts::new(stop.clone());
        plug_in(&fd, config, &memory, &mut bus, &mut pci)?;
        bus.add(PCI_CONFIG, PCI_CONFIG_PORTS, Arc::new(Mutex::new(pci)));
        let bus = Arc::new(bus);
        if config.irqchip {
            let serial = lock(&serial);
            fd.register_irqfd(serial.interrupt(), COM1_IRQ)
                .map_err(|error| Error::kvm("KVM_IRQFD", error))?;
        }

        let vcpus = create_vcpus(&kvm, &fd, config)?;
        if let Some(first) = vcpus.first() {
            cpu::set_up(first.fd(), &memory, entry)?;
        }
        let mut counters = Counters::default();
        vcpus.iter().for_each(|vcpu| counters.add(vcpu.fd()));
        vcpu::install_kick_handler()?;
        confine()?;
        let vm = Self {
            threads: Arc::default(),
            gate: Arc::default(),
            stop: stop.clone(),
            power,
            config: config.clone(),
            serial,
            counters,
            _fd: fd,
            _memory: memory,
        };
        for vcpu in vcpus {
            let thread = VcpuThread::start(vcpu, bus.clone(), stop.clone(), vm.gate.clone())?;
            lock(&vm.threads).push(thread);
        }
        Ok(vm)
    }

    /// Who answers requests to this machine, which `node` has made. It outlives the machine, and
    /// then does nothing.
    pub(crate) fn handler(&self, node: &Path) -> Handler {
        let (threads, gate, stop) = (self.threads.clone(), self.gate.clone(), self.stop.clone());
        let (power, counters) = (self.power.clone(), self.counters.clone());
        let (config, node, start) = (self.config.clone(), node.to_owned(), Instant::now());
        Box::new(move |request| {
            match request {
                Request::Status => {
                    return Answer::Status(Status {
                        process: std::process::id(),
                        state: if gate.is_closed() {
                            State::Paused
                        } else {
                            State::Running
                        },
                        cpus: config.cpus,
                        memory: config.boot.memory_size,
                        seconds: start.elapsed().as_secs(),
                        device: node.clone(),
                    })
                }
                Request::Pause => {
                    gate.close();
                    lock(&threads).iter().for_each(VcpuThread::kick);
                    if !gate.wait_for_all(PAUSE_LIMIT) {
                        gate.open();
                        return Answer::Error {
                            reason: "a processor waits for its console".into(),
                        };
                    }
                }
                Request::Resume => gate.open(),
                Request::PowerButton => lock(&power).press(),
                Request::Quit => stop.request(Outcome::Stopped),
                Request::Counters => {
                    return match counters.read() {
                        Ok(counters) => Answer::Counters { counters },
                        Err(error) => Answer::Error {
                            reason: error.to_string(),
                        },
                    }
                }
            }
            Answer::Done
        })
    }

    /// Ends the virtual machine; its counters are final then.
    pub(crate) fn end(self) -> Counters {
        self.counters.clone()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // The processors go on without an outcome. If there is one already, it stays.
        self.stop.request(Outcome::Quit);
        self.gate.open();
        let mut threads = lock(&self.threads);
        threads.iter().for_each(VcpuThread::kick);
        threads.drain(..).for_each(VcpuThread::join);
    }
}

/// Makes the virtual machine and its interrupt controllers.
fn create(kvm: &Kvm, irqchip: bool) -> Result<VmFd> {
    let fd = kvm
        .create_vm()
        .map_err(|error| Error::kvm("KVM_CREATE_VM", error))?;
    if fd.check_extension(Cap::SetIdentityMapAddr) {
        fd.set_identity_map_address(IDENTITY_MAP)
            .map_err(|error| Error::kvm("KVM_SET_IDENTITY_MAP_ADDR", error))?;
    }
    if fd.check_extension(Cap::SetTssAddr) {
        fd.set_tss_address(TSS as usize)
            .map_err(|error| Error::kvm("KVM_SET_TSS_ADDR", error))?;
    }
    if irqchip {
        fd.create_irq_chip()
            .map_err(|error| Error::kvm("KVM_CREATE_IRQCHIP", error))?;
        // With the port 0x61 that belongs to the timer: kernels calibrate their clocks with it.
        let config = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        fd.create_pit2(config)
            .map_err(|error| Error::kvm("KVM_CREATE_PIT2", error))?;
    }
    Ok(fd)
}

/// Gives the guest its memory.
fn set_memory(fd: &VmFd, memory: &GuestMemory) -> Result<()> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: The range is a whole mapping that belongs to `memory`, which is used through
        // volatile accesses only and outlives all processors' threads: see `Vm`.
        unsafe { fd.set_user_memory_region(region) }
            .map_err(|error| Error::kvm("KVM_SET_USER_MEMORY_REGION", error))?;
    }
    Ok(())
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

/// Puts the devices on their ports.
fn bus(serial: &Shared<Serial>, power: &Shared<PowerManagement>, stop: &Arc<Stop>) -> Bus {
    let mut bus = Bus::default();
    bus.add(COM1, COM_PORTS, serial.clone());
    bus.add(RTC, 2, Arc::new(Mutex::new(Rtc::new())));
    bus.add(PM1A_EVENT, PM_PORTS, power.clone());
    bus.add(
        I8042_COMMAND,
        1,
        Arc::new(Mutex::new(KeyboardController::new(stop.clone()))),
    );
    bus.add(DEBUG_EXIT, 1, Arc::new(Mutex::new(DebugExit(stop.clone()))));
    bus
}

/// Puts the virtio devices on the PCI bus: window after window, and each doorbell an eventfd that
/// the module watches.
fn plug_in(
    fd: &Arc<VmFd>,
    config: &Config,
    memory: &GuestMemory,
    bus: &mut Bus,
    pci: &mut PciPorts,
) -> Result<()> {
    // Their interrupts are messages to local APICs.
    if !config.irqchip {
        return match config.devices.is_empty() {
            true => Ok(()),
            false => Err(Error::DevicesWithoutInterrupts),
        };
    }
    let devices = config.devices.open()?;
    // The host bridge is one.
    let limit = DEVICES - 1;
    if devices.len() > limit {
        return Err(Error::TooManyDevices {
            asked: devices.len(),
            limit,
        });
    }
    let routes = Arc::new(VmRoutes::new(fd.clone()));
    let windows = (PCI_WINDOW..).step_by(WINDOW_SIZE as usize);
    for (device, address) in devices.into_iter().zip(windows) {
        let function = VirtioPci::new(device, address, memory.clone(), routes.clone())?;
        for (offset, doorbell) in function.doorbells() {
            let place = IoEventAddress::Mmio(u64::from(address + offset));
            fd.register_ioevent(doorbell, &place, NoDatamatch)
                .map_err(|error| Error::kvm("KVM_IOEVENTFD", error))?;
        }
        let function = Shared::new(Mutex::new(function));
        pci.add(function.clone());
        let start = u64::from(address);
        bus.add_memory(start..start + u64::from(WINDOW_SIZE), function);
    }
    Ok(())
}

/// Makes the processors, each with its CPUID table.
fn create_vcpus(kvm: &Kvm, fd: &VmFd, config: &Config) -> Result<Vec<Vcpu>> {
    let supported: CpuId = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(|error| Error::kvm("KVM_GET_SUPPORTED_CPUID", error))?;
    let shape = cpuid::Shape {
        cpus: config.cpus,
        tsc_deadline: config.irqchip && kvm.check_extension(Cap::TscDeadlineTimer),
    };
    (0..config.cpus)
        .map(|id| {
            let vcpu = fd
                .create_vcpu(u64::from(id))
                .map_err(|error| Error::kvm("KVM_CREATE_VCPU", error))?;
            vcpu.set_cpuid2(&cpuid::table(&supported, id, shape)?)
                .map_err(|error| Error::kvm("KVM_SET_CPUID2", error))?;
            cpu::set_up_msrs(&vcpu)?;
            Ok(Vcpu::new(vcpu, id))
        })
        .collect()
}
