// SPDX-License-Identifier: GPL-2.0-only

//! The walk of the guest's own page tables (APM vol. 2, chapter 5).
//!
//! ```text
//!   walk    descend ─► permit ─► mark accessed and dirty ─► Translation
//!   inspect descend ──────────────────────────────────────► Translation
//! ```
//!
//! The tables are read anew each time; nothing is cached. In PAE mode that includes the four
//! page-directory-pointer entries, which are read from memory at CR3 and not from registers that a
//! write of CR3 has loaded: APM vol. 2, 15.25.10, has the CPU do so, too, under nested paging.
//!
//! Shadow stacks are not known here: they are not offered to guests.

mod format;

use crate::cpu::{Access, GuestMemory, MemError, Stop};
use crate::regs::{Cr0, Cr4, Efer, Exception};
use format::{entry, Format};

/// The registers that decide how a linear address is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagingState {
    /// CR0.
    pub cr0: Cr0,
    /// CR3 with the PCID and cache bits, as the register holds it.
    pub cr3: u64,
    /// CR4.
    pub cr4: Cr4,
    /// EFER.
    pub efer: Efer,
    /// Current privilege level.
    pub cpl: u8,
    /// RFLAGS.AC, which lifts SMAP for explicit accesses.
    pub rflags_ac: bool,
    /// PKRU: what each protection key forbids, while CR4.PKE is set.
    pub pkru: u32,
    /// Width of physical addresses in the guest's CPUID (leaf `8000_0008`).
    pub max_phys_bits: u8,
    /// The guest's CPUID offers 1 GiB pages.
    pub gbpages: bool,
}

/// A translated address, and what the page allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address of the byte asked for.
    pub gpa: u64,
    /// log2 of the page size: 12, 21, 22 or 30; without paging 12.
    pub page_bits: u8,
    /// Every level has U/S set.
    pub user: bool,
    /// Every level has R/W set.
    pub writable: bool,
    /// No level has NX set.
    pub executable: bool,
}

/// Why a linear address could not be translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// The guest gets this #PF.
    Fault(Exception),
    /// A page table could not be accessed. `WouldSleep` is also the answer when other CPUs changed
    /// the tables again and again: the instruction is to be run once more.
    Mem(MemError),
}

impl From<WalkError> for Stop {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::Fault(exception) => Stop::Exception(exception),
            WalkError::Mem(MemError::WouldSleep) => Stop::WouldSleep,
            WalkError::Mem(MemError::Fault) => Stop::Fault,
            WalkError::Mem(MemError::Unbacked | MemError::ReadOnly) => Stop::Unhandled,
        }
    }
}

/// Translates `linear` for `access`, and sets the accessed and dirty bits on the way.
///
/// They are set only after the access was found to be permitted. Tables in read-only memory are
/// used as they are; where there is no memory at all, nothing is present. The caller checks that
/// `linear` is canonical; if it is not, the upper bits are ignored.
pub fn walk<M: GuestMemory>(
    mem: &mut M,
    state: &PagingState,
    linear: u64,
    access: Access,
) -> Result<Translation, WalkError> {
    let page = checked(mem, state, linear, access, &mut Untraced)?;
    if page.is_marked(is_write(access)) {
        Ok(page.translation)
    } else {
        walk_and_mark(mem, state, linear, access)
    }
}

/// [`walk`], once it is known that bits are to be set: it happens once per page.
#[cold]
fn walk_and_mark<M: GuestMemory>(
    mem: &mut M,
    state: &PagingState,
    linear: u64,
    access: Access,
) -> Result<Translation, WalkError> {
    for _ in 0..ATTEMPTS {
        let mut path = Path::new();
        let page = checked(mem, state, linear, access, &mut path)?;
        if path.mark(mem, is_write(access)).map_err(WalkError::Mem)? {
            return Ok(page.translation);
        }
    }
    Err(WalkError::Mem(MemError::WouldSleep))
}

/// Translates without regard to permissions, and changes nothing: for `KVM_TRANSLATE` and
/// debuggers.
///
/// A #PF is that of a supervisor's read.
pub fn inspect<M: GuestMemory>(
    mem: &mut M,
    state: &PagingState,
    linear: u64,
) -> Result<Translation, WalkError> {
    // A VMM asks for an address, and gets it back as it is.
    if !state.cr0.contains(Cr0::PG) {
        return Ok(Page::unpaged(linear).translation);
    }
    descend(mem, state, linear, &mut Untraced)
        .map(|page| page.translation)
        .map_err(|obstacle| obstacle.into_error(state, linear, Access::SystemRead))
}

/// How often [`walk`] begins anew because an entry changed between reading and marking it.
const ATTEMPTS: u32 = 8;

