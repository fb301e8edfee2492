// SPDX-License-Identifier: GPL-2.0-only

//! The two 8259A interrupt controllers of a PC, with the edge/level control registers of the PIIX.
//!
//! The slave hangs on input 2 of the master. Single mode, MCS-80 mode and buffered mode, which a
//! PC cannot use, are accepted and have no effect.

use crate::lines::{Delivery, Lines, Source};
use crate::storm::Storms;
use crate::wire::{Reader, Writer};

/// How many inputs both chips have together. Input 2 is where the slave is; driving it does
/// nothing.
pub const PINS: u8 = 16;
/// The size of `kvm_pic_state`.
pub const STATE_SIZE: usize = 16;

/// Ports of the master: command and data.
pub const MASTER_PORT: u16 = 0x20;
/// Ports of the slave: command and data.
pub const SLAVE_PORT: u16 = 0xa0;
/// Edge/level control register of the master; that of the slave is the next port.
pub const ELCR_PORT: u16 = 0x4d0;

/// The input of the master where the slave is.
const CASCADE: u8 = 2;
/// Inputs that can be level-triggered: not the timer, the keyboard and the cascade; not the clock
/// and the coprocessor (82371AB, ELCR1 and ELCR2).
const ELCR_MASKS: [u8; 2] = [0xf8, 0xde];
/// The vector for a request that went away before it was acknowledged (8259A, "IR6 to IR0 ...").
const SPURIOUS: u8 = 7;

/// Initialization command word 1, and operation command words 2 and 3 (8259A, figures 7 to 10).
mod command {
    pub(super) const ICW1: u8 = 1 << 4;
    pub(super) const ICW1_NEEDS_ICW4: u8 = 1 << 0;
    pub(super) const ICW4_AUTO_EOI: u8 = 1 << 1;
    pub(super) const ICW4_FULLY_NESTED: u8 = 1 << 4;
    pub(super) const OCW3: u8 = 1 << 3;
    pub(super) const OCW3_READ_ISR: u8 = 1 << 0;
    pub(super) const OCW3_READ: u8 = 1 << 1;
    pub(super) const OCW3_POLL: u8 = 1 << 2;
    pub(super) const OCW3_SPECIAL_MASK: u8 = 1 << 5;
    pub(super) const OCW3_SET_SPECIAL_MASK: u8 = 1 << 6;
    pub(super) const OCW2_EOI: u8 = 1 << 5;
    pub(super) const OCW2_SPECIFIC: u8 = 1 << 6;
    pub(super) const OCW2_ROTATE: u8 = 1 << 7;
    pub(super) const OCW2_LEVEL: u8 = 7;
}

/// Which initialization command word the data port expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Expects {
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Clone, Copy, Debug)]
struct Chip {
    /// The levels of the inputs.
    lines: u8,
    irr: u8,
    imr: u8,
    isr: u8,
    /// The input of the highest priority.
    highest: u8,
    /// The vector of input 0.
    base: u8,
    read_isr: bool,
    poll: bool,
    special_mask: bool,
    expects: Expects,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    fully_nested: bool,
    needs_icw4: bool,
    elcr: u8,
    /// The inputs that can be level-triggered.
    elcr_mask: u8,
    /// Inputs whose interrupt has ended since the last question.
    ended: u8,
    storms: Storms<8>,
}

impl Chip {
    const RESET: Self = Self {
        lines: 0,
        irr: 0,
        imr: 0,
        isr: 0,
        highest: 0,
        base: 0,
        read_isr: false,
        poll: false,
        special_mask: false,
        expects: Expects::Mask,
        auto_eoi: false,
        rotate_on_auto_eoi: false,
        fully_nested: false,
        needs_icw4: false,
        elcr: 0,
        elcr_mask: 0,
        ended: 0,
        storms: Storms::NONE,
    };

    /// A chip after power-up, of which these inputs can be level-triggered.
    const fn reset(elcr_mask: u8) -> Self {
        Self {
            elcr_mask,
            ..Self::RESET
        }
    }

    /// The vector of `input`.
    const fn vector(&self, input: u8) -> u8 {
        self.base.wrapping_add(input)
    }

    /// A new level of the inputs in `bits`. Requests of edges stay until they are acknowledged,
    /// also if the input falls: VMMs send an edge as a rise and a fall.
    fn drive(&mut self, bits: u8, level: bool) {
        if level {
            self.irr |= bits & (self.elcr | !self.lines);
            self.lines |= bits;
        } else {
            self.irr &= !(bits & self.elcr);
            self.lines &= !bits;
            // Without EOI commands the end comes before the handler, and its line is always high.
            if self.auto_eoi {
                self.storms.fell(bits.trailing_zeros() as usize);
            }
        }
    }

