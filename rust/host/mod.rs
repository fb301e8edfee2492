// SPDX-License-Identifier: GPL-2.0-only

//! The host's CPUs: is SVM there, and may we have it.
//!
//! SVM belongs to one user at a time. Between the first VM and the last we hold the hotplug state
//! that KVM uses, `CPUHP_AP_KVM_ONLINE`: an occupied slot means that KVM is at work, and while we
//! hold it KVM cannot start. Its callbacks run on each CPU as it comes and goes, after the last
//! task has left it. KVM may also hold EFER.SVME without the slot, so each CPU looks at that, too.
//! KVM takes SVM when it is loaded, or, with its parameter `enable_virt_at_load=0`, from its first
//! VM to its last, as we do: then both modules stay loaded and take turns.
//!
//! | event | what happens |
//! |---|---|
//! | first VM, CPU online | [`pacifica_cpu_on`]: EFER.SVME, VM_HSAVE_PA |
//! | last VM, CPU offline | [`pacifica_cpu_off`] |
//! | suspend, resume | the same, by syscore, for the boot CPU; the others go offline |
//! | reboot, kexec | syscore shutdown: off on all CPUs |
//! | panic, emergency | the kernel clears EFER.SVME itself; CLGI then faults, and is caught |

pub(crate) mod fpu;

use crate::host::fpu::HostState;
use crate::linux;
use crate::linux::{IrqsOff, Pages};
use core::cell::UnsafeCell;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};
use kernel::bindings;
use kernel::ffi::{c_int, c_uint, c_void};
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::Mutex;
use svm::asid::AsidPool;
use svm::features::SvmFeatures;
use svm::pause::PauseFilter;
use svm::predictors::LastGuest;
use svm::{iopm, msrpm};
use x86::tsc::TscRatio;

/// VM_CR (APM vol. 2, 15.30.1).
const MSR_VM_CR: u32 = bindings::MSR_VM_CR;
/// VM_CR.SVMDIS: firmware has turned SVM off.
const VM_CR_SVMDIS: u64 = 1 << 4;
/// VM_HSAVE_PA (APM vol. 2, 15.30.4).
const MSR_VM_HSAVE_PA: u32 = bindings::MSR_VM_HSAVE_PA;
const MSR_EFER: u32 = bindings::MSR_EFER;
/// TSC ratio (APM vol. 2, 15.30.5): how much faster than the host's the guest's TSC runs.
pub(crate) const MSR_TSC_RATIO: u32 = bindings::MSR_AMD64_TSC_RATIO;
/// TSC_AUX (APM vol. 2, 3.2.8).
pub(crate) const MSR_TSC_AUX: u32 = bindings::MSR_TSC_AUX;
/// DebugCtl.
pub(crate) const MSR_DEBUG_CTL: u32 = bindings::MSR_IA32_DEBUGCTLMSR;
/// EFER.SVME (APM vol. 2, 3.1.7).
const EFER_SVME: u64 = 1 << 12;
/// The SVM leaf of CPUID (APM vol. 3, E.4.9).
const CPUID_SVM: u32 = 0x8000_000a;

/// OS-visible workarounds (APM vol. 3, E.4.2, Fn8000_0001_ECX).
const CPUID_8000_0001_ECX_OSVW: u32 = 1 << 9;
/// Reserved for hypervisors (APM vol. 3, E.3.2, Fn0000_0001_ECX).
const CPUID_1_ECX_HYPERVISOR: u32 = 1 << 31;

/// What each CPU has of ours.
struct CpuState {
    /// For VMRUN's own use (APM vol. 2, 15.30.4).
    hsave: Pages<[u8; 4096]>,
    /// For VMSAVE of the host's state around VMRUN.
    host_save: Pages<[u8; 4096]>,
    local: UnsafeCell<PerCpu>,
}

/// The part that only the CPU itself touches, with preemption off.
pub(crate) struct PerCpu {
    /// SVM is ours on this CPU.
    on: bool,
    /// Who runs under which ASID.
    pub(crate) asids: AsidPool,
    /// Who has trained the branch predictors.
    pub(crate) last_guest: LastGuest,
    /// The TSC ratio, which acts on guests only.
    pub(crate) tsc_ratio: TscRatio,
    /// TSC_AUX of the host, which never changes while the CPU is online.
    pub(crate) tsc_aux: u64,
}

