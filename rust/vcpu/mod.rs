// SPDX-License-Identifier: GPL-2.0-only

//! A virtual CPU: its parts.

pub(crate) mod apic;
pub(crate) mod context;
mod extended_state;
pub(crate) mod halt;
pub(crate) mod inner;
pub(crate) mod platform;
pub(crate) mod pv_eoi;
pub(crate) mod pvclock;
pub(crate) mod requests;
pub(crate) mod run;
pub(crate) mod snapshot_state;
pub(crate) mod steal_time;
pub(crate) mod stopped;
pub(crate) mod user_exit;

use crate::host::fpu::GuestFpu;
use crate::host::{host, resumes, tsc_lost};
use crate::irq::mailbox::Mailbox;
use crate::linux::Sleep;
use crate::linux::{HostDebug, KillableMutex, Pages, Timer};
use crate::memory::dirty_ring::DirtyRing;
use crate::memory::VcpuMemory;
use crate::uapi::run_page::RunPage;
use crate::vcpu::apic::{Apic, PicOwner, UserApic};
use crate::vcpu::halt::HaltPoll;
use crate::vcpu::platform::VcpuPlatform;
use crate::vcpu::steal_time::StealTime;
use crate::vm::config::disable_exits;
use crate::vm::stats::Stats;
use crate::vm::Vm;
use core::pin::Pin;
use irqchip::{Lapic, Now};
use kernel::bindings;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::{Arc, ArcBorrow};
use svm::asid::Asid;
use svm::cpu::Guest;
use svm::features::SvmFeatures;
use svm::nested::Nested;
use svm::requests::Requests;
use svm::state::{MpState, VcpuState};
use svm::vmcb::Vmcb;
use x86::cpuid::Entry;

/// Numbers the vCPUs of this boot.
static SERIAL: Atomic<u64> = Atomic::new(1);

/// A virtual CPU. Its file holds a reference, and while there is a file, the VM does.
#[pin_data]
pub(crate) struct Vcpu {
    /// How others reach the vCPU.
    pub(crate) mailbox: Arc<Mailbox>,
    /// What the VMM maps.
    pub(crate) run_page: RunPage,
    /// Its dirty ring, which the VMM maps likewise.
    pub(crate) ring: Option<Arc<DirtyRing>>,
    /// Counters.
    pub(crate) stats: Arc<Stats>,
    /// The CPU itself. KVM_RUN holds the lock for as long as it runs.
    #[pin]
    pub(crate) locked: KillableMutex<LockedVcpu>,
    /// Last, so that it outlives everything that belongs to it.
    pub(crate) vm: Arc<Vm>,
}

