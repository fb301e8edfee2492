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
use crate::devices::power::{DebugExit, KeyboardController};
use crate::devices::serial::Serial;
use crate::devices::virtio::pci::{VirtioPci, WINDOW_SIZE};
use crate::devices::virtio::Device;
use crate::devices::Devices;
use crate::error::{Error, Result};
use crate::fork::Jobs;
use crate::gate::Gate;
use crate::kvm;
use crate::layout::{
    COM1, COM1_IRQ, COM_PORTS, DEBUG_EXIT, I8042_COMMAND, IDENTITY_MAP, PCI_CONFIG,
    PCI_CONFIG_PORTS, PCI_WINDOW, PM1A_EVENT, PM_PORTS, RTC, TSS,
};
use crate::machine::Machine;
use crate::memory::{self, GuestMemory};
use crate::outcome::{Outcome, Stop};
use crate::parts::{self, Parts};
use crate::state;
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

/// Where a machine begins.
pub(crate) enum Origin {
    /// Where its kernel does.
    Boot,
    /// Where it was saved, with this memory.
    Saved(Box<state::State>, GuestMemory),
    /// Where its parent was.
    Forked(Forked),
}

/// What a machine has from its parent, and of its own.
pub(crate) struct Forked {
    pub(crate) state: Box<state::State>,
    pub(crate) memory: GuestMemory,
    pub(crate) kvm: Kvm,
    pub(crate) devices: Vec<Shared<dyn Device>>,
}

/// A virtual machine that runs. When it is dropped, its processors' threads end first: nothing uses
/// the memory any more when that goes.
pub(crate) struct Vm {
    threads: Arc<Mutex<Vec<VcpuThread>>>,
    gate: Arc<Gate>,
    stop: Arc<Stop>,
    config: Config,
    /// The first serial port, for its input.
    pub(crate) serial: Shared<Serial>,
    counters: Counters,
    parts: Arc<Parts>,
    /// Forks that are asked for.
    pub(crate) jobs: Arc<Jobs>,
}

impl Vm {
    /// Makes a virtual machine and starts its processors. `confine` is called between the two, when
    /// all that is needed is open.
    pub(crate) fn start(
        machine: &Machine,
        origin: Origin,
        console: &Console,
        stop: &Arc<Stop>,
        confine: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let (node, config) = (&machine.device, &machine.config());
        let (kvm, devices, saved) = match origin {
            Origin::Boot => (None, None, None),
            Origin::Saved(state, memory) => (None, None, Some((state, memory))),
            Origin::Forked(child) => (
                Some(child.kvm),
                Some(child.devices),
                Some((child.state, child.memory)),
            ),
        };
        let kvm = kvm.map_or_else(|| kvm::open(node), Ok)?;
        kvm::require(&kvm, node, config.irqchip)?;
        let limit = kvm.get_max_vcpus();
        if config.cpus as usize > limit {
            return Err(Error::TooManyCpus {
                asked: config.cpus,
                limit,
            });
        }
        let (memory, begin) = match saved {
            Some((state, memory)) => (memory, Begin::Saved(state)),
            None => {
                let (memory, entry) = load(config)?;
                (memory, Begin::Entry(entry))
            }
        };
        let plugged = devices.map_or_else(|| open(config), Ok)?;

        let fd = Arc::new(create(&kvm, config.irqchip)?);
        set_memory(&fd, &memory)?;
        let ports = Parts::devices(&fd, config.irqchip, console, stop)?;
        let mut bus = bus(&ports, stop);
        let functions = plug_in(&fd, plugged, &memory, &mut bus, &ports.pci)?;
        bus.add(PCI_CONFIG, PCI_CONFIG_PORTS, ports.pci.clone());
        let bus = Arc::new(bus);
        if config.irqchip {
            let serial = lock(&ports.serial);
            fd.register_irqfd(serial.interrupt(), COM1_IRQ)
                .map_err(|error| Error::kvm("KVM_IRQFD", error))?;
        }

        let vcpus = create_vcpus(&kvm, &fd, config)?;
        let mut counters = Counters::default();
        vcpus.iter().for_each(|vcpu| counters.add(vcpu.fd()));
        let parts = Arc::new(Parts {
            machine: machine.to_toml()?,
            memory_size: config.boot.memory_size,
            irqchip: config.irqchip,
            vcpus: (vcpus.iter().map(|vcpu| vcpu.handle(&fd))).collect::<Result<_>>()?,
            kvm,
            vm: fd,
            devices: ports,
            functions,
            memory,
            instant: Mutex::default(),
        });
        match &begin {
            Begin::Entry(entry) => parts.set_up(*entry)?,
            Begin::Saved(state) => parts.restore(state)?,
        }
        vcpu::install_kick_handler()?;
        confine()?;
        let vm = Self {
            threads: Arc::default(),
            gate: Arc::default(),
            stop: stop.clone(),
            config: config.clone(),
            serial: parts.devices.serial.clone(),
            counters,
            parts,
            jobs: Arc::new(Jobs::new()?),
        };
        vm.parts.go_on();
        for vcpu in vcpus {
            let thread = VcpuThread::start(vcpu, bus.clone(), stop.clone(), vm.gate.clone())?;
            lock(&vm.threads).push(thread);
        }
        Ok(vm)
    }

