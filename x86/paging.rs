// SPDX-License-Identifier: GPL-2.0-only

//! The walk of the guest's own page tables (APM vol. 2, chapter 5).
//!
//! ```text
//!   walk    descend ─► permit ─► mark accessed and dirty ─► Translation
//!   probe   descend ─► permit ────────────────────────────► Translation
//!   inspect descend ──────────────────────────────────────► Translation
//! ```
//!
//! The tables are read anew each time; nothing is cached. In PAE mode that includes the four
//! page-directory-pointer entries, which are read from memory at CR3 and not from registers that a
//! write of CR3 has loaded: APM vol. 2, 15.25.10, has the CPU do so, too, under nested paging.
//!
//! Protection keys and shadow stacks are not known here: they are not offered to guests.

use crate::cpu::{Access, GuestMemory, MemError, Stop};
use crate::regs::{Cr0, Cr4, Efer, Exception};

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
/// used as they are. The caller checks that `linear` is canonical; if it is not, the upper bits
/// are ignored.
pub fn walk<M: GuestMemory>(
    mem: &mut M,
    state: &PagingState,
    linear: u64,
    access: Access,
) -> Result<Translation, WalkError> {
    for _ in 0..ATTEMPTS {
        let path = checked_path(mem, state, linear, access)?;
        if mark(mem, &path, is_write(access)).map_err(WalkError::Mem)? {
            return Ok(path.translation);
        }
    }
    Err(WalkError::Mem(MemError::WouldSleep))
}

/// Translates as [`walk`] does, with the same faults, but changes nothing in the guest.
pub fn probe<M: GuestMemory>(
    mem: &mut M,
    state: &PagingState,
    linear: u64,
    access: Access,
) -> Result<Translation, WalkError> {
    Ok(checked_path(mem, state, linear, access)?.translation)
}

/// Translates without regard to permissions, and changes nothing: for `KVM_TRANSLATE` and debuggers.
///
/// A #PF is that of a supervisor's read.
pub fn inspect<M: GuestMemory>(
    mem: &mut M,
    state: &PagingState,
    linear: u64,
) -> Result<Translation, WalkError> {
    match descend(mem, state, linear) {
        Ok(path) => Ok(path.translation),
        Err(obstacle) => Err(obstacle.into_error(state, linear, Access::SystemRead)),
    }
}

/// How often [`walk`] begins anew because an entry changed between reading and marking it.
const ATTEMPTS: u32 = 8;

/// Bits of a page-table entry that all formats share (APM vol. 2, 5.4.1).
mod entry {
    pub(super) const P: u64 = 1 << 0;
    pub(super) const RW: u64 = 1 << 1;
    pub(super) const US: u64 = 1 << 2;
    pub(super) const A: u64 = 1 << 5;
    pub(super) const D: u64 = 1 << 6;
    pub(super) const PS: u64 = 1 << 7;
    pub(super) const G: u64 = 1 << 8;
    pub(super) const NX: u64 = 1 << 63;
    /// Where a table or a page begins, before the width of physical addresses is applied.
    pub(super) const ADDRESS: u64 = bits(12, 51);
    /// Reserved in a PAE page-directory-pointer entry (APM vol. 2, 5.2.3): bits 1, 2 and 5 to 8.
    /// Bit 5 is let through, since QEMU's CPUs set it as if it were an accessed bit.
    pub(super) const PAE_PDPE_RESERVED: u64 = bits(1, 2) | bits(6, 8) | NX;
    /// Available to software in long mode, reserved in PAE mode.
    pub(super) const PAE_HIGH: u64 = bits(52, 62);
    /// In a 4 MiB page's entry, physical address bits 32 to 39 (APM vol. 2, 5.2.2).
    pub(super) const PSE_HIGH: u64 = bits(13, 20);
    pub(super) const PSE_RESERVED: u64 = bits(21, 21);

    /// Bits `low` to `high`, both included.
    pub(super) const fn bits(low: u32, high: u32) -> u64 {
        (u64::MAX >> (63 - high)) & (u64::MAX << low)
    }

    /// Bits below `count`.
    pub(super) const fn below(count: u32) -> u64 {
        !u64::MAX.wrapping_shl(count)
    }
}