/// A vCPU whose lock is held: registers, and what belongs to them. One thread at a time has it.
pub(crate) struct LockedVcpu {
    /// The LAPIC's timer; gone before the mailbox that it writes to.
    pub(crate) timer: Pin<KBox<Timer<Mailbox>>>,
    pub(crate) vmcb: Pages<Vmcb>,
    pub(crate) state: KBox<VcpuState>,
    pub(crate) platform: VcpuPlatform,
    /// What CPUID answers.
    pub(crate) cpuid: KVec<Entry>,
    /// Which vCPU this is, of all that ever were; never 0.
    pub(crate) serial: u64,
    /// Counters.
    pub(crate) stats: Arc<Stats>,
    /// The ASID on `cpu`.
    pub(crate) asid: Option<Asid>,
    /// SVM, if the guest has it.
    pub(crate) nested: Option<KBox<Nested>>,
    /// The ASID of that guest, the outer or the inner one, which `asid` is not of.
    pub(crate) other_asid: Option<Asid>,
    /// `asid` is the inner guest's.
    pub(crate) asid_is_inner: bool,
    /// The CPU that it ran on last.
    pub(crate) cpu: u32,
    /// Debug registers of the host, while the guest is in the CPU.
    pub(crate) host_breakpoints: HostDebug,
    /// TSC_AUX of the guest, while it is in the CPU.
    pub(crate) tsc_aux: u32,
    /// A machine check of the host ended the guest.
    pub(crate) machine_check: bool,
    /// DebugCtl of the guest, while it is in the CPU by hand.
    pub(crate) debug_ctl: u64,
    /// Signals that are let through during KVM_RUN.
    pub(crate) signal_mask: Option<bindings::sigset_t>,
    /// The time that was stolen from the guest.
    pub(crate) steal: StealTime,
    /// The guest may end the interrupt in service without an exit: `pv_eoi.rs`.
    pub(crate) pv_eoi_offered: bool,
    /// Where the byte for it was written, and in which generation of the snapshots.
    pub(crate) pv_eoi_kept: Option<(u64, u64)>,
    /// For so many entries that is not tried: its page could not be written.
    pub(crate) pv_eoi_rest: u16,
    /// How it waits.
    pub(crate) pace: HaltPoll,
    /// KVM_RUN was called at least once.
    pub(crate) has_run: bool,
    /// What of [`crate::host::tsc_lost`] is in the TSC offset already.
    pub(crate) tsc_lost: u64,
    /// How often the host had been suspended when the clock was computed.
    pub(crate) resumes: u32,
    /// Where the CPUs' TSCs differ: the CPU whose TSC the guest's time is computed from.
    pub(crate) clock_cpu: u32,
    /// Likewise: the host's TSC when the guest was last in a CPU.
    pub(crate) last_tsc: u64,
}

impl LockedVcpu {
    /// What the clocks show to the guest.
    pub(crate) fn now(&self) -> Now {
        self.platform.now(self.vmcb.tsc_offset())
    }

    /// The guest as the handlers see it. `sleep` says what they may do.
    #[inline]
    pub(crate) fn guest(&mut self, sleep: Sleep) -> Guest<'_, VcpuPlatform> {
        self.platform.tsc_offset = self.vmcb.tsc_offset();
        self.platform.sleep = sleep;
        Guest {
            vmcb: &mut self.vmcb,
            state: &mut self.state,
            host: self.platform.vm.features,
            cpuid: &mut self.cpuid,
            policy: self.platform.vm.config.policy(),
            platform: &mut self.platform,
            nested: self.nested.as_deref_mut(),
        }
    }
}

/// The state after power-up, in memory of its own: it is too large for frames that hold copies.
#[inline(never)]
fn new_state(vmcb: &mut Vmcb, features: SvmFeatures) -> Result<KBox<VcpuState>> {
    let mut state = KBox::new(VcpuState::new(), GFP_KERNEL_ACCOUNT)?;
    state.reset(vmcb, features, 0);
    Ok(state)
}

/// The LAPIC after power-up.
#[inline(never)]
fn new_lapic(vm: &Vm, id: u32) -> Result<KBox<Lapic>> {
    let mut lapic = KBox::new(Lapic::new(id, id == vm.boot_cpu()), GFP_KERNEL_ACCOUNT)?;
    lapic.set_bus_cycle_ns(vm.irqchip.bus_cycle_ns());
    Ok(lapic)
}