/// Bits of the #PF error code (APM vol. 2, 8.4.2).
mod code {
    pub(super) const P: u32 = 1 << 0;
    pub(super) const W: u32 = 1 << 1;
    pub(super) const U: u32 = 1 << 2;
    pub(super) const RSVD: u32 = 1 << 3;
    pub(super) const ID: u32 = 1 << 4;
    pub(super) const PK: u32 = 1 << 5;
}

/// What stops a descent.
enum Obstacle {
    NotPresent,
    Reserved,
    Mem(MemError),
}

impl Obstacle {
    #[cold]
    fn into_error(self, state: &PagingState, linear: u64, access: Access) -> WalkError {
        match self {
            // Where no memory is there are no entries that are present.
            Obstacle::NotPresent | Obstacle::Mem(MemError::Unbacked) => {
                page_fault(state, linear, access, 0)
            }
            Obstacle::Reserved => page_fault(state, linear, access, code::P | code::RSVD),
            Obstacle::Mem(error) => WalkError::Mem(error),
        }
    }
}

#[cold]
fn page_fault(state: &PagingState, linear: u64, access: Access, cause: u32) -> WalkError {
    let mut error_code = cause;
    if is_write(access) {
        error_code |= code::W;
    }
    if is_user(state, access) {
        error_code |= code::U;
    }
    if access == Access::Fetch && (state.cr4.contains(Cr4::SMEP) || Format::of(state).has_nx(state))
    {
        error_code |= code::ID;
    }
    WalkError::Fault(Exception::page_fault(effective(state, linear), error_code))
}

fn is_write(access: Access) -> bool {
    matches!(access, Access::Write | Access::SystemWrite)
}

fn is_system(access: Access) -> bool {
    matches!(access, Access::SystemRead | Access::SystemWrite)
}

fn is_user(state: &PagingState, access: Access) -> bool {
    state.cpl == 3 && !is_system(access)
}

/// `linear` as far as the mode uses it: outside long mode, linear addresses have 32 bits.
fn effective(state: &PagingState, linear: u64) -> u64 {
    if format::is_long(state) {
        linear
    } else {
        linear & u64::from(u32::MAX)
    }
}

/// Where a descent ended.
struct Page {
    translation: Translation,
    /// The bits that all entries have.
    all: u64,
    /// The page's own entry.
    leaf: u64,
}

impl Page {
    /// Without paging, everything is allowed and there is nothing to mark.
    #[inline]
    fn unpaged(gpa: u64) -> Self {
        Self {
            translation: Translation {
                gpa,
                page_bits: 12,
                user: true,
                writable: true,
                executable: true,
            },
            all: u64::MAX,
            leaf: u64::MAX,
        }
    }

    /// True if the accessed bits, and for a write the page's dirty bit, are set already.
    #[inline]
    fn is_marked(&self, write: bool) -> bool {
        self.all & entry::A != 0 && (!write || self.leaf & entry::D != 0)
    }
}

/// Takes note of the entries that a descent uses, from the root to the page, as far as they hold
/// permissions.
trait Trace {
    /// The entry at `gpa`, of eight bytes if it is `wide`, else of four.
    fn push(&mut self, gpa: u64, entry: u64, wide: bool);
}

/// Takes no note.
struct Untraced;

impl Trace for Untraced {
    #[inline]
    fn push(&mut self, _: u64, _: u64, _: bool) {}
}

/// An entry that was used, and where it is.
#[derive(Clone, Copy, Default)]
struct Step {
    gpa: u64,
    entry: u64,
    wide: bool,
}

/// The entries that were used.
struct Path {
    steps: [Step; MAX_LEVELS],
    len: usize,
}

const MAX_LEVELS: usize = 5;

impl Path {
    fn new() -> Self {
        Self {
            steps: [Step::default(); MAX_LEVELS],
            len: 0,
        }
    }