/// The CPUs, and who holds SVM.
pub(crate) struct Host {
    cpus: KVec<CpuState>,
    /// What this host's SVM can do, but for what parameters of the module have turned off.
    pub(crate) features: SvmFeatures,
    /// How PAUSEs are counted.
    pub(crate) pause_filter: PauseFilter,
    /// The CPU has a TSC ratio.
    has_tsc_ratio: bool,
    /// Extended state.
    pub(crate) fpu: HostState,
    /// OSVW: how many errata the CPU knows, and which it has (APM vol. 2, appendix E).
    pub(crate) errata: (u64, u64),
    /// The permission maps, the same for all guests.
    msrpm: Pages<[u8; msrpm::SIZE]>,
    iopm: Pages<[u8; iopm::SIZE]>,
    /// `pacifica` in debugfs.
    pub(crate) debugfs: linux::DebugfsEntry,
    /// SEV-SNP may be turned on: see [`Host::refresh_hsave`].
    has_snp: bool,
    /// For interrupting many CPUs at once.
    _masks: linux::CpuMasks,
    /// VMs alive; SVM is on while this is not zero.
    users: Pin<KBox<Mutex<usize>>>,
    /// Not zero while there are users; for the resume path, which may not sleep.
    held: Atomic<u32>,
}

// SAFETY: `PerCpu` is only touched by its own CPU with interrupts off (`local`), everything else is
// immutable or locked.
unsafe impl Sync for Host {}
// SAFETY: Likewise.
unsafe impl Send for Host {}

/// The host, from the end of [`init()`] to [`exit`].
static HOST: AtomicPtr<Host> = AtomicPtr::new(null_mut());

/// The host. Only for code that runs between [`init()`] and [`exit`].
#[inline]
pub(crate) fn host() -> Option<&'static Host> {
    // SAFETY: The pointer is null, or comes from `KBox::into_raw` in `init`. `exit` takes it back
    // when no file of the module is open and none of its callbacks is registered.
    unsafe { HOST.load(Ordering::Relaxed).as_ref() }
}

/// Says why this host cannot run guests, and what comes next.
fn detect() -> core::result::Result<(SvmFeatures, u32), &'static str> {
    if !linux::host_is_amd() {
        return Err("this CPU is not AMD's, so there is no AMD-V: `make demo` in the source tree emulates a host that has it");
    }
    if let Ok(vm_cr) = linux::rdmsr(MSR_VM_CR) {
        if vm_cr & VM_CR_SVMDIS != 0 {
            return Err("SVM is disabled by firmware (VM_CR.SVMDIS): turn SVM or AMD-V on in the firmware's setup (`systemctl reboot --firmware-setup`)");
        }
    }
    if !linux::host_has_svm() || linux::cpuid(0x8000_0000, 0)[0] < CPUID_SVM {
        return Err(if is_virtual() {
            "this virtual machine has no SVM: turn nested virtualization on for it, on its host"
        } else {
            "this CPU offers no SVM: turn it on in the firmware's setup (`systemctl reboot --firmware-setup`), or let `make demo` in the source tree emulate a host that has it"
        });
    }
    let [_, asids, _, edx] = linux::cpuid(CPUID_SVM, 0);
    let features = SvmFeatures::from_bits_retain(edx);
    if !features.contains(SvmFeatures::NP) {
        return Err(if is_virtual() {
            "this virtual machine has no nested paging, which Pacifica requires: give it the feature NPT, on its host"
        } else {
            "this CPU has no nested paging, which Pacifica requires: `make demo` in the source tree emulates a host that has it"
        });
    }
    Ok((features, asids))
}

/// What the CPU says of its errata; nothing if it does not have the registers.
fn errata() -> (u64, u64) {
    let read = |msr| linux::rdmsr(msr).unwrap_or(0);
    match linux::cpuid(0x8000_0001, 0)[2] & CPUID_8000_0001_ECX_OSVW {
        0 => (0, 0),
        _ => (
            read(bindings::MSR_AMD64_OSVW_ID_LENGTH),
            read(bindings::MSR_AMD64_OSVW_STATUS),
        ),
    }
}

