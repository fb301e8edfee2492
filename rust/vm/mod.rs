// SPDX-License-Identifier: GPL-2.0-only

//! A virtual machine: what its vCPUs share.

pub(crate) mod clock;
pub(crate) mod coalesced_io;
pub(crate) mod config;
pub(crate) mod msr_filter;
pub(crate) mod stats;
pub(crate) mod vfio;

use crate::host::{host, SvmUser};
use crate::irq::eventfd::Eventfds;
use crate::irq::irqchip::{Irqchip, IrqchipConfig};
use crate::irq::vcpu_table::VcpuTable;
use crate::linux;
use crate::memory::slots::SlotList;
use crate::memory::VmMemory;
use crate::vcpu::stopped::Vcpus;
use crate::vm::clock::VmClock;
use crate::vm::coalesced_io::Coalesced;
use crate::vm::config::{VmConfig, VmConfigState};
use crate::vm::stats::{StatsFile, VmStats};
use crate::vm::vfio::VfioState;
use kernel::fmt;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::{Arc, Mutex};
use svm::features::SvmFeatures;

/// Numbers the VMs of this boot.
static SERIAL: Atomic<u64> = Atomic::new(1);

#[pin_data]
/// A virtual machine. Its file and the files of its vCPUs each hold a reference.
pub(crate) struct Vm {
    _stats_file: StatsFile,
    pub(crate) stats: Arc<VmStats>,
    pub(crate) memory: Arc<VmMemory>,
    pub(crate) vcpu_table: Arc<VcpuTable>,
    #[pin]
    pub(crate) vcpus: Vcpus,
    pub(crate) irqchip: Arc<Irqchip>,
    #[pin]
    pub(crate) clock: VmClock,
    /// The devices of the host that the guest has.
    pub(crate) vfio: VfioState,
    /// Interrupt lines and doorbells; the former use `irqchip`.
    #[pin]
    pub(crate) eventfds: Eventfds,
    /// Writes that the VMM looks at later.
    #[pin]
    pub(crate) coalesced: Coalesced,
    /// Held while vCPUs are made, and what they must be the same for is decided.
    #[pin]
    pub(crate) setup: Mutex<Setup>,
    /// What the host's AMD-V can do.
    pub(crate) features: SvmFeatures,
    pub(crate) boot_cpu: Atomic<u32>,
    /// What KVM_ENABLE_CAP has turned on: see [`option`].
    pub(crate) options: Atomic<u32>,
    /// And what concerns the handlers of exits.
    #[pin]
    pub(crate) config: VmConfig,
    pub(crate) pid: i32,
    pub(crate) serial: u64,
    /// Last: SVM is given back after everything else.
    _svm: SvmUser,
}

/// What a VMM can turn on. One bit each.
pub(crate) mod option {
    /// `KVM_CAP_EXCEPTION_PAYLOAD`: a pending exception is told from an injected one.
    pub(crate) const EXCEPTION_PAYLOAD: u32 = 1 << 0;
    /// `KVM_CAP_X86_TRIPLE_FAULT_EVENT`: a triple fault is an event.
    pub(crate) const TRIPLE_FAULT: u32 = 1 << 1;
}

/// What is decided before the first vCPU.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    /// KVM_CAP_MAX_VCPU_ID, if it was set.
    pub(crate) max_vcpu_id: Option<u32>,
}

/// What the VMM has decided for a VM as a whole, but for its devices and its event descriptors.
pub(crate) struct Decisions {
    setup: Setup,
    boot_cpu: u32,
    options: u32,
    config: VmConfigState,
    irqchip: IrqchipConfig,
    manual_log: u64,
    slots: SlotList,
}

impl Vm {
    /// Creates a VM on the caller's address space.
    pub(crate) fn create() -> Result<Arc<Self>> {
        let host = host().ok_or(ENODEV)?;
        let svm = SvmUser::get()?;
        let vcpu_table = VcpuTable::new()?;
        let memory = VmMemory::new(vcpu_table.clone())?;
        let stats = VmStats::new(memory.clone())?;
        let (pid, serial) = (linux::pid(), SERIAL.fetch_add(1, Relaxed));
        let name = CString::try_from_fmt(fmt!("{pid}-{serial}"))?;
        let stats_file = StatsFile::new(&host.debugfs, &name, stats.clone());
        let irqchip = Irqchip::new(vcpu_table.clone())?;
        let coalesced = Coalesced::new()?;
        Arc::pin_init(
            pin_init!(Self {
                _stats_file: stats_file,
                stats,
                memory,
                irqchip,
                vcpu_table,
                vcpus <- Vcpus::new(),
                clock <- VmClock::new(),
                vfio: VfioState::new(),
                eventfds <- Eventfds::new(),
                coalesced <- coalesced,
                setup <- kernel::new_mutex!(Setup { max_vcpu_id: None }),
                features: host.features,
                boot_cpu: Atomic::new(0),
                options: Atomic::new(0),
                config <- VmConfig::new(),
                pid,
                serial,
                _svm: svm,
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Copies what the VMM has decided. `setup` is locked meanwhile.
    pub(crate) fn decisions(&self, setup: &Setup) -> Result<Decisions> {
        Ok(Decisions {
            setup: *setup,
            boot_cpu: self.boot_cpu(),
            options: self.options.load(Relaxed),
            config: self.config.save(),
            irqchip: self.irqchip.decisions()?,
            manual_log: self.memory.log_flags(),
            slots: self.memory.slots().changed(None, None)?,
        })
    }

    /// Decides the same for a VM that is new: it has no vCPUs and no descriptor yet.
    pub(crate) fn decide(&self, decisions: &Decisions) -> Result {
        *self.setup.lock() = decisions.setup;
        self.boot_cpu.store(decisions.boot_cpu, Relaxed);
        self.options.store(decisions.options, Relaxed);
        self.config.put_back(&decisions.config);
        self.irqchip.decide(&decisions.irqchip)?;
        self.memory.set_manual_log(decisions.manual_log)?;
        self.memory.adopt(&decisions.slots)
    }

    /// The vCPU that starts the guest.
    pub(crate) fn boot_cpu(&self) -> u32 {
        self.boot_cpu.load(Relaxed)
    }

    /// Tells the kernel's log what went wrong with this VM; a few lines, however often it happens.
    pub(crate) fn report(&self, what: fmt::Arguments<'_>) {
        if linux::may_report() {
            pr_err!("VM {} of process {}: {}\n", self.serial, self.pid, what);
        }
    }

    /// Whether one of [`option`] is on.
    #[inline]
    pub(crate) fn has_option(&self, bit: u32) -> bool {
        self.options.load(Relaxed) & bit != 0
    }
}