    /// Sets the accessed bits, and for a write the page's dirty bit. `Ok(false)` if an entry is no
    /// longer the one that was used.
    fn mark<M: GuestMemory>(&self, mem: &mut M, write: bool) -> Result<bool, MemError> {
        let steps = self.steps.get(..self.len).unwrap_or(&[]);
        for (depth, step) in steps.iter().enumerate() {
            let leaf = depth.wrapping_add(1) == self.len;
            let dirty = if leaf && write { entry::D } else { 0 };
            let marked = step.entry | entry::A | dirty;
            if marked == step.entry {
                continue;
            }
            let size = if step.wide { 8 } else { 4 };
            match mem.compare_exchange_gpa(step.gpa, size, step.entry, marked) {
                Ok(Ok(())) | Err(MemError::ReadOnly) => {}
                Ok(Err(_)) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
impl Trace for Path {
    fn push(&mut self, gpa: u64, entry: u64, wide: bool) {
        if let Some(step) = self.steps.get_mut(self.len) {
            *step = Step { gpa, entry, wide };
            self.len = self.len.wrapping_add(1);
        }
    }
}

/// Follows the tables down to the page, without a look at permissions.
#[inline]
fn descend<M: GuestMemory>(
    mem: &mut M,
    state: &PagingState,
    linear: u64,
    trace: &mut impl Trace,
) -> Result<Page, Obstacle> {
    let linear = effective(state, linear);
    if !state.cr0.contains(Cr0::PG) {
        return Ok(Page::unpaged(linear));
    }
    let format = Format::of(state);
    let reserved_high = format.reserved_high(state);
    let mut table = format.root(state.cr3);
    let mut shift = format.root_shift;
    let mut level = format.levels;
    let (mut all, mut any) = (u64::MAX, 0);
    loop {
        let index = linear.wrapping_shr(shift) & format.index_mask;
        let gpa = table.wrapping_add(index.wrapping_mul(format.size));
        let entry = read_entry(mem, gpa, format.wide).map_err(Obstacle::Mem)?;
        if entry & entry::P == 0 {
            return Err(Obstacle::NotPresent);
        }
        let leaf = level == 1 || (entry & entry::PS != 0 && format.has_pages(state, level));
        if entry & (reserved_high | format.reserved_low(state, level, leaf)) != 0 {
            return Err(Obstacle::Reserved);
        }
        // A PAE page-directory-pointer entry holds neither permissions nor an accessed bit.
        if !(format.pae && level == 3) {
            all &= entry;
            any |= entry;
            trace.push(gpa, entry, format.wide);
        }
        if leaf {
            let gpa = format.page(shift, entry) | (linear & entry::below(shift));
            let translation = Translation {
                gpa,
                page_bits: shift as u8,
                user: all & entry::US != 0,
                writable: all & entry::RW != 0,
                executable: any & entry::NX == 0,
            };
            return Ok(Page {
                translation,
                all,
                leaf: entry,
            });
        }
        table = entry & entry::ADDRESS;
        // Level 1 is always a leaf.
        level = level.wrapping_sub(1);
        shift = shift.wrapping_sub(format.index_bits);
    }
}

#[inline]
fn read_entry<M: GuestMemory>(mem: &mut M, gpa: u64, wide: bool) -> Result<u64, MemError> {
    if wide {
        let mut bytes = [0; 8];
        mem.read_gpa(gpa, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    } else {
        let mut bytes = [0; 4];
        mem.read_gpa(gpa, &mut bytes)?;
        Ok(u64::from(u32::from_le_bytes(bytes)))
    }
}

/// Descends and checks permissions.
#[inline]
fn checked<M: GuestMemory>(
    mem: &mut M,
    state: &PagingState,
    linear: u64,
    access: Access,
    trace: &mut impl Trace,
) -> Result<Page, WalkError> {
    match descend(mem, state, linear, trace) {
        Ok(page) => {
            let key = if key_forbids(state, &page, access) {
                code::PK
            } else {
                0
            };
            if key == 0 && permits(state, &page.translation, access) {
                Ok(page)
            } else {
                Err(page_fault(state, linear, access, code::P | key))
            }
        }
        Err(obstacle) => Err(obstacle.into_error(state, linear, access)),
    }
}

/// Protection keys of user pages in long mode (APM vol. 2, 5.6.7): they are for data only.
#[inline]
fn key_forbids(state: &PagingState, page: &Page, access: Access) -> bool {
    const ACCESS_DISABLE: u32 = 1 << 0;
    const WRITE_DISABLE: u32 = 1 << 1;
    let has_key = state.cr4.contains(Cr4::PKE) && state.cr0.contains(Cr0::PG);
    if !has_key || !format::is_long(state) || access == Access::Fetch || !page.translation.user {
        return false;
    }
    let key = (page.leaf >> entry::KEY_SHIFT) as u32 & entry::KEY_MASK;
    let rights = state.pkru.wrapping_shr(2 * key);
    let is_bound = is_user(state, access) || state.cr0.contains(Cr0::WP);
    rights & ACCESS_DISABLE != 0 || (rights & WRITE_DISABLE != 0 && is_write(access) && is_bound)
}

/// Page-protection checks (APM vol. 2, 5.6).
#[inline]
fn permits(state: &PagingState, page: &Translation, access: Access) -> bool {
    if !state.cr0.contains(Cr0::PG) {
        return true;
    }
    if access == Access::Fetch {
        return page.executable
            && if is_user(state, access) {
                page.user
            } else {
                !(page.user && state.cr4.contains(Cr4::SMEP))
            };
    }
    if is_user(state, access) {
        return page.user && (page.writable || !is_write(access));
    }
    if is_write(access) && !page.writable && state.cr0.contains(Cr0::WP) {
        return false;
    }
    // RFLAGS.AC is for accesses that software asked for, not for those of descriptor tables.
    let may_touch_user = state.rflags_ac && !is_system(access);
    !page.user || !state.cr4.contains(Cr4::SMAP) || may_touch_user
}
