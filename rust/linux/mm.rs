// SPDX-License-Identifier: GPL-2.0-only

//! The C half of guest memory, and safe wrappers around it.
//!
//! Every declaration here has its twin in `helpers_memory.h`; the C functions are described in
//! `helpers_memory.c`.

use crate::linux::compat::is_poison;
use crate::linux::{Pages, Sleep};
use core::ptr::{null_mut, NonNull};
use kernel::bindings;
use kernel::error::to_result;
use kernel::ffi::{c_int, c_uint, c_ulong, c_void};
use kernel::prelude::*;
use kernel::types::Opaque;
use npt::{Hpa, Levels, PageSize};

#[expect(improper_ctypes, reason = "kernel structures with empty lock classes")]
extern "C" {
    fn pacifica_srcu_init(srcu: *mut bindings::srcu_struct) -> c_int;
    fn pacifica_srcu_lock(srcu: *mut bindings::srcu_struct) -> c_int;
    fn pacifica_srcu_unlock(srcu: *mut bindings::srcu_struct, index: c_int);
    fn pacifica_current_mm() -> *mut bindings::mm_struct;
    fn pacifica_access_ok(address: c_ulong, bytes: c_ulong) -> bool;
    fn pacifica_page_for_guest(page: *mut bindings::page, write: bool) -> u64;
    fn pacifica_page_for_guest_ahead(page: *mut bindings::page, write: bool) -> u64;
    fn pacifica_frame(
        mm: *mut bindings::mm_struct,
        address: c_ulong,
        write: bool,
        entry: *mut u64,
        writable: *mut bool,
    ) -> c_int;
    fn pacifica_account_table(table: *const c_void, count: c_int);
    fn pacifica_report_poison(address: c_ulong);
    fn pacifica_only_write_goes(range: *const bindings::mmu_notifier_range) -> bool;
    fn pacifica_put_pages(pages: *mut *mut bindings::page, count: c_uint);
    fn pacifica_host_level(mm: *mut bindings::mm_struct, address: c_ulong) -> c_uint;
    fn pacifica_host_paging_levels() -> c_uint;
    fn pacifica_host_address_limit() -> u64;
    fn pacifica_read_user(to: *mut c_void, from: c_ulong, bytes: c_ulong, may_sleep: bool)
        -> c_int;
    fn pacifica_write_user(
        to: c_ulong,
        from: *const c_void,
        bytes: c_ulong,
        may_sleep: bool,
    ) -> c_int;
    fn pacifica_write_page(to: c_ulong, page: *const c_void) -> c_int;
    fn pacifica_read_page(page: *mut c_void, from: c_ulong) -> c_int;
    fn pacifica_copy_of_page(from: c_ulong, error: *mut c_int) -> *mut c_void;
    fn pacifica_cmpxchg_user(
        address: c_ulong,
        bytes: c_uint,
        old: *mut u64,
        new: u64,
        may_sleep: bool,
    ) -> c_int;
}

/// The address space of the current thread; null in a kernel thread.
pub(crate) fn current_mm() -> *mut bindings::mm_struct {
    // SAFETY: No preconditions.
    unsafe { pacifica_current_mm() }
}

/// Whether a range can be user memory at all.
pub(crate) fn access_ok(address: u64, bytes: u64) -> bool {
    // SAFETY: No preconditions.
    unsafe { pacifica_access_ok(address as c_ulong, bytes as c_ulong) }
}

/// How many levels nested tables have on this host.
pub(crate) fn host_levels() -> Levels {
    // SAFETY: No preconditions.
    match unsafe { pacifica_host_paging_levels() } {
        5 => Levels::Five,
        _ => Levels::Four,
    }
}

/// The first physical address that the host's CPU cannot have.
pub(crate) fn host_address_limit() -> u64 {
    // SAFETY: No preconditions.
    unsafe { pacifica_host_address_limit() }
}