impl Vcpu {
    /// Creates a vCPU in the state after power-up.
    pub(crate) fn create(vm: ArcBorrow<'_, Vm>, id: u32) -> Result<Arc<Self>> {
        let host = host().ok_or(ENODEV)?;
        let mailbox = vm.vcpu_table.create(id)?;
        let apic = match vm.irqchip.has_lapics() {
            true => Apic::Kernel(new_lapic(&vm, id)?),
            false => Apic::User(UserApic::RESET),
        };
        let address = apic.kernel().map(Lapic::snapshot);
        let mut vmcb = Pages::<Vmcb>::new()?;
        let mut state = new_state(&mut vmcb, vm.features)?;
        state.msrs.set_errata(host.errata.0, host.errata.1);
        let (iopm, msrpm) = host.permission_maps();
        vmcb.set_pause_filter(vm.features, &host.pause_filter);
        vmcb.set_iopm_base(iopm);
        vmcb.set_msrpm_base(msrpm);
        vmcb.set_ncr3(vm.memory.ncr3());
        disable_exits(&mut vmcb, vm.config.disabled_exits());
        // The guest's TSC begins at zero.
        let tsc_rate = vm.clock.rate();
        vmcb.set_tsc_offset(vm.clock.tsc_offset(tsc_rate));

        if apic.is_kernel() && id != vm.boot_cpu() {
            state.mp_state = MpState::Uninitialized;
        }
        let target: *const Mailbox = &*mailbox;
        let timer = KBox::pin_init(
            // SAFETY: The platform's reference to the mailbox outlives the timer.
            unsafe { Timer::new(target) },
            GFP_KERNEL_ACCOUNT,
        )?;
        let run_page = RunPage::new(vm.coalesced.ring())?;
        let stats = Arc::new(Stats::default(), GFP_KERNEL_ACCOUNT)?;
        let locked = LockedVcpu {
            timer,
            vmcb,
            state,
            platform: VcpuPlatform {
                vm: vm.into(),
                mailbox: mailbox.clone(),
                run_page: run_page.clone(),
                tsc_offset: 0,
                tsc_rate,
                sleep: Sleep::Forbidden,
                apic,
                pic: match vm.irqchip.is_full() {
                    true => PicOwner::Kernel,
                    false => PicOwner::User(None),
                },
                user_window: false,
                memory: VcpuMemory::new(vm.memory.clone())?,
                fpu: GuestFpu::new(&host.fpu.layout)?,
                requests: Requests::empty(),
                ext_int: false,
                unhalted: false,
                yield_to: None,
                ended: 0,
                old_clock: false,
                guest_stopped: false,
                ipi: None,
                physical_bits: 36,
                has_x2apic: false,
                msr_filter: None,
            },
            serial: SERIAL.fetch_add(1, Relaxed),
            cpuid: KVec::new(),
            stats: stats.clone(),
            asid: None,
            nested: None,
            other_asid: None,
            asid_is_inner: false,
            cpu: u32::MAX,
            host_breakpoints: HostDebug::default(),
            tsc_aux: 0,
            debug_ctl: 0,
            machine_check: false,
            signal_mask: None,
            steal: StealTime::default(),
            pv_eoi_offered: false,
            pv_eoi_kept: None,
            pv_eoi_rest: 0,
            pace: HaltPoll::default(),
            has_run: false,
            tsc_lost: tsc_lost(),
            resumes: resumes(),
            clock_cpu: u32::MAX,
            last_tsc: 0,
        };
        let tsc = pvclock::its_tsc(&locked);
        let ring = locked.platform.memory.shared_ring();
        let its_mailbox = mailbox.clone();
        let vcpu = Arc::pin_init(
            try_pin_init!(Self {
                mailbox: its_mailbox,
                run_page,
                ring,
                stats,
                locked <- KillableMutex::new(locked),
                vm: vm.into(),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        vm.vcpus.add(&vcpu)?;
        // A filter that is set from now on finds the mailbox.
        mailbox.request(Requests::MSR_FILTER);
        if let Some(address) = address {
            vm.vcpu_table.publish_apic(&mailbox, address);
        }
        mailbox.set_tsc(tsc);
        vm.vcpu_table.publish(&mailbox);
        if !vm.vcpu_table.clocks_match() {
            vm.vcpu_table.update_clocks();
        }
        Ok(vcpu)
    }

    /// Takes back a new vCPU that gets no descriptor.
    pub(crate) fn discard(&self) {
        self.vm.vcpus.remove(self);
        self.vm.vcpu_table.withdraw(&self.mailbox);
        // The others' clocks may match again.
        self.vm.vcpu_table.update_clocks();
    }
}
