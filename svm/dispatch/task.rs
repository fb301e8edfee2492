// SPDX-License-Identifier: GPL-2.0-only

//! Hardware task switches (APM vol. 2, 12.3, 15.14.1).
//!
//! ```text
//!   old TSS ◄── registers          new TSS ──► link, registers, CR3, LDTR
//!   GDT: old TSS available (JMP, IRET), new TSS busy (JMP, CALL, gate)
//!   ── from here on exceptions belong to the new task ──
//!   CS, SS, DS, ES, FS, GS from their descriptors, error code on the new stack
//! ```
//!
//! All of it is memory of the guest, and half of a switch cannot be taken back. So the first call
//! for an exit only asks for a second one where sleeping is allowed.

mod segments;

use super::rip::{next_rip, Opcode};
use super::{Action, Platform};
use crate::cpu::Guest;
use crate::event::Event;
use crate::exit::{TaskSwitch, TaskSwitchSource};
use crate::requests::Requests;
use crate::state::{guest_cr0, set_guest_cr0};
use x86::cpu::{Access, Cpu, Stop};
use x86::descriptor::{self, Descriptor, BUSY};
use x86::regs::{gpr, vector, Cr0, Efer, Exception, Rflags, SegAttr, SegReg, Segment};

/// Where things are in a TSS (APM vol. 2, figures 12-6 and 12-7). The general-purpose and segment
/// registers lie in the order of their encoding.
struct Layout {
    /// Bytes of a register.
    width: u64,
    cr3: Option<u64>,
    ip: u64,
    flags: u64,
    gprs: u64,
    segments: u64,
    ldt: u64,
    /// The word with the debug trap bit.
    trap: Option<u64>,
    /// The last byte that must exist.
    limit: u32,
}

const TSS16: Layout = Layout {
    width: 2,
    cr3: None,
    ip: 0x0e,
    flags: 0x10,
    gprs: 0x12,
    segments: 0x22,
    ldt: 0x2a,
    trap: None,
    limit: 0x2b,
};

const TSS32: Layout = Layout {
    width: 4,
    cr3: Some(0x1c),
    ip: 0x20,
    flags: 0x24,
    gprs: 0x28,
    segments: 0x48,
    ldt: 0x60,
    trap: Some(0x64),
    limit: 0x67,
};

impl Layout {
    /// The layout for a TSS descriptor's type (APM vol. 2, table 4-6): bit 3 makes it a 32-bit one.
    fn of(attributes: SegAttr) -> &'static Self {
        if attributes.contains(SegAttr::CODE) {
            &TSS32
        } else {
            &TSS16
        }
    }
}

/// The type of an available 16-bit TSS; the other three differ in [`BUSY`] and bit 3.
const AVAILABLE_TSS: SegAttr = SegAttr::ACCESSED;
/// The general-purpose registers of legacy mode.
const GPRS: u8 = 8;
/// The segment registers, in the order of their encoding. A 16-bit TSS has the first four.
const SEGMENTS: [SegReg; 6] = [
    SegReg::Es,
    SegReg::Cs,
    SegReg::Ss,
    SegReg::Ds,
    SegReg::Fs,
    SegReg::Gs,
];

/// A selector, taken apart.
#[derive(Clone, Copy)]
struct Selector(u16);

impl Selector {
    /// Table indicator and index, as error codes have them.
    fn error(self) -> u32 {
        u32::from(self.0 & !3)
    }

    fn is_null(self) -> bool {
        self.0 & !3 == 0
    }

    fn local(self) -> bool {
        self.0 & 4 != 0
    }

    fn rpl(self) -> u8 {
        (self.0 & 3) as u8
    }
}

/// One switch under way.
struct Switch<'g, 'a, P: Platform> {
    guest: &'g mut Guest<'a, P>,
    /// The EXT bit of error codes: the cause lies outside of the program.
    external: u32,
}

/// Performs a task switch.
pub(super) fn task_switch<P: Platform>(
    guest: &mut Guest<'_, P>,
    exit: TaskSwitch,
) -> Result<Action, Stop> {
    let legacy = guest.vmcb.cr0().contains(Cr0::PE) && !guest.vmcb.efer().contains(Efer::LMA);
    if !legacy {
        return Err(Stop::Unhandled);
    }
    if !guest.state.events.may_sleep {
        guest.state.events.may_sleep = true;
        return Err(Stop::WouldSleep);
    }
    let event = Event::decode(guest.vmcb.exit_int_info());
    let mut switch = Switch {
        external: u32::from(is_external(event)),
        guest,
    };
    switch.run(&exit, event)?;
    Ok(Action::Resume)
}

/// Whether the event that went through a task gate came from outside of the program.
fn is_external(event: Option<Event>) -> bool {
    match event {
        None | Some(Event::Software(_) | Event::Exception(vector::BP | vector::OF, _)) => false,
        Some(Event::Interrupt(_) | Event::Nmi | Event::Exception(..)) => true,
    }
}