/// The size of the page that the process `mm` has at `address`.
///
/// # Safety
///
/// `mm` must be the address space of the current thread.
pub(crate) unsafe fn host_page_size(mm: *mut bindings::mm_struct, address: u64) -> PageSize {
    // SAFETY: As promised by the caller, so the tables of `mm` exist.
    match unsafe { pacifica_host_level(mm, address as c_ulong) } {
        3 => PageSize::Size1G,
        2 => PageSize::Size2M,
        _ => PageSize::Size4K,
    }
}

/// Whether the host only takes the right to write away, page by page: what is mapped stays what it
/// is.
///
/// # Safety
///
/// `range` is what the kernel calls a notifier with.
pub(crate) unsafe fn only_write_goes(range: *const bindings::mmu_notifier_range) -> bool {
    // SAFETY: As promised by the caller.
    unsafe { pacifica_only_write_goes(range) }
}

/// Tells the host that a page has become a table, or (-1) is none any more.
pub(crate) fn account_table(page: NonNull<u64>, count: i32) {
    // SAFETY: The callers have the page, which is one of the kernel's linear mapping.
    unsafe { pacifica_account_table(page.as_ptr().cast(), count) };
}

/// Reads memory of the current process; `EFAULT` if it is not there, or absent and
/// [`Sleep::Forbidden`].
#[inline]
pub(crate) fn read_user(to: &mut [u8], from: u64, sleep: Sleep) -> Result {
    // SAFETY: `to` is valid for the write; the C side checks the user address.
    match unsafe {
        pacifica_read_user(
            to.as_mut_ptr().cast(),
            from as c_ulong,
            to.len(),
            sleep.is_allowed(),
        )
    } {
        0 => Ok(()),
        _ => Err(EFAULT),
    }
}

/// Writes memory of the current process; errors as in [`read_user`].
#[inline]
pub(crate) fn write_user(to: u64, from: &[u8], sleep: Sleep) -> Result {
    // SAFETY: `from` is valid for the read; the C side checks the user address.
    to_result(unsafe {
        pacifica_write_user(
            to as c_ulong,
            from.as_ptr().cast(),
            from.len(),
            sleep.is_allowed(),
        )
    })
}

/// What a page of the current process holds, or held. All errors are as in [`read_user`], and
/// `ENOMEM`; all may sleep.
pub(crate) struct PageContent(Pages<[u8; 4096]>);

impl PageContent {
    /// What the page at `from` holds.
    pub(crate) fn new(from: u64) -> Result<Self> {
        let mut error = 0;
        // SAFETY: The variable is valid for the write; the C side checks the user address.
        let page = unsafe { pacifica_copy_of_page(from as c_ulong, &mut error) };
        match NonNull::new(page.cast()) {
            // SAFETY: It was allocated just now, and is full of bytes.
            Some(page) => Ok(Self(unsafe { Pages::from_raw(page) })),
            None => Err(Error::from_errno(error)),
        }
    }

    /// The page at `to` holds it.
    #[inline]
    pub(crate) fn write(&self, to: u64) -> Result {
        // SAFETY: The page is valid for the read; the C side checks the user address.
        to_result(unsafe { pacifica_write_page(to as c_ulong, self.0.as_ptr().cast()) })
    }

    /// It becomes what the page at `from` holds. After an error it is anything.
    pub(crate) fn read(&mut self, from: u64) -> Result {
        // SAFETY: The page is valid for the write, and ours alone; likewise.
        to_result(unsafe { pacifica_read_page(self.0.as_ptr().cast(), from as c_ulong) })
    }
}

/// Writes memory of the current process from memory that others may change meanwhile. May sleep.
///
/// # Safety
///
/// `from` is valid for reads of so many bytes by the kernel's C code.
pub(crate) unsafe fn write_user_from(to: u64, from: *const c_void, bytes: usize) -> Result {
    // SAFETY: As promised by the caller; the C side checks the user address.
    to_result(unsafe { pacifica_write_user(to as c_ulong, from, bytes, true) })
}

