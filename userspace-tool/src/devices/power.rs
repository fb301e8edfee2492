// SPDX-License-Identifier: GPL-2.0-only

//! The ways to end a run: the ACPI power-management registers, the keyboard controller's reset
//! line, and the debug-exit port. The reset control register is with the ports of PCI.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vm_superio::Trigger;

use super::bus::{ByteDevice, PortDevice};
use crate::layout::{GPE0, PM1A_CONTROL, PM1A_EVENT, PM_PORTS, PM_TIMER};
use crate::outcome::{Outcome, Stop};

/// The sleep type that means off; the DSDT's `_S5` names it.
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;
/// What the FADT says to write to the reset control register: a hard reset, now.
pub(crate) const RESET_SYSTEM: u8 = 0x06;

/// PM1 status and enable: the power button (4.8.3.1).
const PM1_POWER_BUTTON: u16 = 1 << 8;
// PM1 control (ACPI specification, 4.8.3.2).
const PM1_SCI_ENABLE: u16 = 1 << 0;
const PM1_SLEEP_TYPE_SHIFT: u16 = 10;
const PM1_SLEEP_TYPE_MASK: u16 = 0b111 << PM1_SLEEP_TYPE_SHIFT;
const PM1_SLEEP_ENABLE: u16 = 1 << 13;

/// The power-management timer's frequency (ACPI specification, 4.8.2.1).
const PM_TIMER_HZ: u128 = 3_579_545;

// Offsets within the ACPI block.
const STATUS: u16 = 0;
const ENABLE: u16 = 2;
const CONTROL: u16 = PM1A_CONTROL - PM1A_EVENT;
const TIMER: usize = (PM_TIMER - PM1A_EVENT) as usize;
const GPE_STATUS: u16 = GPE0 - PM1A_EVENT;
const GPE_ENABLE: u16 = GPE_STATUS + 1;

/// The general-purpose event that the machine has another generation ID; the DSDT has its method.
pub(crate) const GPE_GENERATION: u8 = 0;

/// The line of the system control interrupt: up or down.
pub(crate) type Line = Box<dyn Fn(bool) + Send>;

/// The ACPI PM1a registers, the timer, and the general-purpose events. The machine is always in
/// ACPI mode; its events are those of the power button and of the generation ID.
pub(crate) struct PowerManagement {
    stop: Arc<Stop>,
    interrupt: Line,
    start: Instant,
    /// Where the timer began then.
    ticks: u32,
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u8,
    gpe_enable: u8,
}

/// The state of the registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    status: u16,
    enable: u16,
    control: u16,
    ticks: u32,
    gpe_status: u8,
    gpe_enable: u8,
}

impl PowerManagement {
    /// The registers after reset.
    pub(crate) fn new(stop: Arc<Stop>, interrupt: Line) -> Self {
        Self {
            stop,
            interrupt,
            start: Instant::now(),
            ticks: 0,
            status: 0,
            enable: 0,
            control: PM1_SCI_ENABLE,
            gpe_status: 0,
            gpe_enable: 0,
        }
    }

    /// The registers and the timer.
    pub(crate) fn state(&self) -> State {
        State {
            status: self.status,
            enable: self.enable,
            control: self.control,
            ticks: self.timer(),
            gpe_status: self.gpe_status,
            gpe_enable: self.gpe_enable,
        }
    }

    /// Puts them back; the timer goes on from there.
    pub(crate) fn restore(&mut self, state: &State) {
        self.status = state.status;
        self.enable = state.enable;
        self.control = state.control & !PM1_SLEEP_ENABLE | PM1_SCI_ENABLE;
        self.start = Instant::now();
        self.ticks = state.ticks;
        self.gpe_status = state.gpe_status;
        self.gpe_enable = state.gpe_enable;
        self.set_line();
    }

    /// Presses the power button.
    pub(crate) fn press(&mut self) {
        self.status |= PM1_POWER_BUTTON;
        self.set_line();
    }

    /// The machine has another generation ID.
    pub(crate) fn announce_generation(&mut self) {
        self.gpe_status |= 1 << GPE_GENERATION;
        self.set_line();
    }

    /// The line is up while an event is there that the guest wants to hear of.
    fn set_line(&self) {
        let general = self.gpe_status & self.gpe_enable != 0;
        (self.interrupt)(self.status & self.enable != 0 || general);
    }

