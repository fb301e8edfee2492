// SPDX-License-Identifier: GPL-2.0-only

//! The two traits through which the emulator and the page walk reach the guest.
//!
//! ```text
//!   emulate ── Cpu::read(linear) ──► paging::walk ── GuestMemory::read_gpa ──► slots, host memory
//!                     │                    └─ #PF ──► Stop::Exception
//!                     └─ no memory there ──► device ──► Stop::User, and the instruction is run
//!                                                       again when the answer is known
//! ```

use crate::features::Feature;
use crate::fxsave;
use crate::regs::{Cr0, Cr4};
use crate::regs::{Efer, Exception, Rflags, SegReg, Segment};

/// Why guest-physical memory could not be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemError {
    /// No memory slot is there: the address is a device's, or none's.
    Unbacked,
    /// The slot is read-only, and this was a write.
    ReadOnly,
    /// The host page is not present, and the caller may not sleep now.
    WouldSleep,
    /// The process that owns the memory has none at that address (`EFAULT`).
    Fault,
}

/// Guest-physical memory. No access crosses a 4 KiB boundary; callers split.
pub trait GuestMemory {
    /// Reads `buf.len()` bytes at `gpa`.
    fn read_gpa(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), MemError>;

    /// Writes `data` at `gpa`.
    fn write_gpa(&mut self, gpa: u64, data: &[u8]) -> Result<(), MemError>;

    /// Atomically replaces `old` by `new` in the naturally aligned integer of `size` (1, 2, 4 or
    /// 8) bytes at `gpa`. `Ok(Ok(()))` if it was `old`, `Ok(Err(current))` if it was not.
    fn compare_exchange_gpa(
        &mut self,
        gpa: u64,
        size: usize,
        old: u64,
        new: u64,
    ) -> Result<Result<(), u64>, MemError>;
}

/// What a memory access is for. Decides permissions and the #PF error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A data read at the current privilege level.
    Read,
    /// A data write, or the read half of a read-modify-write.
    Write,
    /// An instruction fetch.
    Fetch,
    /// A read by the CPU itself, of descriptor tables or a TSS: supervisor at any privilege level.
    SystemRead,
    /// A write by the CPU itself, likewise. Read-only memory drops it.
    SystemWrite,
}

/// Why the emulation of an instruction stopped before its end. Nothing of the instruction has
/// become visible in the guest, unless it is a REP one that has finished some iterations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest gets this exception, with RIP at the instruction.
    Exception(Exception),
    /// A device outside the kernel must answer first; then the instruction is run again from its
    /// beginning, and gets its answer in place of this value.
    User,
    /// A page of the host is absent: run the instruction again where sleeping is allowed.
    WouldSleep,
    /// The VMM's memory is gone (`EFAULT`).
    Fault,
    /// The decoder or the emulator does not know this instruction.
    Unhandled,
    /// Another CPU has changed a descriptor since it was read: run the instruction again.
    Again,
}

impl From<Exception> for Stop {
    fn from(e: Exception) -> Self {
        Stop::Exception(e)
    }
}

/// What the x87 unit has besides its registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct X87 {
    /// FCW.
    pub control: u16,
    /// FSW.
    pub status: u16,
    /// One bit per register, set if it is not empty, as FXSAVE has them.
    pub tags: u8,
}

/// The extended registers of a guest.
pub trait ExtendedState {
    /// Reads XMM register `index` (0 to 15).
    fn xmm(&mut self, index: u8) -> u128;
    /// Writes XMM register `index` (0 to 15).
    fn set_xmm(&mut self, index: u8, value: u128);
    /// Reads the upper half of YMM register `index` (0 to 15).
    fn ymm_high(&mut self, index: u8) -> u128;
    /// Writes the upper half of YMM register `index` (0 to 15); what lies above it becomes zero.
    fn set_ymm_high(&mut self, index: u8, value: u128);
    /// MXCSR.
    fn mxcsr(&mut self) -> u32;
    /// Sets MXCSR; `false`, and nothing is done, if the CPU lacks one of the bits.
    fn set_mxcsr(&mut self, value: u32) -> bool;
    /// Writes what FXSAVE saves in 64-bit mode with 64-bit operands, MXCSR_MASK included:
    /// [`crate::fxsave`].
    fn fxsave(&mut self, image: &mut [u8; fxsave::SIZE]);
    /// Sets the registers to what FXSAVE has saved; `false`, and nothing is done, if the CPU lacks
    /// one of the bits of MXCSR.
    fn fxrstor(&mut self, image: &[u8; fxsave::SIZE]) -> bool;
    /// Control, status and tags of the x87 unit.
    fn x87(&mut self) -> X87;
    /// Sets them.
    fn set_x87(&mut self, value: X87);
    /// Reads MMX register `index` (0 to 7).
    fn mmx(&mut self, index: u8) -> u64;
    /// What every MMX instruction does to the x87 unit: the top of its stack becomes 0, and no
    /// register is empty. Then writes an MMX register, if one is given, and with ones what lies
    /// above it.
    fn use_mmx(&mut self, write: Option<(u8, u64)>);
}