/// Replaces `old` by `new` in an aligned integer of the current process; errors as in
/// [`read_user`]. `Ok(Err(current))` if it was not `old`.
pub(crate) fn cmpxchg_user(
    address: u64,
    bytes: usize,
    old: u64,
    new: u64,
    sleep: Sleep,
) -> Result<core::result::Result<(), u64>> {
    let mut found = old;
    // SAFETY: `found` is valid for the write; the C side checks the rest.
    let result = unsafe {
        pacifica_cmpxchg_user(
            address as c_ulong,
            bytes as c_uint,
            &mut found,
            new,
            sleep.is_allowed(),
        )
    };
    match result {
        0 => Ok(Ok(())),
        1 => Ok(Err(found)),
        _ => Err(EFAULT),
    }
}

/// Sleepable RCU: readers that may sleep, and a writer that waits for those before it.
#[pin_data(PinnedDrop)]
pub(crate) struct Srcu {
    #[pin]
    inner: Opaque<bindings::srcu_struct>,
}

// SAFETY: The structure has its own synchronisation.
unsafe impl Send for Srcu {}
// SAFETY: Likewise.
unsafe impl Sync for Srcu {}

impl Srcu {
    /// One without readers.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // SAFETY: The C function initialises the structure, or fails and leaves nothing.
            inner <- Opaque::try_ffi_init(|p| to_result(unsafe { pacifica_srcu_init(p) })),
        })
    }

    /// Begins to read.
    #[inline]
    pub(crate) fn read(&self) -> SrcuGuard<'_> {
        // SAFETY: The structure was initialised.
        let index = unsafe { pacifica_srcu_lock(self.inner.get()) };
        SrcuGuard { srcu: self, index }
    }

    /// Waits for all who read now. May sleep.
    pub(crate) fn synchronize(&self) {
        // SAFETY: The structure was initialised.
        unsafe { bindings::synchronize_srcu_expedited(self.inner.get()) };
    }
}

#[pinned_drop]
impl PinnedDrop for Srcu {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: It was initialised, and a reader would hold a reference to it.
        unsafe { bindings::cleanup_srcu_struct(self.inner.get()) };
    }
}

/// Proof of a reader. Stays on the thread that made it.
pub(crate) struct SrcuGuard<'a> {
    srcu: &'a Srcu,
    index: c_int,
}

impl Drop for SrcuGuard<'_> {
    fn drop(&mut self) {
        // SAFETY: `read` gave us the index.
        unsafe { pacifica_srcu_unlock(self.srcu.inner.get(), self.index) };
    }
}

/// How many pages are looked up at once at most.
pub(crate) const MOST_PAGES: usize = 16;

/// References to adjoining host pages, put when dropped. It is kept and used again, because to make
/// and move it would cost more than all that is done with it.
///
/// # Invariants
///
/// The first `count` elements, at most [`MOST_PAGES`], point to pages that this value holds a
/// reference to.
pub(crate) struct HostPages {
    pages: [*mut bindings::page; MOST_PAGES],
    count: usize,
    /// In place of pages: the address of a frame that has no `struct page`, to which there can be
    /// no reference.
    frame: Option<Hpa>,
}

// SAFETY: References to pages belong to no thread.
unsafe impl Send for HostPages {}
// SAFETY: Nothing can be done with a shared reference that needs exclusion.
unsafe impl Sync for HostPages {}

/// Sends SIGBUS to the calling thread, as if it had met the poisoned memory at `hva` itself.
#[cold]
pub(crate) fn report_poison(hva: u64) {
    // SAFETY: Called in a thread of the process, with no lock that forbids sleeping.
    unsafe { pacifica_report_poison(hva as c_ulong) };
}

/// Whether an access at `hva` failed because memory is poisoned. May sleep.
#[cold]
pub(crate) fn is_poisoned(hva: u64) -> bool {
    matches!(HostPages::new().fetch(hva, false), Err(error) if is_poison(error))
}

impl HostPages {
    /// Creates an empty list.
    pub(crate) const fn new() -> Self {
        // INVARIANT: There are none.
        Self {
            pages: [null_mut(); MOST_PAGES],
            count: 0,
            frame: None,
        }
    }