    /// How far from the highest priority the first of the inputs `set` is; 8 if there is none.
    const fn rank(&self, set: u8) -> u32 {
        set.rotate_right(self.highest as u32).trailing_zeros()
    }

    /// The input at `rank`.
    const fn input(&self, rank: u32) -> u8 {
        self.highest.wrapping_add(rank as u8) & 7
    }

    /// The input that the chip would present at an acknowledge now.
    fn pending(&self, is_master: bool) -> Option<u8> {
        let request = self.rank(self.irr & !self.imr & !(self.storms.paused() as u8));
        let mut blocking = self.isr;
        if self.special_mask {
            blocking &= !self.imr;
        }
        if self.fully_nested && is_master {
            // The slave may interrupt itself.
            blocking &= !(1 << CASCADE);
        }
        (request < self.rank(blocking)).then(|| self.input(request))
    }

    /// The processor acknowledges `input`.
    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << (input & 7);
        self.irr &= !(bit & !self.elcr);
        if self.auto_eoi {
            self.note_end(bit);
            if self.rotate_on_auto_eoi {
                self.rotate_below(input);
            }
        } else {
            self.isr |= bit;
        }
    }

    /// Makes `input` the one of the lowest priority.
    fn rotate_below(&mut self, input: u8) {
        self.highest = input.wrapping_add(1) & 7;
    }

    fn end(&mut self, input: u8) {
        let bit = 1 << (input & 7);
        if self.isr & bit != 0 {
            self.note_end(bit);
        }
        self.isr &= !bit;
    }

    /// The interrupt of the input in `bit` has ended.
    fn note_end(&mut self, bit: u8) {
        self.ended |= bit;
        let high = self.lines & self.elcr & !self.imr & bit != 0;
        self.storms.ended(bit.trailing_zeros() as usize, high);
    }

    fn write_command(&mut self, value: u8) {
        if value & command::ICW1 != 0 {
            self.initialize(value);
        } else if value & command::OCW3 != 0 {
            self.write_ocw3(value);
        } else {
            self.write_ocw2(value);
        }
    }

    /// 8259A, "Initialization Command Words", points a to f. Inputs that are high need a new rise.
    fn initialize(&mut self, icw1: u8) {
        let needs_icw4 = icw1 & command::ICW1_NEEDS_ICW4 != 0;
        *self = Self {
            lines: self.lines,
            irr: self.irr & self.elcr,
            base: self.base,
            expects: Expects::Icw2,
            auto_eoi: self.auto_eoi && needs_icw4,
            fully_nested: self.fully_nested && needs_icw4,
            needs_icw4,
            elcr: self.elcr,
            elcr_mask: self.elcr_mask,
            // What was in service, or requested, will get no end of interrupt any more.
            ended: self.ended | self.isr | self.irr & !self.elcr,
            ..Self::RESET
        };
    }

    fn write_ocw2(&mut self, value: u8) {
        let specific = value & command::OCW2_SPECIFIC != 0;
        let rotate = value & command::OCW2_ROTATE != 0;
        let level = value & command::OCW2_LEVEL;
        if value & command::OCW2_EOI == 0 {
            match (specific, rotate) {
                (false, rotate) => self.rotate_on_auto_eoi = rotate,
                (true, true) => self.rotate_below(level),
                (true, false) => {}
            }
            return;
        }
        let input = if specific {
            level
        } else {
            // In special mask mode masked inputs stay in service (8259A, "End of Interrupt").
            let candidates = if self.special_mask {
                self.isr & !self.imr
            } else {
                self.isr
            };
            match self.rank(candidates) {
                rank @ 0..=7 => self.input(rank),
                _ => return,
            }
        };
        self.end(input);
        if rotate {
            self.rotate_below(input);
        }
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & command::OCW3_SET_SPECIAL_MASK != 0 {
            self.special_mask = value & command::OCW3_SPECIAL_MASK != 0;
        }
        // A poll overrides a read of a register (8259A, "Poll Command").
        if value & command::OCW3_POLL != 0 {
            self.poll = true;
        } else if value & command::OCW3_READ != 0 {
            self.read_isr = value & command::OCW3_READ_ISR != 0;
        }
    }

    fn write_data(&mut self, value: u8) {
        self.expects = match self.expects {
            Expects::Mask => {
                self.imr = value;
                Expects::Mask
            }
            Expects::Icw2 => {
                self.base = value & !7;
                Expects::Icw3
            }
            Expects::Icw3 if self.needs_icw4 => Expects::Icw4,
            Expects::Icw3 => Expects::Mask,
            Expects::Icw4 => {
                self.auto_eoi = value & command::ICW4_AUTO_EOI != 0;
                self.fully_nested = value & command::ICW4_FULLY_NESTED != 0;
                Expects::Mask
            }
        };
    }

    fn read(&mut self, is_data: bool, is_master: bool) -> u8 {
        if self.poll {
            self.poll = false;
            return match self.pending(is_master) {
                Some(input) => {
                    self.acknowledge(input);
                    1 << 7 | input
                }
                None => 0,
            };
        }
        match (is_data, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr,
        }
    }

    fn write_elcr(&mut self, value: u8) {
        let becomes_level = value & self.elcr_mask & !self.elcr;
        self.elcr = value & self.elcr_mask;
        self.irr = self.irr & !becomes_level | self.lines & becomes_level;
    }

    fn put(&self, writer: &mut Writer<'_>) {
        writer.put_u8(self.lines);
        writer.put_u8(self.irr);
        writer.put_u8(self.imr);
        writer.put_u8(self.isr);
        writer.put_u8(self.highest);
        writer.put_u8(self.base);
        writer.put_bool(self.read_isr);
        writer.put_bool(self.poll);
        writer.put_bool(self.special_mask);
        writer.put_u8(self.expects as u8);
        writer.put_bool(self.auto_eoi);
        writer.put_bool(self.rotate_on_auto_eoi);
        writer.put_bool(self.fully_nested);
        writer.put_bool(self.needs_icw4);
        writer.put_u8(self.elcr);
        writer.put_u8(self.elcr_mask);
    }

    /// What a VMM has saved, or made up: the base need not be one that the guest could set.
    fn get(reader: &mut Reader<'_>) -> Self {
        Self {
            lines: reader.get_u8(),
            irr: reader.get_u8(),
            imr: reader.get_u8(),
            isr: reader.get_u8(),
            highest: reader.get_u8() & 7,
            base: reader.get_u8(),
            read_isr: reader.get_bool(),
            poll: reader.get_bool(),
            special_mask: reader.get_bool(),
            expects: match reader.get_u8() {
                1 => Expects::Icw2,
                2 => Expects::Icw3,
                3 => Expects::Icw4,
                _ => Expects::Mask,
            },
            auto_eoi: reader.get_bool(),
            rotate_on_auto_eoi: reader.get_bool(),
            fully_nested: reader.get_bool(),
            needs_icw4: reader.get_bool(),
            elcr: reader.get_u8(),
            elcr_mask: reader.get_u8(),
            ended: 0,
            storms: Storms::NONE,
        }
    }
}