    /// Who answers requests to this machine, which `node` has made. It is dropped before the
    /// machine is.
    pub(crate) fn handler(&self, node: &Path) -> Handler {
        let (threads, gate, stop) = (self.threads.clone(), self.gate.clone(), self.stop.clone());
        let (parts, counters) = (self.parts.clone(), self.counters.clone());
        let (config, node, start) = (self.config.clone(), node.to_owned(), Instant::now());
        let (pause, jobs) = (Pause { threads, gate }, self.jobs.clone());
        Box::new(move |request, files| {
            match request {
                Request::Status => {
                    return Answer::Status(Status {
                        process: std::process::id(),
                        state: if pause.gate.is_closed() {
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
                    if let Err(reason) = pause.pause() {
                        return Answer::Error { reason };
                    }
                }
                Request::Resume => pause.gate.open(),
                Request::PowerButton => lock(&parts.devices.power).press(),
                Request::Quit => stop.request(Outcome::Stopped),
                Request::Counters => {
                    return match counters.read() {
                        Ok(counters) => Answer::Counters { counters },
                        Err(error) => Answer::Error {
                            reason: error.to_string(),
                        },
                    }
                }
                Request::Describe => {
                    return Answer::Machine {
                        machine: parts.machine.clone(),
                    }
                }
                Request::Fork { machine, name } => {
                    let start = Instant::now();
                    let fork = || parts.fork((&machine, name), files, &jobs);
                    return match pause.paused(fork) {
                        Ok(()) => Answer::Forked {
                            pause: start.elapsed().as_micros() as u64,
                        },
                        Err(reason) => Answer::Error { reason },
                    };
                }
                Request::Snapshot => {
                    if let Err(reason) = pause.paused(|| parts.snapshot()) {
                        return Answer::Error { reason };
                    }
                }
                Request::Reset => {
                    return match pause.paused(|| parts.reset(&stop)) {
                        Ok(pages) => Answer::Reset { pages },
                        Err(reason) => Answer::Error { reason },
                    }
                }
                Request::Save { form } => {
                    let saved = pause.paused(|| parts.save(form, files));
                    return match saved {
                        Ok(bytes) => Answer::Saved { bytes },
                        Err(reason) => Answer::Error { reason },
                    };
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

/// What lets the processors rest.
struct Pause {
    threads: Arc<Mutex<Vec<VcpuThread>>>,
    gate: Arc<Gate>,
}

impl Pause {
    /// All processors rest when this returns; if one does not, all go on.
    fn pause(&self) -> std::result::Result<(), String> {
        self.gate.close();
        lock(&self.threads).iter().for_each(VcpuThread::kick);
        if self.gate.wait_for_all(PAUSE_LIMIT) {
            return Ok(());
        }
        self.gate.open();
        Err("a processor waits for its console".into())
    }

    /// Does something while they rest. Those that rested before go on resting.
    fn paused<T>(
        &self,
        action: impl FnOnce() -> std::result::Result<T, String>,
    ) -> std::result::Result<T, String> {
        let rested = self.gate.is_closed();
        self.pause()?;
        let result = action();
        if !rested {
            self.gate.open();
        }
        result
    }
}

/// How the first processor begins.
enum Begin {
    Entry(boot::Entry),
    Saved(Box<state::State>),
}

/// Memory with the kernel, and where it begins.
fn load(config: &Config) -> Result<(GuestMemory, boot::Entry)> {
    let memory = memory::allocate(config.boot.memory_size)?;
    let tables = acpi::Tables::new(config.cpus);
    memory::write(
        &memory,
        "the ACPI tables",
        acpi::Tables::ADDRESS,
        &tables.bytes,
    )?;
    let entry = boot::load(&memory, &config.boot, acpi::Tables::ADDRESS)?;
    Ok((memory, entry))
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
            userspace_addr: region.mapping().as_ptr() as u64,
        };
        // SAFETY: The range is a whole mapping that belongs to `memory`, which is used through
        // volatile accesses only and outlives all processors' threads: see `Vm`.
        unsafe { fd.set_user_memory_region(region) }
            .map_err(|error| Error::kvm("KVM_SET_USER_MEMORY_REGION", error))?;
    }
    Ok(())
}

/// Puts the devices on their ports.
fn bus(devices: &parts::Devices, stop: &Arc<Stop>) -> Bus {
    let mut bus = Bus::default();
    bus.add(COM1, COM_PORTS, devices.serial.clone());
    bus.add(RTC, 2, devices.rtc.clone());
    bus.add(PM1A_EVENT, PM_PORTS, devices.power.clone());
    bus.add(
        I8042_COMMAND,
        1,
        Arc::new(Mutex::new(KeyboardController::new(stop.clone()))),
    );
    bus.add(DEBUG_EXIT, 1, Arc::new(Mutex::new(DebugExit(stop.clone()))));
    bus
}

/// Opens the devices that a machine has.
fn open(config: &Config) -> Result<Vec<Shared<dyn Device>>> {
    // Their interrupts are messages to local APICs.
    match (config.irqchip, config.devices.is_empty()) {
        (true, _) => config.devices.open(),
        (false, true) => Ok(Vec::new()),
        (false, false) => Err(Error::DevicesWithoutInterrupts),
    }
}

/// Puts the virtio devices on the PCI bus: window after window, and each doorbell an eventfd that
/// the module watches.
fn plug_in(
    fd: &Arc<VmFd>,
    devices: Vec<Shared<dyn Device>>,
    memory: &GuestMemory,
    bus: &mut Bus,
    pci: &Shared<PciPorts>,
) -> Result<Vec<Shared<VirtioPci>>> {
    // The host bridge is one.
    let limit = DEVICES - 1;
    if devices.len() > limit {
        return Err(Error::TooManyDevices {
            asked: devices.len(),
            limit,
        });
    }
    let routes = Arc::new(VmRoutes::new(fd.clone()));
    let mut functions = Vec::new();
    let windows = (PCI_WINDOW..).step_by(WINDOW_SIZE as usize);
    for (device, address) in devices.into_iter().zip(windows) {
        let function = VirtioPci::new(device, address, memory.clone(), routes.clone())?;
        for (offset, doorbell) in function.doorbells() {
            let place = IoEventAddress::Mmio(u64::from(address + offset));
            fd.register_ioevent(doorbell, &place, NoDatamatch)
                .map_err(|error| Error::kvm("KVM_IOEVENTFD", error))?;
        }
        let function = Shared::new(Mutex::new(function));
        lock(pci).add(function.clone());
        let start = u64::from(address);
        bus.add_memory(start..start + u64::from(WINDOW_SIZE), function.clone());
        functions.push(function);
    }
    Ok(functions)
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
            Vcpu::new(vcpu, id, fd)
        })
        .collect()
}