    /// Looks up as many of the `count` pages from `hva` on as are present, with the right to write
    /// if `write` is set. Does not sleep. False if not even the first is.
    pub(crate) fn look_up(&mut self, hva: u64, count: usize, write: bool) -> bool {
        self.put();
        let flags = if write { bindings::FOLL_WRITE } else { 0 };
        let wanted = count.clamp(1, MOST_PAGES) as c_int;
        let pages = self.pages.as_mut_ptr();
        // SAFETY: The array has room for `wanted` pages.
        let found =
            unsafe { bindings::get_user_pages_fast_only(hva as c_ulong, wanted, flags, pages) };
        // INVARIANT: The kernel returned that many references.
        self.count = found.clamp(0, wanted) as usize;
        self.count > 0
    }

    /// Makes the page at `hva` present, and looks it up. May sleep: the caller has no lock that
    /// forbids it.
    pub(crate) fn fetch(&mut self, hva: u64, write: bool) -> Result {
        self.put();
        let mut flags = bindings::FOLL_HWPOISON | bindings::FOLL_INTERRUPTIBLE;
        if write {
            flags |= bindings::FOLL_WRITE;
        }
        let pages = self.pages.as_mut_ptr();
        // SAFETY: The array has room for one page.
        let found = unsafe { bindings::get_user_pages_unlocked(hva as c_ulong, 1, pages, flags) };
        match found {
            1 => {
                // INVARIANT: The kernel returned one reference.
                self.count = 1;
                Ok(())
            }
            // A page that went away again: the guest will ask again.
            0 => Err(EINTR),
            error => Err(Error::from_errno(error as c_int)),
        }
    }

    /// Finds the frame behind `hva` where the process has mapped one that has no `struct page`.
    /// True if the guest may write to it. `EFAULT` if there is none, `EAGAIN` if there may be one
    /// now. May sleep.
    ///
    /// # Safety
    ///
    /// `mm` must be the address space of the current thread.
    pub(crate) unsafe fn fetch_frame(
        &mut self,
        mm: *mut bindings::mm_struct,
        hva: u64,
        write: bool,
    ) -> Result<bool> {
        self.put();
        let (mut entry, mut writable) = (0, false);
        // SAFETY: As promised by the caller; the variables are valid for the writes.
        to_result(unsafe { pacifica_frame(mm, hva as c_ulong, write, &mut entry, &mut writable) })?;
        self.frame = Some(Hpa(entry));
        Ok(writable)
    }

    /// Gives the references back.
    #[inline]
    pub(crate) fn put(&mut self) {
        self.frame = None;
        if self.count > 0 {
            // SAFETY: By the invariant these are our references.
            unsafe { pacifica_put_pages(self.pages.as_mut_ptr(), self.count as c_uint) };
            // INVARIANT: There are none any more.
            self.count = 0;
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count.max(usize::from(self.frame.is_some()))
    }

    /// The address of the first page, which becomes reachable for the guest now.
    ///
    /// # Safety
    ///
    /// There is one. The caller holds the memory's lock and has seen, under it, that nothing was
    /// invalidated since the lookup. With `write` set the lookup was one for writing.
    #[inline]
    pub(crate) unsafe fn first(&self, write: bool) -> Hpa {
        if let Some(frame) = self.frame {
            return frame;
        }
        // SAFETY: This is a page with a reference; the rest as promised by the caller.
        Hpa(unsafe { pacifica_page_for_guest(self.pages[0], write) })
    }

    /// The address of another page, which becomes reachable though the guest has not asked for it;
    /// `None` if it should not.
    ///
    /// # Safety
    ///
    /// As for [`first`](Self::first).
    #[inline]
    pub(crate) unsafe fn ahead(&self, index: usize, write: bool) -> Option<Hpa> {
        let page = *self.pages[..self.count.min(MOST_PAGES)].get(index)?;
        // SAFETY: By the invariant this is a page with a reference; the rest as promised.
        let address = unsafe { pacifica_page_for_guest_ahead(page, write) };
        (address != 0).then_some(Hpa(address))
    }
}

impl Drop for HostPages {
    fn drop(&mut self) {
        self.put();
    }
}
