// SPDX-License-Identifier: GPL-2.0-only

//! `struct kvm_run` and the two pages behind it, which the VMM maps.
//!
//! The VMM can write all of it at any time: fields are read once, and nothing here is believed.

use crate::linux::{self, Pages};
use crate::uapi::{self, kvm_run};
use core::mem::offset_of;
use kernel::bindings;
use kernel::ffi::c_void;
use kernel::prelude::*;
use kernel::sync::Arc;

/// Pages that a vCPU shares with its VMM: `struct kvm_run`, port data, coalesced MMIO.
pub(crate) const PAGES: usize = 3;
/// Which of them is the ring of coalesced accesses.
pub(crate) const RING_PAGE: usize = 2;
/// Where the data of KVM_EXIT_IO is, from the start of `struct kvm_run`.
const PIO_DATA: usize = 4096;
/// And how much there can be.
const PIO_SIZE: usize = core::mem::size_of::<[u8; 4096]>();

/// The pages of one vCPU.
#[derive(Clone)]
pub(crate) struct RunPage {
    pages: [Arc<Page>; PAGES],
}

/// A page that the VMM may map.
pub(crate) type Page = Pages<[u8; 4096]>;

const _: () = assert!(core::mem::size_of::<kvm_run>() <= 4096);

/// Reads or writes a field of the shared structure, once.
macro_rules! field {
    (read $page:expr, $($field:tt)+) => {{
        let run: *mut kvm_run = $page.run();
        // SAFETY: The page holds a `kvm_run`, all of whose fields are plain integers; volatile,
        // since user space writes it at the same time.
        unsafe { core::ptr::addr_of!((*run).$($field)+).read_volatile() }
    }};
    (write $page:expr, $value:expr, $($field:tt)+) => {{
        let run: *mut kvm_run = $page.run();
        // SAFETY: As above.
        unsafe { core::ptr::addr_of_mut!((*run).$($field)+).write_volatile($value) }
    }};
}

impl RunPage {
    /// Zeroed pages, and the VM's ring.
    pub(crate) fn new(ring: Arc<Page>) -> Result<Self> {
        let page = || Ok::<_, Error>(Arc::new(Page::new()?, GFP_KERNEL_ACCOUNT)?);
        Ok(Self {
            pages: [page()?, page()?, ring],
        })
    }

    fn run(&self) -> *mut kvm_run {
        self.pages[0].as_ptr().cast()
    }

    /// Maps the pages into user space.
    ///
    /// # Safety
    ///
    /// `vma` comes from an `mmap` call that is under way.
    pub(crate) unsafe fn map(&self, vma: *mut bindings::vm_area_struct) -> Result {
        let pages: [*mut c_void; PAGES] =
            core::array::from_fn(|i| self.pages[i].as_ptr().cast::<c_void>());
        // SAFETY: As promised by the caller; the pages are there to be shown.
        unsafe { linux::map_pages(vma, &pages, 0) }
    }

    /// The VMM wants KVM_RUN to return at once.
    pub(crate) fn immediate_exit(&self) -> bool {
        field!(read self, immediate_exit__unsafe) != 0
    }

    /// The VMM wants to know when the guest can take an interrupt.
    pub(crate) fn request_interrupt_window(&self) -> bool {
        field!(read self, request_interrupt_window) != 0
    }

    /// CR8, as the VMM last set it; counts without a LAPIC in the kernel.
    pub(crate) fn cr8(&self) -> u64 {
        field!(read self, cr8)
    }

    /// What every return of KVM_RUN reports.
    pub(crate) fn set_common(&self, common: &Common) {
        field!(write self, u8::from(common.ready_for_interrupt), ready_for_interrupt_injection);
        field!(write self, u8::from(common.if_flag), if_flag);
        field!(write self, common.cr8, cr8);
        field!(write self, common.apic_base, apic_base);
        field!(write self, 0, flags);
    }

    /// The sets of registers that the VMM wants to see, and those that it has changed.
    pub(crate) fn sync_fields(&self) -> (u64, u64) {
        (
            field!(read self, kvm_valid_regs),
            field!(read self, kvm_dirty_regs),
        )
    }

    /// What the VMM has changed is taken.
    pub(crate) fn clear_dirty(&self) {
        field!(write self, 0, kvm_dirty_regs);
    }

    /// The VMM's general registers.
    pub(crate) fn sync_regs(&self) -> uapi::kvm_regs {
        field!(read self, s.regs.regs)
    }