    /// The timer, 32 bits wide.
    fn timer(&self) -> u32 {
        let ticks = self.start.elapsed().as_nanos() * PM_TIMER_HZ / 1_000_000_000;
        self.ticks
            .wrapping_add((ticks & u128::from(u32::MAX)) as u32)
    }

    /// The whole block as it reads now: status, enable, control, nothing, timer, general events.
    fn block(&self) -> [u8; PM_PORTS as usize] {
        let mut block = [0; PM_PORTS as usize];
        block[..2].copy_from_slice(&self.status.to_le_bytes());
        block[2..4].copy_from_slice(&self.enable.to_le_bytes());
        block[4..6].copy_from_slice(&self.control.to_le_bytes());
        block[TIMER..TIMER + 4].copy_from_slice(&self.timer().to_le_bytes());
        block[usize::from(GPE_STATUS)] = self.gpe_status;
        block[usize::from(GPE_ENABLE)] = self.gpe_enable;
        block
    }

    /// Writes PM1 control: a sleep type with the enable bit acts at once.
    fn set_control(&mut self, value: u16) {
        if value & PM1_SLEEP_ENABLE != 0
            && (value & PM1_SLEEP_TYPE_MASK) >> PM1_SLEEP_TYPE_SHIFT == u16::from(SLEEP_TYPE_OFF)
        {
            self.stop.request(Outcome::PowerOff);
        }
        self.control = value & !PM1_SLEEP_ENABLE | PM1_SCI_ENABLE;
    }
}

impl PortDevice for PowerManagement {
    fn read(&mut self, offset: u16, data: &mut [u8]) {
        let block = self.block();
        for (byte, value) in data.iter_mut().zip(block.iter().skip(offset.into())) {
            *byte = *value;
        }
    }

    fn write(&mut self, offset: u16, data: &[u8]) {
        // Registers take words; a double word to the status register also holds the enable
        // register.
        for (offset, word) in (offset..=u16::MAX).step_by(2).zip(data.chunks(2)) {
            let value = u16::from_le_bytes([word[0], word.get(1).copied().unwrap_or(0)]);
            match offset {
                // Ones take events away.
                STATUS => {
                    self.status &= !value;
                    self.set_line();
                }
                ENABLE => {
                    self.enable = value;
                    self.set_line();
                }
                CONTROL => self.set_control(value),
                GPE_STATUS => {
                    self.gpe_status &= !word[0];
                    self.gpe_enable = word.get(1).copied().unwrap_or(self.gpe_enable);
                    self.set_line();
                }
                GPE_ENABLE => {
                    self.gpe_enable = word[0];
                    self.set_line();
                }
                // A byte access to the upper half of the control register, where the sleep bits
                // are.
                _ if offset == CONTROL + 1 => self.set_control(value << 8),
                _ => {}
            }
        }
    }
}

/// Ends the run with a reset.
pub(crate) struct ResetLine(pub(crate) Arc<Stop>);

impl Trigger for ResetLine {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.request(Outcome::Reset);
        Ok(())
    }
}

/// The keyboard controller's command port: of the whole controller, only reset is there.
pub(crate) struct KeyboardController(vm_superio::I8042Device<ResetLine>);

impl KeyboardController {
    /// How far the command port lies behind the controller's first one.
    const COMMAND: u8 = 4;

    /// A controller that resets through this line.
    pub(crate) fn new(stop: Arc<Stop>) -> Self {
        Self(vm_superio::I8042Device::new(ResetLine(stop)))
    }
}

impl ByteDevice for KeyboardController {
    fn read(&mut self, offset: u16) -> u8 {
        match offset {
            0 => self.0.read(Self::COMMAND),
            _ => 0xff,
        }
    }

    fn write(&mut self, offset: u16, value: u8) {
        if offset == 0 {
            // The line cannot fail.
            let _ = self.0.write(Self::COMMAND, value);
        }
    }
}

/// The debug-exit port.
pub(crate) struct DebugExit(pub(crate) Arc<Stop>);

impl PortDevice for DebugExit {
    fn read(&mut self, _offset: u16, _data: &mut [u8]) {}