/// Whether a hypervisor says that it is there.
fn is_virtual() -> bool {
    linux::cpuid(1, 0)[2] & CPUID_1_ECX_HYPERVISOR != 0
}

/// Looks at the CPU and prepares what each one needs.
///
/// `unwanted` is not to be used, even if it is there.
pub(crate) fn init(unwanted: SvmFeatures, pause_filter: PauseFilter) -> Result {
    let (all, asids) = detect().map_err(|why| {
        pr_err!("{why}\n");
        ENODEV
    })?;
    let features = all.difference(unwanted);
    let count = kernel::cpu::nr_cpu_ids() as usize;
    let mut cpus = KVec::with_capacity(count, GFP_KERNEL)?;
    for _ in 0..count {
        let cpu = CpuState {
            hsave: Pages::new()?,
            host_save: Pages::new()?,
            local: UnsafeCell::new(PerCpu {
                on: false,
                asids: AsidPool::new(asids),
                last_guest: LastGuest::default(),
                tsc_ratio: TscRatio::ONE,
                tsc_aux: 0,
            }),
        };
        cpus.push(cpu, GFP_KERNEL)?;
    }
    let users = KBox::pin_init(kernel::new_mutex!(0), GFP_KERNEL)?;
    let (mut msrpm, mut iopm) = (Pages::new()?, Pages::new()?);
    msrpm::init(&mut msrpm);
    iopm::init(&mut iopm);
    let masks = linux::CpuMasks::new()?;
    let debugfs = linux::DebugfsEntry::dir(c"pacifica");
    let host = Host {
        cpus,
        features,
        pause_filter,
        has_tsc_ratio: all.contains(SvmFeatures::TSC_RATE_MSR),
        fpu: HostState::new(),
        errata: errata(),
        msrpm,
        iopm,
        debugfs,
        has_snp: linux::host_has_snp(),
        _masks: masks,
        users,
        held: Atomic::new(0),
    };
    let host = KBox::into_raw(KBox::new(host, GFP_KERNEL)?);
    HOST.store(host, Ordering::Release);
    linux::syscore_register();
    pr_info!(
        "AMD-V with nested paging, {} ASIDs; next-RIP saving {}, decode assists {}, flush by ASID {}\n",
        asids,
        yes_no(features.contains(SvmFeatures::NRIPS)),
        yes_no(features.contains(SvmFeatures::DECODE_ASSISTS)),
        yes_no(features.contains(SvmFeatures::FLUSH_BY_ASID)),
    );
    Ok(())
}

fn yes_no(on: bool) -> &'static str {
    if on {
        "yes"
    } else {
        "no"
    }
}

/// Undoes [`init()`].
pub(crate) fn exit() {
    if host().is_some() {
        linux::syscore_unregister();
        let host = HOST.swap(null_mut(), Ordering::Relaxed);
        // SAFETY: It comes from `init`. The module goes: no file is open, hence no VM alive, hence
        // no callback registered, and the syscore hooks are out.
        drop(unsafe { KBox::from_raw(host) });
    }
}