/// The CPU that an instruction is emulated on.
///
/// Register writes take effect at once, so an emulation function does all that can fail first and
/// writes registers last.
pub trait Cpu: ExtendedState {
    /// General-purpose register `index` (0 to 15), all 64 bits.
    fn gpr(&self, index: u8) -> u64;
    /// Sets all 64 bits of a general-purpose register.
    fn set_gpr(&mut self, index: u8, value: u64);
    /// RIP.
    fn rip(&self) -> u64;
    /// Sets RIP. Ends an interrupt shadow, too: an instruction was completed.
    fn set_rip(&mut self, value: u64);
    /// RFLAGS.
    fn rflags(&self) -> Rflags;
    /// Sets RFLAGS.
    fn set_rflags(&mut self, value: Rflags);
    /// RFLAGS as software may see it: without what a debugger of the VMM has set.
    fn pushed_flags(&self) -> Rflags {
        self.rflags()
    }
    /// Sets RFLAGS to what software wants.
    fn set_pushed_flags(&mut self, value: Rflags) {
        self.set_rflags(value);
    }
    /// Begins an interrupt shadow, behind an instruction that was completed.
    fn begin_interrupt_shadow(&mut self);
    /// A segment register with its hidden part.
    fn segment(&self, reg: SegReg) -> Segment;
    /// Sets it.
    fn set_segment(&mut self, reg: SegReg, value: Segment);
    /// Sets the current privilege level, 0 to 3.
    fn set_cpl(&mut self, value: u8);
    /// GDTR: base and limit.
    fn gdtr(&self) -> Segment;
    /// Sets it.
    fn set_gdtr(&mut self, value: Segment);
    /// IDTR: base and limit.
    fn idtr(&self) -> Segment;
    /// Sets it.
    fn set_idtr(&mut self, value: Segment);
    /// LMSW: sets the low four bits of CR0, but clears no PE.
    fn load_machine_status_word(&mut self, value: u16) -> Result<(), Stop>;
    /// CR0.
    fn cr0(&self) -> Cr0;
    /// CR4.
    fn cr4(&self) -> Cr4;
    /// EFER.
    fn efer(&self) -> Efer;
    /// Current privilege level, 0 to 3.
    fn cpl(&self) -> u8;

    /// Reads memory at a linear address; may cross pages. A device behind it answers, too.
    fn read(&mut self, linear: u64, buf: &mut [u8], access: Access) -> Result<(), Stop>;
    /// Writes memory at a linear address; may cross pages: then both are checked first.
    fn write(&mut self, linear: u64, data: &[u8]) -> Result<(), Stop>;
    /// The CPU's own change of a descriptor at `linear`, of which it has read the bytes `old`: its
    /// type becomes `kind`. `false`, and nothing is done, if they are others by now. See
    /// [`Access::SystemWrite`].
    fn set_descriptor_type(&mut self, linear: u64, old: u64, kind: u8) -> Result<bool, Stop>;
    /// Faults as a write would, and touches neither memory nor a device.
    fn probe_write(&mut self, linear: u64, size: usize) -> Result<(), Stop>;
    /// A locked read-modify-write of `size` (1, 2, 4 or 8) bytes: stores `new` if memory holds
    /// `old`. On a device or across pages it may be done as a plain write.
    fn compare_exchange(
        &mut self,
        linear: u64,
        size: usize,
        old: u64,
        new: u64,
    ) -> Result<Result<(), u64>, Stop>;

    /// Reads `size` (1, 2 or 4) bytes from an I/O port; permission has been checked by the caller.
    /// The instruction is going to read `count` times, this time included.
    fn port_in(&mut self, port: u16, size: u8, count: u16) -> Result<u32, Stop>;
    /// Stores at `linear`, where at most `count` elements are wanted, what is known already of such
    /// reads, if that can be done at once; answers how many elements it was.
    fn ports_in(&mut self, port: u16, size: u8, linear: u64, count: u16) -> Result<u16, Stop> {
        let _ = (port, size, linear, count);
        Ok(0)
    }
    /// Writes `size` (1, 2 or 4) bytes to an I/O port.
    fn port_out(&mut self, port: u16, size: u8, value: u32) -> Result<(), Stop>;

    /// Whether the guest's CPUID has the feature.
    fn has(&self, feature: Feature) -> bool;
    /// XCR0.
    fn xcr0(&self) -> u64;
}