/// Bits of the #PF error code (APM vol. 2, 8.4.2).
mod code {
    pub(super) const P: u32 = 1 << 0;
    pub(super) const W: u32 = 1 << 1;
    pub(super) const U: u32 = 1 << 2;
    pub(super) const RSVD: u32 = 1 << 3;
    pub(super) const ID: u32 = 1 << 4;
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
            Obstacle::NotPresent => page_fault(state, linear, access, 0),
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
    if access == Access::Fetch && (state.cr4.contains(Cr4::SMEP) || Format::of(state).nx) {
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

fn is_long(state: &PagingState) -> bool {
    state.efer.contains(Efer::LMA)
}

/// `linear` as far as the mode uses it: outside long mode, linear addresses have 32 bits.
fn effective(state: &PagingState, linear: u64) -> u64 {
    if is_long(state) {
        linear
    } else {
        linear & u64::from(u32::MAX)
    }
}

/// The shape of the tables (APM vol. 2, table 5-1).
#[derive(Clone, Copy)]
struct Format {
    levels: u32,
    /// Bits of the linear address that index one table.
    index_bits: u32,
    /// Entries have eight bytes, not four.
    wide: bool,
    /// EFER.NXE counts.
    nx: bool,
    /// PAE without long mode: the third level has entries of its own kind.
    pae: bool,
}

impl Format {
    fn of(state: &PagingState) -> Self {
        let nx = state.efer.contains(Efer::NXE);
        let wide = |levels, pae| Self {
            levels,
            index_bits: 9,
            wide: true,
            nx,
            pae,
        };
        if is_long(state) {
            wide(if state.cr4.contains(Cr4::LA57) { 5 } else { 4 }, false)
        } else if state.cr4.contains(Cr4::PAE) {
            wide(3, true)
        } else {
            Self {
                levels: 2,
                index_bits: 10,
                wide: false,
                nx: false,
                pae: false,
            }
        }
    }

    /// log2 of what one entry of the topmost table maps.
    fn root_shift(&self) -> u32 {
        match self.levels {
            2 => 22,
            3 => 30,
            4 => 39,
            _ => 48,
        }
    }

    /// Where the topmost table begins (APM vol. 2, figures 5-3 and 5-16).
    fn root(&self, cr3: u64) -> u64 {
        match (self.pae, self.wide) {
            (true, _) => cr3 & entry::bits(5, 31),
            (false, false) => cr3 & entry::bits(12, 31),
            (false, true) => cr3 & entry::ADDRESS,
        }
    }

    /// Bytes of an entry.
    fn size(&self) -> usize {
        if self.wide {
            8
        } else {
            4
        }
    }

    /// True if `entry` of `level` maps a page.
    fn is_leaf(&self, state: &PagingState, level: u32, entry: u64) -> bool {
        if level == 1 {
            return true;
        }
        let large = match level {
            2 => self.wide || state.cr4.contains(Cr4::PSE),
            3 => !self.pae && state.gbpages,
            _ => false,
        };
        large && entry & entry::PS != 0
    }

    /// The bits that must be zero in every entry.
    fn reserved_high(&self, state: &PagingState) -> u64 {
        if !self.wide {
            return 0;
        }
        let beyond = entry::ADDRESS & !entry::below(phys_bits(state));
        let nx = if self.nx { 0 } else { entry::NX };
        let pae = if self.pae { entry::PAE_HIGH } else { 0 };
        beyond | nx | pae
    }

    /// The bits that must be zero in an entry of `level`, apart from [`Format::reserved_high`].
    fn reserved_low(&self, state: &PagingState, level: u32, leaf: bool) -> u64 {
        match (level, leaf) {
            (1, _) | (2, false) => 0,
            (2, true) if !self.wide => {
                let beyond = phys_bits(state).saturating_sub(32).min(8);
                (entry::PSE_HIGH & entry::PSE_HIGH.wrapping_shl(beyond)) | entry::PSE_RESERVED
            }
            // Bit 12 is PAT; the address begins where the page size says.
            (2, true) => entry::bits(13, 20),
            (_, true) => entry::bits(13, 29),
            (3, false) if self.pae => entry::PAE_PDPE_RESERVED,
            // G is for pages only, and there is a page size only where it is offered.
            (_, false) => entry::PS | entry::G,
        }
    }

    /// Where the page of `2^shift` bytes begins that a leaf `entry` maps.
    fn page(&self, shift: u32, entry: u64) -> u64 {
        if !self.wide && shift == 22 {
            let high = (entry & entry::PSE_HIGH) >> 13 << 32;
            return (entry & entry::bits(22, 31)) | high;
        }
        entry & entry::ADDRESS & !entry::below(shift)
    }
}

/// Width of physical addresses, forced into what the architecture allows.
fn phys_bits(state: &PagingState) -> u32 {
    u32::from(state.max_phys_bits).clamp(32, 52)
}

/// An entry that was used, and where it is.
#[derive(Clone, Copy, Default)]
struct Step {
    gpa: u64,
    entry: u64,
}

/// The entries from the root to the page, the page's own last.
struct Path {
    steps: [Step; MAX_LEVELS],
    len: usize,
    /// Bytes of an entry.
    size: usize,
    translation: Translation,
}

const MAX_LEVELS: usize = 5;

impl Path {
    /// The path of an address that is not translated at all.
    fn unpaged(gpa: u64) -> Self {
        Self {
            steps: [Step::default(); MAX_LEVELS],
            len: 0,
            size: 8,
            translation: Translation {
                gpa,
                page_bits: 12,
                user: true,
                writable: true,
                executable: true,
            },
        }
    }

    /// Adds an entry to the path and its restrictions to the page's.
    fn push(&mut self, gpa: u64, entry: u64) {
        if let Some(step) = self.steps.get_mut(self.len) {
            *step = Step { gpa, entry };
            self.len = self.len.wrapping_add(1);
        }
        self.translation.user &= entry & entry::US != 0;
        self.translation.writable &= entry & entry::RW != 0;
        self.translation.executable &= entry & entry::NX == 0;
    }
}

/// Follows the tables down to the page, without a look at permissions.
fn descend<M: GuestMemory>(
    mem: &mut M,
    state: &PagingState,
    linear: u64,
) -> Result<Path, Obstacle> {
    let linear = effective(state, linear);
    let mut path = Path::unpaged(linear);
    if !state.cr0.contains(Cr0::PG) {
        return Ok(path);
    }
    let format = Format::of(state);
    path.size = format.size();
    let reserved_high = format.reserved_high(state);
    let index_mask = entry::below(format.index_bits);
    let mut table = format.root(state.cr3);
    let mut shift = format.root_shift();
    let mut level = format.levels;
    loop {
        let index = linear.wrapping_shr(shift) & index_mask;
        let gpa = table.wrapping_add(index.wrapping_mul(path.size as u64));
        let entry = read_entry(mem, gpa, format.wide).map_err(Obstacle::Mem)?;
        if entry & entry::P == 0 {
            return Err(Obstacle::NotPresent);
        }
        let leaf = format.is_leaf(state, level, entry);
        if entry & (reserved_high | format.reserved_low(state, level, leaf)) != 0 {
            return Err(Obstacle::Reserved);
        }
        // A PAE page-directory-pointer entry holds neither permissions nor an accessed bit.
        if !(format.pae && level == 3) {
            path.push(gpa, entry);
        }
        if leaf {
            path.translation.gpa = format.page(shift, entry) | (linear & entry::below(shift));
            path.translation.page_bits = shift as u8;
            return Ok(path);
        }
        table = entry & entry::ADDRESS;
        // Level 1 is always a leaf.
        level = level.wrapping_sub(1);
        shift = shift.wrapping_sub(format.index_bits);
    }
}

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
fn checked_path<M: GuestMemory>(
    mem: &mut M,
    state: &PagingState,
    linear: u64,
    access: Access,
) -> Result<Path, WalkError> {
    let path = match descend(mem, state, linear) {
        Ok(path) => path,
        Err(obstacle) => return Err(obstacle.into_error(state, linear, access)),
    };
    if path.len == 0 || permits(state, &path.translation, access) {
        Ok(path)
    } else {
        Err(page_fault(state, linear, access, code::P))
    }
}

/// Page-protection checks (APM vol. 2, 5.6).
fn permits(state: &PagingState, page: &Translation, access: Access) -> bool {
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

/// Sets the accessed bits, and for a write the page's dirty bit. `Ok(false)` if an entry is no
/// longer the one that was used.
fn mark<M: GuestMemory>(mem: &mut M, path: &Path, write: bool) -> Result<bool, MemError> {
    let steps = path.steps.get(..path.len).unwrap_or(&[]);
    for (depth, step) in steps.iter().enumerate() {
        let leaf = depth.wrapping_add(1) == path.len;
        let dirty = if leaf && write { entry::D } else { 0 };
        let marked = step.entry | entry::A | dirty;
        if marked == step.entry {
            continue;
        }
        match mem.compare_exchange_gpa(step.gpa, path.size, step.entry, marked) {
            Ok(Ok(())) | Err(MemError::ReadOnly) => {}
            Ok(Err(_)) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