impl<P: Platform> Switch<'_, '_, P> {
    fn run(&mut self, exit: &TaskSwitch, event: Option<Event>) -> Result<(), Stop> {
        let gate = event.is_some() && exit.source == TaskSwitchSource::CallOrGate;
        let rip = match gate && self.external != 0 {
            true => self.guest.vmcb.rip(),
            false => next_rip(self.guest, Opcode::ANY)?,
        };
        let selector = Selector(exit.selector);
        let mut descriptor = self.new_tss(selector, exit.source)?;
        let tss = descriptor.segment;
        let new = Layout::of(tss.attributes);
        self.save(exit, rip)?;
        self.link(exit.source, &mut descriptor)?;
        if gate {
            self.taken(event);
        }
        if exit.source == TaskSwitchSource::Iret {
            self.guest.state.events.iret_executed();
        }
        let nested = exit.source == TaskSwitchSource::CallOrGate;
        self.load(new, tss, nested)?;
        if let Some(code) = exit.error_code {
            self.push(new.width, code)?;
        }
        if let Some(trap) = new.trap {
            /// Task switch, in DR6.
            const DR6_BT: u64 = 1 << 15;
            if self.read(tss.base, trap, 2)? & 1 != 0 {
                self.guest.state.events.raise(Exception {
                    payload: Some(DR6_BT),
                    ..Exception::new(vector::DB)
                });
            }
        }
        Ok(())
    }

    /// The descriptor of the incoming TSS.
    fn new_tss(
        &mut self,
        selector: Selector,
        source: TaskSwitchSource,
    ) -> Result<Descriptor, Stop> {
        let bad = self.fault(vector::TS, selector);
        if selector.local() || selector.is_null() {
            return Err(bad);
        }
        let tss = self.descriptor(selector)?;
        let kind = tss.kind();
        let busy = kind.contains(BUSY);
        let is_tss = kind.difference(BUSY | SegAttr::CODE) == AVAILABLE_TSS;
        if !is_tss || busy != (source == TaskSwitchSource::Iret) {
            return Err(bad);
        }
        if !tss.has(SegAttr::P) {
            return Err(self.fault(vector::NP, selector));
        }
        if tss.segment.limit < Layout::of(tss.segment.attributes).limit {
            return Err(bad);
        }
        Ok(tss)
    }

    /// Saves the registers in the outgoing TSS.
    fn save(&mut self, exit: &TaskSwitch, rip: u64) -> Result<(), Stop> {
        let tss = self.guest.segment(SegReg::Tr);
        let old = Layout::of(tss.attributes);
        let mut flags = self.guest.state.debug.rflags(self.guest.vmcb);
        flags.set(Rflags::RF, exit.resume_flag);
        if exit.source == TaskSwitchSource::Iret {
            flags.remove(Rflags::NT);
        }
        self.write(tss.base, old.ip, old.width, rip)?;
        self.write(tss.base, old.flags, old.width, flags.bits())?;
        let mut at = old.gprs;
        for reg in 0..GPRS {
            let value = self.guest.gpr(reg);
            self.write(tss.base, at, old.width, value)?;
            at = at.wrapping_add(old.width);
        }
        let mut at = old.segments;
        for reg in SEGMENTS {
            if at == old.ldt {
                break;
            }
            let selector = self.guest.segment(reg).selector;
            self.write(tss.base, at, 2, u64::from(selector))?;
            at = at.wrapping_add(old.width);
        }
        Ok(())
    }

    /// The busy bits, and the way back. What could go wrong twice comes last.
    fn link(&mut self, source: TaskSwitchSource, new: &mut Descriptor) -> Result<(), Stop> {
        let old = self.guest.segment(SegReg::Tr).selector;
        match source {
            TaskSwitchSource::CallOrGate => self.write(new.segment.base, 0, 2, u64::from(old))?,
            TaskSwitchSource::Jump | TaskSwitchSource::Iret => {
                let released = descriptor::release(self.guest, old)?;
                released.ok_or_else(|| self.fault(vector::TS, Selector(old)))?;
            }
        }
        if source != TaskSwitchSource::Iret {
            descriptor::mark(self.guest, new, BUSY)?;
        }
        Ok(())
    }

    /// The event that went through the gate has been delivered by the switch.
    fn taken(&mut self, event: Option<Event>) {
        let events = &mut self.guest.state.events;
        events.instruction = None;
        match event {
            Some(Event::Nmi) => (events.nmi_injected, events.nmi_cut_short) = (false, false),
            Some(Event::Interrupt(_) | Event::Software(_)) => {
                (events.interrupt, events.interrupt_cut_short) = (None, false);
            }
            Some(Event::Exception(..)) => events.exception = None,
            None => {}
        }
    }