/// Which chip of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one that the processor sees.
    Master,
    /// The one at input 2 of the master.
    Slave,
}

/// The pair.
#[derive(Clone, Copy, Debug)]
pub struct Pic {
    master: Chip,
    slave: Chip,
    lines: Lines<{ PINS as usize }>,
}

impl Default for Pic {
    fn default() -> Self {
        Self::new()
    }
}

impl Pic {
    /// The pair after power-up.
    pub const fn new() -> Self {
        Self {
            master: Chip::reset(ELCR_MASKS[0]),
            slave: Chip::reset(ELCR_MASKS[1]),
            lines: Lines::LOW,
        }
    }

    /// `source` drives `level` into input `irq`, 0 to 15.
    pub fn set_irq(&mut self, irq: u8, source: Source, level: bool) -> Delivery {
        let Some(asserted) = self.lines.drive(usize::from(irq), source, level) else {
            return Delivery::Ignored;
        };
        if irq == CASCADE {
            return Delivery::Ignored;
        }
        let bit = 1 << (irq & 7);
        let chip = if irq < 8 {
            &mut self.master
        } else {
            &mut self.slave
        };
        let delivery = if !asserted {
            Delivery::Delivered
        } else if chip.imr & bit != 0 {
            Delivery::Ignored
        } else if chip.irr & bit != 0 {
            Delivery::Coalesced
        } else {
            Delivery::Delivered
        };
        chip.drive(bit, asserted);
        self.update_cascade();
        delivery
    }

    /// The slave's output is the master's input 2, as a level: a request that the slave takes back
    /// is not one of the master.
    fn update_cascade(&mut self) {
        let bit = 1 << CASCADE;
        // Several devices hang on it: the slave knows which of them storms.
        self.master.storms.fell(usize::from(CASCADE));
        self.master.lines &= !bit;
        self.master.irr &= !bit;
        if self.slave.pending(false).is_some() {
            self.master.lines |= bit;
            self.master.irr |= bit;
        }
    }