impl Host {
    /// This CPU's part, for as long as interrupts stay off, and the proof that they do.
    #[inline]
    pub(crate) fn local<'a>(
        &'a self,
        irqs: &'a mut IrqsOff,
    ) -> Option<(&'a mut PerCpu, &'a IrqsOff)> {
        let cpu = self.cpus.get(linux::cpu() as usize)?;
        // SAFETY: Only this CPU gets here, and only once: it has one proof, which is borrowed.
        Some((unsafe { &mut *cpu.local.get() }, irqs))
    }

    /// Physical address of this CPU's page for the host's VMSAVE state.
    #[inline]
    pub(crate) fn host_save(&self, _: &IrqsOff) -> u64 {
        self.cpus
            .get(linux::cpu() as usize)
            .map_or(0, |cpu| cpu.host_save.phys())
    }

    /// kvm_amd can be loaded while there are VMs, and prepares SEV-SNP before it finds SVM taken:
    /// for that Linux clears VM_HSAVE_PA on all CPUs, by an IPI, and VMRUN would have no place for
    /// the host's state.
    #[inline]
    pub(crate) fn refresh_hsave(&self, _: &IrqsOff) {
        if self.has_snp {
            self.restore_save_area();
        }
    }

    #[cold]
    fn restore_save_area(&self) {
        let Some(cpu) = self.cpus.get(linux::cpu() as usize) else {
            return;
        };
        if linux::rdmsr(MSR_VM_HSAVE_PA) != Ok(cpu.hsave.phys()) {
            // SAFETY: SVM is on, and the page is this CPU's and lives as long as SVM is on.
            let _ = unsafe { linux::wrmsr(MSR_VM_HSAVE_PA, cpu.hsave.phys()) };
        }
    }

    /// Physical addresses of the I/O and the MSR permission map.
    pub(crate) fn permission_maps(&self) -> (u64, u64) {
        (self.iopm.phys(), self.msrpm.phys())
    }

    /// Turns SVM on for the first user.
    fn get(&self) -> Result {
        let mut users = self.users.lock();
        if *users == 0 {
            // SAFETY: Both callbacks are the module's, and are taken out before it goes.
            let ret = unsafe {
                bindings::__cpuhp_setup_state(
                    bindings::cpuhp_state_CPUHP_AP_KVM_ONLINE,
                    c"virt/pacifica:online".as_char_ptr(),
                    true,
                    Some(online),
                    Some(offline),
                    false,
                )
            };
            if ret < 0 {
                let error = Error::from_errno(ret);
                if error == EBUSY && linux::may_report() {
                    say_who_has_svm();
                }
                return Err(error);
            }
        }
        *users += 1;
        self.held.store(1, Relaxed);
        Ok(())
    }

    fn put(&self) {
        let mut users = self.users.lock();
        *users -= 1;
        if *users == 0 {
            self.held.store(0, Relaxed);
            // SAFETY: `get` registered it.
            unsafe {
                bindings::__cpuhp_remove_state(bindings::cpuhp_state_CPUHP_AP_KVM_ONLINE, true)
            };
        }
    }
}

/// The way out of `EBUSY`. Only KVM knows whether it has VMs.
#[cold]
fn say_who_has_svm() {
    pr_err!("SVM is held by KVM: end its VMs. If it has none, it took SVM when it was loaded:\n");
    pr_err!("put `options kvm enable_virt_at_load=0` into /etc/modprobe.d/pacifica.conf and reboot, and both take turns; or run `modprobe -r kvm_amd`\n");
}

/// The right to use SVM: each VM has one.
pub(crate) struct SvmUser(());

impl SvmUser {
    /// Takes SVM on all CPUs, if no other VM has yet.
    ///
    /// # Errors
    ///
    /// `EBUSY` if another user, KVM most likely, has it.
    pub(crate) fn get() -> Result<Self> {
        host().ok_or(ENODEV)?.get()?;
        Ok(Self(()))
    }
}

impl Drop for SvmUser {
    fn drop(&mut self) {
        if let Some(host) = host() {
            host.put();
        }
    }
}

impl PerCpu {
    /// Whether SVM may be used on this CPU now.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.on
    }
}

unsafe extern "C" fn online(_cpu: c_uint) -> c_int {
    // SAFETY: The hotplug thread has interrupts on.
    match cpu_on(&mut unsafe { IrqsOff::new() }) {
        Ok(()) => 0,
        Err(e) => e.to_errno(),
    }
}

unsafe extern "C" fn offline(_cpu: c_uint) -> c_int {
    // SAFETY: The hotplug thread has interrupts on.
    cpu_off(&mut unsafe { IrqsOff::new() });
    0
}

/// How often the host was suspended.
static RESUMES: Atomic<u32> = Atomic::new(0);
/// The TSC when the boot CPU went to rest.
static TSC_AT_REST: Atomic<u64> = Atomic::new(0);
/// By how much the host's TSC went back while it was suspended, all times together.
static TSC_LOST: Atomic<u64> = Atomic::new(0);