    fn write(&mut self, _offset: u16, data: &[u8]) {
        let mut value = [0; 4];
        for (to, from) in value.iter_mut().zip(data) {
            *to = *from;
        }
        self.0
            .request(Outcome::DebugExit(u32::from_le_bytes(value)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop() -> Arc<Stop> {
        Arc::new(Stop::new().unwrap())
    }

    #[test]
    fn sleep_type_5_powers_off() {
        for (offset, data) in [(CONTROL, &[0x01, 0x34][..]), (CONTROL + 1, &[0x34])] {
            let stop = stop();
            let mut power = PowerManagement::new(stop.clone(), Box::new(|_| {}));
            power.write(CONTROL, &[0x01, 0x14]);
            assert_eq!(stop.outcome(), None);
            power.write(offset, data);
            assert_eq!(stop.outcome(), Some(&Outcome::PowerOff));
        }
    }

    #[test]
    fn the_machine_is_in_acpi_mode() {
        let mut power = PowerManagement::new(stop(), Box::new(|_| {}));
        let mut word = [0xff; 2];
        power.read(CONTROL, &mut word);
        assert_eq!(word, [1, 0]);
        power.write(0, &[0xff, 0xff, 0x21, 0x01]);
        let mut events = [0xff; 4];
        power.read(0, &mut events);
        assert_eq!(events, [0, 0, 0x21, 0x01]);
        // Beyond the block, nothing answers; nothing panics.
        let mut beyond = [0xff; 4];
        power.read(TIMER as u16 + 2, &mut beyond);
        assert_eq!(beyond[2..], [0, 0]);
        let mut beyond = [0xff; 2];
        power.read(GPE_ENABLE, &mut beyond);
        assert_eq!(beyond, [0, 0xff]);
        power.write(TIMER as u16 + 3, &[0; 4]);
        power.write(GPE_ENABLE, &[0; 4]);
    }

    #[test]
    fn the_power_button_interrupts_until_it_is_acknowledged() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let up = Arc::new(AtomicBool::new(false));
        let line = up.clone();
        let line = Box::new(move |level| line.store(level, Ordering::Relaxed));
        let mut power = PowerManagement::new(stop(), line);
        let is_up = || up.load(Ordering::Relaxed);
        power.press();
        assert!(!is_up());
        power.write(ENABLE, &[0, 1]);
        assert!(is_up());
        let mut status = [0; 2];
        power.read(STATUS, &mut status);
        assert_eq!(status, [0, 1]);
        power.write(STATUS, &[0xff, 0]);
        assert!(is_up());
        power.write(STATUS, &[0, 1]);
        power.read(STATUS, &mut status);
        assert_eq!((status, is_up()), ([0, 0], false));
    }

    #[test]
    fn another_generation_interrupts_until_it_is_acknowledged() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let up = Arc::new(AtomicBool::new(false));
        let line = up.clone();
        let line = Box::new(move |level| line.store(level, Ordering::Relaxed));
        let mut power = PowerManagement::new(stop(), line);
        power.announce_generation();
        assert!(!up.load(Ordering::Relaxed));
        power.write(GPE_ENABLE, &[1]);
        assert!(up.load(Ordering::Relaxed));
        // Another machine that takes this one's place has it, too.
        let state = power.state();
        power.write(GPE_STATUS, &[1]);
        assert!(!up.load(Ordering::Relaxed));
        power.restore(&state);
        assert!(up.load(Ordering::Relaxed));
    }

    #[test]
    fn the_timer_runs() {
        let mut power = PowerManagement::new(stop(), Box::new(|_| {}));
        power.start = Instant::now() - std::time::Duration::from_secs(1);
        assert!(power.timer() >= 3_579_545);
    }

    #[test]
    fn resets() {
        let stop = stop();
        let mut keyboard = KeyboardController::new(stop.clone());
        assert_eq!(ByteDevice::read(&mut keyboard, 0), 0);
        ByteDevice::write(&mut keyboard, 0, 0xae);
        assert_eq!(stop.outcome(), None);
        ByteDevice::write(&mut keyboard, 0, 0xfe);
        assert_eq!(stop.outcome(), Some(&Outcome::Reset));
    }

    #[test]
    fn debug_exit_takes_any_width() {
        let stop = stop();
        DebugExit(stop.clone()).write(0, &[7, 1]);
        assert_eq!(stop.outcome(), Some(&Outcome::DebugExit(0x107)));
    }
}