    /// The VMM's special registers.
    pub(crate) fn sync_sregs(&self) -> uapi::kvm_sregs {
        field!(read self, s.regs.sregs)
    }

    /// The VMM's events.
    pub(crate) fn sync_events(&self) -> uapi::kvm_vcpu_events {
        field!(read self, s.regs.events)
    }

    /// Shows the general registers.
    pub(crate) fn show_regs(&self, regs: uapi::kvm_regs) {
        field!(write self, regs, s.regs.regs);
    }

    /// Shows the special registers.
    pub(crate) fn show_sregs(&self, sregs: uapi::kvm_sregs) {
        field!(write self, sregs, s.regs.sregs);
    }

    /// Shows the events.
    pub(crate) fn show_events(&self, events: uapi::kvm_vcpu_events) {
        field!(write self, events, s.regs.events);
    }

    /// Sets the exit reason.
    pub(crate) fn set_reason(&self, reason: u32) {
        field!(write self, reason, exit_reason);
    }

    /// KVM_EXIT_IO: elements of `size` bytes, or one that goes out if there is data.
    pub(crate) fn set_io(&self, port: u16, size: u8, count: u16, out: Option<u32>) {
        let direction = if out.is_some() {
            uapi::KVM_EXIT_IO_OUT
        } else {
            uapi::KVM_EXIT_IO_IN
        };
        field!(write self, direction as u8, __bindgen_anon_1.io.direction);
        field!(write self, size, __bindgen_anon_1.io.size);
        field!(write self, port, __bindgen_anon_1.io.port);
        field!(write self, u32::from(count), __bindgen_anon_1.io.count);
        field!(write self, PIO_DATA as u64, __bindgen_anon_1.io.data_offset);
        let data: *mut u8 = self.pages[1].as_ptr().cast();
        // A VMM may leave what it does not know as it is: it reads as zeros.
        let bytes = (usize::from(size) * usize::from(count)).clamp(4, PIO_SIZE);
        // SAFETY: The page is ours, and large enough; the VMM may write it meanwhile, which is its
        // own.
        unsafe {
            data.write_bytes(0, bytes);
            data.cast::<u32>().write_volatile(out.unwrap_or(0));
        }
        self.set_reason(uapi::KVM_EXIT_IO);
    }

    /// The VMM's answer to KVM_EXIT_IO, from byte `offset` on.
    pub(crate) fn io_answer(&self, offset: usize, bytes: &mut [u8]) {
        let length = bytes.len().min(PIO_SIZE.saturating_sub(offset));
        let data: *const u8 = self.pages[1].as_ptr().cast();
        // SAFETY: So much is in the page, which is ours. The VMM may write it meanwhile, and then
        // gets what it wrote or what was there: the bytes are copied by C, once, and mean nothing
        // here.
        unsafe {
            bindings::memcpy(
                bytes.as_mut_ptr().cast(),
                data.add(offset.min(PIO_SIZE)).cast(),
                length,
            )
        };
    }

    /// KVM_EXIT_MMIO.
    pub(crate) fn set_mmio(&self, gpa: u64, len: u8, write: Option<[u8; 8]>) {
        field!(write self, gpa, __bindgen_anon_1.mmio.phys_addr);
        field!(write self, write.unwrap_or_default(), __bindgen_anon_1.mmio.data);
        field!(write self, u32::from(len), __bindgen_anon_1.mmio.len);
        field!(write self, u8::from(write.is_some()), __bindgen_anon_1.mmio.is_write);
        self.set_reason(uapi::KVM_EXIT_MMIO);
    }

    /// The VMM's answer to KVM_EXIT_MMIO.
    pub(crate) fn mmio_data(&self) -> [u8; 8] {
        field!(read self, __bindgen_anon_1.mmio.data)
    }

    /// KVM_EXIT_IOAPIC_EOI.
    pub(crate) fn set_eoi(&self, vector: u8) {
        field!(write self, vector, __bindgen_anon_1.eoi.vector);
        self.set_reason(uapi::KVM_EXIT_IOAPIC_EOI);
    }

    /// KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR.
    pub(crate) fn set_msr(&self, index: u32, write: Option<u64>, reason: u32) {
        field!(write self, 0, __bindgen_anon_1.msr.error);
        field!(write self, reason, __bindgen_anon_1.msr.reason);
        field!(write self, index, __bindgen_anon_1.msr.index);
        field!(write self, write.unwrap_or(0), __bindgen_anon_1.msr.data);
        self.set_reason(match write {
            Some(_) => uapi::KVM_EXIT_X86_WRMSR,
            None => uapi::KVM_EXIT_X86_RDMSR,
        });
    }