/// How often the host was suspended.
#[inline]
pub(crate) fn resumes() -> u32 {
    RESUMES.load(Relaxed)
}

/// By how much the TSC offset of a guest that lives since the module was loaded must have grown, so
/// that the guest's TSC never goes back.
pub(crate) fn tsc_lost() -> u64 {
    TSC_LOST.load(Relaxed)
}

/// Turns SVM on, on this CPU, if any VM is alive (resume). No other CPU is online.
#[no_mangle]
unsafe extern "C" fn pacifica_cpu_on(_: *mut c_void) {
    let back = TSC_AT_REST.load(Relaxed).saturating_sub(linux::rdtsc());
    TSC_LOST.store(tsc_lost().wrapping_add(back), Relaxed);
    RESUMES.store(resumes().wrapping_add(1), Relaxed);
    if host().is_some_and(|host| host.held.load(Relaxed) != 0) {
        // SAFETY: The kernel resumes with interrupts off.
        let mut irqs = unsafe { IrqsOff::of_caller() };
        if let Err(error) = cpu_on(&mut irqs) {
            pr_err!("SVM could not be turned on again: {error:?}\n");
        }
    }
}

/// Turns SVM off, on this CPU, if it is on. Called with interrupts off.
#[no_mangle]
unsafe extern "C" fn pacifica_cpu_off(_: *mut c_void) {
    TSC_AT_REST.store(linux::rdtsc(), Relaxed);
    // SAFETY: As said above.
    let mut irqs = unsafe { IrqsOff::of_caller() };
    cpu_off(&mut irqs);
}

/// Turns SVM on, on this CPU.
fn cpu_on(irqs: &mut IrqsOff) -> Result {
    let host = host().ok_or(ENODEV)?;
    let cpu = host.cpus.get(linux::cpu() as usize).ok_or(ENODEV)?;
    let (local, _) = host.local(irqs).ok_or(ENODEV)?;
    if local.on {
        return Ok(());
    }
    let efer = linux::rdmsr(MSR_EFER)?;
    if efer & EFER_SVME != 0 {
        return Err(EBUSY);
    }
    // SAFETY: SVM is there (`detect`) and free, and turning it on changes nothing else.
    unsafe { linux::wrmsr(MSR_EFER, efer | EFER_SVME) }?;
    // SAFETY: The page is this CPU's, and lives as long as SVM is on.
    unsafe { linux::wrmsr(MSR_VM_HSAVE_PA, cpu.hsave.phys()) }?;
    // What the TLB holds of earlier days must not be met again.
    local.asids.restart();
    local.last_guest = LastGuest::default();
    if host.has_tsc_ratio {
        // Another hypervisor may have left its own (APM vol. 2, 15.30.5).
        // SAFETY: It acts on guests only.
        unsafe { linux::wrmsr(MSR_TSC_RATIO, TscRatio::ONE.bits()) }?;
    }
    local.tsc_ratio = TscRatio::ONE;
    local.tsc_aux = linux::rdmsr(MSR_TSC_AUX).unwrap_or(0);
    linux::reduce_speculation(true);
    local.on = true;
    Ok(())
}

/// Turns SVM off, on this CPU, if it is on.
fn cpu_off(irqs: &mut IrqsOff) {
    let Some(host) = host() else { return };
    let Some((local, _)) = host.local(irqs) else {
        return;
    };
    if !core::mem::take(&mut local.on) {
        return;
    }
    linux::reduce_speculation(false);
    if local.tsc_ratio != TscRatio::ONE {
        // SAFETY: It acts on guests only, and none runs here.
        let _ = unsafe { linux::wrmsr(MSR_TSC_RATIO, TscRatio::ONE.bits()) };
    }
    // SAFETY: No guest runs here: interrupts are off, and the flag is down. If an MSR write
    // fails, SVM is off already.
    let _ = unsafe { linux::wrmsr(MSR_VM_HSAVE_PA, 0) };
    if let Ok(efer) = linux::rdmsr(MSR_EFER) {
        // SAFETY: As above.
        let _ = unsafe { linux::wrmsr(MSR_EFER, efer & !EFER_SVME) };
    }
}