    /// INTR to the processor.
    #[inline]
    pub fn output(&self) -> bool {
        self.master.pending(true).is_some()
    }

    /// The processor acknowledges; the vector. If nothing is pending, it is that of a spurious
    /// interrupt, for which there must be no EOI.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.master.pending(true) else {
            return self.master.vector(SPURIOUS);
        };
        self.master.acknowledge(input);
        let vector = if input == CASCADE {
            match self.slave.pending(false) {
                Some(input) => {
                    self.slave.acknowledge(input);
                    self.slave.vector(input)
                }
                None => self.slave.vector(SPURIOUS),
            }
        } else {
            self.master.vector(input)
        };
        self.update_cascade();
        vector
    }

    /// The inputs, one bit each, whose interrupt has ended since the last call.
    pub fn take_ended(&mut self) -> u16 {
        let ended = u16::from_le_bytes([self.master.ended, self.slave.ended]);
        self.master.ended = 0;
        self.slave.ended = 0;
        ended & !(1 << CASCADE)
    }

    /// The line of input `irq` rises again because a resampler was told of the end of its
    /// interrupt.
    pub fn raised_at_end(&mut self, irq: u8) {
        let chip = if irq < 8 {
            &mut self.master
        } else {
            &mut self.slave
        };
        chip.storms.raised_at_end(usize::from(irq & 7));
    }

    /// Whether an input pauses since the last call, for [`PAUSE_NS`](crate::storm::PAUSE_NS): then
    /// [`Self::resume`] is due.
    pub fn take_pause(&mut self) -> bool {
        let master = self.master.storms.take_begun();
        self.slave.storms.take_begun() || master
    }

    /// Whether an input pauses.
    pub fn is_paused(&self) -> bool {
        (self.master.storms.paused() | self.slave.storms.paused()) != 0
    }

    /// The pause is over. [`Self::output`] may change.
    pub fn resume(&mut self) {
        self.master.storms.resume();
        self.slave.storms.resume();
        self.update_cascade();
    }

    /// Reads a port; nothing if it is not one of the pair's. Polling may acknowledge an interrupt.
    pub fn port_read(&mut self, port: u16) -> Option<u8> {
        const MASTER_DATA: u16 = MASTER_PORT + 1;
        const SLAVE_DATA: u16 = SLAVE_PORT + 1;
        const SLAVE_ELCR: u16 = ELCR_PORT + 1;
        let value = match port {
            MASTER_PORT | MASTER_DATA => self.master.read(port == MASTER_DATA, true),
            SLAVE_PORT | SLAVE_DATA => self.slave.read(port == SLAVE_DATA, false),
            ELCR_PORT => self.master.elcr,
            SLAVE_ELCR => self.slave.elcr,
            _ => return None,
        };
        self.update_cascade();
        Some(value)
    }

    /// Writes a port; false if it is not one of the pair's. [`Self::output`] may change, and there
    /// may be something for [`Self::take_ended`].
    pub fn port_write(&mut self, port: u16, value: u8) -> bool {
        const MASTER_DATA: u16 = MASTER_PORT + 1;
        const SLAVE_DATA: u16 = SLAVE_PORT + 1;
        const SLAVE_ELCR: u16 = ELCR_PORT + 1;
        match port {
            MASTER_PORT => self.master.write_command(value),
            MASTER_DATA => self.master.write_data(value),
            SLAVE_PORT => self.slave.write_command(value),
            SLAVE_DATA => self.slave.write_data(value),
            ELCR_PORT => self.master.write_elcr(value),
            SLAVE_ELCR => self.slave.write_elcr(value),
            _ => return false,
        }
        self.update_cascade();
        true
    }

    /// Fills in `kvm_pic_state` of one chip.
    pub fn state(&self, which: Which, bytes: &mut [u8; STATE_SIZE]) {
        let mut writer = Writer::new(bytes);
        match which {
            Which::Master => self.master.put(&mut writer),
            Which::Slave => self.slave.put(&mut writer),
        }
    }

    /// Takes `kvm_pic_state` of one chip over. The levels hold until a source next drives its
    /// input. What each source drives is not part of the structure: it stays as it is.
    pub fn set_state(&mut self, which: Which, bytes: &[u8; STATE_SIZE]) {
        let mut reader = Reader::new(bytes);
        match which {
            Which::Master => self.master = Chip::get(&mut reader),
            Which::Slave => self.slave = Chip::get(&mut reader),
        }
        self.update_cascade();
    }
}