    /// Loads the new task.
    fn load(&mut self, new: &Layout, tss: Segment, nested: bool) -> Result<(), Stop> {
        /// L0 to L3 and LE in DR7: breakpoints of the old task only.
        const DR7_LOCAL: u64 = 0x155;
        let mut image = [0; 16];
        let registers = [new.ip, new.flags].into_iter();
        let registers =
            registers.chain((0..u64::from(GPRS)).map(|n| new.gprs.wrapping_add(n * new.width)));
        for (value, at) in image.iter_mut().zip(registers) {
            *value = self.read(tss.base, at, new.width)?;
        }
        let mut selectors = [0; SEGMENTS.len()];
        let mut at = new.segments;
        for selector in &mut selectors {
            if at != new.ldt {
                *selector = self.read(tss.base, at, 2)? as u16;
                at = at.wrapping_add(new.width);
            }
        }
        let ldt = Selector(self.read(tss.base, new.ldt, 2)? as u16);
        let cr3 = match new.cr3 {
            Some(at) if self.guest.vmcb.cr0().contains(Cr0::PG) => {
                Some(self.read(tss.base, at, 4)?)
            }
            _ => None,
        };

        // From here on it is the new task.
        let [ip, flags, gprs @ ..] = image;
        let mut flags = Rflags::from_bits_retain(flags) & LOADED_FLAGS | Rflags::RESERVED1;
        flags.set(Rflags::NT, nested || flags.contains(Rflags::NT));
        let guest = &mut *self.guest;
        for (reg, value) in (0..GPRS).zip(gprs) {
            guest.set_gpr(reg, value);
        }
        guest.state.debug.set_rflags(guest.vmcb, flags);
        guest.set_rip(ip);
        let dr7 = guest.state.debug.dr7(guest.vmcb) & !DR7_LOCAL;
        guest.state.debug.set_dr7(guest.vmcb, dr7);
        guest.vmcb.set_segment(
            SegReg::Tr,
            Segment {
                attributes: tss.attributes | BUSY,
                ..tss
            },
        );
        let cr0 = guest_cr0(guest.vmcb, guest.state) | Cr0::TS;
        set_guest_cr0(guest.vmcb, guest.state, cr0);
        if let Some(cr3) = cr3 {
            guest.vmcb.set_cr3(cr3);
            guest.platform.request(Requests::TLB_FLUSH);
        }
        self.load_segments(selectors, ldt, flags.contains(Rflags::VM))
    }

    /// Pushes the error code of the event on the new task's stack.
    fn push(&mut self, width: u64, code: u32) -> Result<(), Stop> {
        let ss = self.guest.segment(SegReg::Ss);
        let mask = if ss.attributes.contains(SegAttr::DB) {
            LOW
        } else {
            0xffff
        };
        let old = self.guest.gpr(gpr::RSP);
        let top = old.wrapping_sub(width) & mask;
        let bytes = code.to_le_bytes();
        let bytes = bytes.get(..width as usize).unwrap_or(&bytes);
        self.guest.write(ss.base.wrapping_add(top) & LOW, bytes)?;
        self.guest.set_gpr(gpr::RSP, (old & !mask) | top);
        Ok(())
    }

    /// Reads as the CPU itself does: a supervisor at any privilege level.
    fn read(&mut self, base: u64, offset: u64, width: u64) -> Result<u64, Stop> {
        let mut bytes = [0; 8];
        let part = bytes.get_mut(..width as usize).ok_or(Stop::Unhandled)?;
        let linear = base.wrapping_add(offset) & LOW;
        self.guest.read(linear, part, Access::SystemRead)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn write(&mut self, base: u64, offset: u64, width: u64, value: u64) -> Result<(), Stop> {
        let bytes = value.to_le_bytes();
        let bytes = bytes.get(..width as usize).ok_or(Stop::Unhandled)?;
        let linear = base.wrapping_add(offset) & LOW;
        self.guest.write_as(linear, bytes, Access::SystemWrite)
    }

    fn fault(&self, number: u8, selector: Selector) -> Stop {
        Stop::Exception(Exception::with_code(
            number,
            selector.error() | self.external,
        ))
    }
}

/// Outside of long mode linear addresses and registers have 32 bits.
const LOW: u64 = 0xffff_ffff;
/// The flags that a TSS can set.
const LOADED_FLAGS: Rflags = Rflags::CF
    .union(Rflags::PF)
    .union(Rflags::AF)
    .union(Rflags::ZF)
    .union(Rflags::SF)
    .union(Rflags::TF)
    .union(Rflags::IF)
    .union(Rflags::DF)
    .union(Rflags::OF)
    .union(Rflags::IOPL)
    .union(Rflags::NT)
    .union(Rflags::RF)
    .union(Rflags::VM)
    .union(Rflags::AC)
    .union(Rflags::VIF)
    .union(Rflags::VIP)
    .union(Rflags::ID);