    /// The VMM's answer to them: the value, or `None` for #GP.
    pub(crate) fn msr_answer(&self) -> Option<u64> {
        let error = field!(read self, __bindgen_anon_1.msr.error);
        (error == 0).then(|| field!(read self, __bindgen_anon_1.msr.data))
    }

    /// KVM_EXIT_DEBUG.
    pub(crate) fn set_debug(&self, exception: u8, pc: u64, dr6: u64, dr7: u64) {
        field!(write self, u32::from(exception), __bindgen_anon_1.debug.arch.exception);
        field!(write self, pc, __bindgen_anon_1.debug.arch.pc);
        field!(write self, dr6, __bindgen_anon_1.debug.arch.dr6);
        field!(write self, dr7, __bindgen_anon_1.debug.arch.dr7);
        self.set_reason(uapi::KVM_EXIT_DEBUG);
    }

    /// KVM_EXIT_FAIL_ENTRY.
    pub(crate) fn set_fail_entry(&self, reason: u64) {
        field!(write self, reason, __bindgen_anon_1.fail_entry.hardware_entry_failure_reason);
        field!(write self, linux::cpu(), __bindgen_anon_1.fail_entry.cpu);
        self.set_reason(uapi::KVM_EXIT_FAIL_ENTRY);
    }

    /// KVM_EXIT_INTERNAL_ERROR with up to sixteen words of data.
    pub(crate) fn set_internal_error(&self, suberror: u32, data: &[u64]) {
        let mut all = [0; 16];
        for (to, from) in all.iter_mut().zip(data) {
            *to = *from;
        }
        field!(write self, suberror, __bindgen_anon_1.internal.suberror);
        field!(write self, data.len().min(16) as u32, __bindgen_anon_1.internal.ndata);
        field!(write self, all, __bindgen_anon_1.internal.data);
        self.set_reason(uapi::KVM_EXIT_INTERNAL_ERROR);
    }
}

/// What the VMM is told of an exit, and what it answers.
pub(crate) struct Answer {
    reason: u32,
    about: [u8; ABOUT_SIZE],
    /// Of a port access that waits for its answer.
    data: KVec<u8>,
}

/// Where `struct kvm_run` has what belongs to the exit reason, and how much it is.
const ABOUT: usize = offset_of!(kvm_run, __bindgen_anon_1);
const ABOUT_SIZE: usize = offset_of!(kvm_run, kvm_valid_regs) - ABOUT;

impl RunPage {
    /// What the VMM was told last, and what it has answered, with so many bytes of port data.
    pub(crate) fn answer(&self, port_bytes: usize) -> Result<Answer> {
        let port_bytes = port_bytes.min(PIO_SIZE);
        let mut answer = Answer {
            reason: field!(read self, exit_reason),
            about: [0; ABOUT_SIZE],
            data: KVec::from_elem(0, port_bytes, GFP_KERNEL_ACCOUNT)?,
        };
        // SAFETY: So much is in the pages, which are ours. The VMM may write them meanwhile: the
        // bytes are copied by C, once, and mean nothing here.
        unsafe {
            let about = answer.about.as_mut_ptr().cast();
            bindings::memcpy(about, self.about(), ABOUT_SIZE);
            let data = answer.data.as_mut_ptr().cast();
            bindings::memcpy(data, self.pages[1].as_ptr().cast(), port_bytes);
        }
        Ok(answer)
    }

    /// The pages show this again.
    pub(crate) fn put_back(&self, answer: &Answer) {
        // SAFETY: As above.
        unsafe {
            bindings::memcpy(self.about(), answer.about.as_ptr().cast(), ABOUT_SIZE);
            let data = self.pages[1].as_ptr().cast();
            bindings::memcpy(data, answer.data.as_ptr().cast(), answer.data.len());
        }
        self.set_reason(answer.reason);
    }

    fn about(&self) -> *mut c_void {
        let page: *mut u8 = self.pages[0].as_ptr().cast();
        page.wrapping_add(ABOUT).cast()
    }
}

/// Fields that every return of KVM_RUN fills.
pub(crate) struct Common {
    pub(crate) ready_for_interrupt: bool,
    pub(crate) if_flag: bool,
    pub(crate) cr8: u64,
    pub(crate) apic_base: u64,
}
