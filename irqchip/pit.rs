// SPDX-License-Identifier: GPL-2.0-only

//! The 8254 interval timer of a PC, and port 61h, which gates its channel 2.
//!
//! A count is not kept: it follows from the time at which it was loaded. So nothing has to run
//! unless it is read, and a period that is noticed late does not shift the ones after it.

mod channel;
mod clock;
mod ticks;

use crate::wire::{Reader, Writer};
use channel::Channel;
pub use clock::FREQUENCY_HZ;
pub use ticks::Ticks;

/// The port of channel 0; those of channels 1 and 2 and the control word follow.
pub const CHANNEL_PORT: u16 = 0x40;
/// The port of the control word.
pub const CONTROL_PORT: u16 = 0x43;
/// NMI status and control, of which the speaker's part exists here.
pub const SPEAKER_PORT: u16 = 0x61;
/// The size of `kvm_pit_state2`.
pub const STATE_SIZE: usize = 3 * channel::STATE_SIZE + 10 * 4;

/// Channel 0 asks to be looked at no more often than this: a guest that wants a shorter period must
/// not be able to keep the host busy with it.
pub const MIN_PERIOD_NS: u64 = 200_000;

/// `KVM_PIT_FLAGS_HPET_LEGACY`: an HPET stands in for channel 0.
const FLAG_HPET_LEGACY: u32 = 1 << 0;
/// `KVM_PIT_FLAGS_SPEAKER_DATA_ON`.
const FLAG_SPEAKER_DATA: u32 = 1 << 1;

/// Control word: the channel, or the read-back command (8254, "Control Word Format").
const SELECT_SHIFT: u32 = 6;
const SELECT_READ_BACK: u8 = 3;
/// Read-back command (8254, "Read-Back Command").
const READ_BACK_NO_COUNT: u8 = 1 << 5;
const READ_BACK_NO_STATUS: u8 = 1 << 4;
const READ_BACK_CHANNEL_0: u8 = 1 << 1;

/// Port 61h.
const SPEAKER_GATE: u8 = 1 << 0;
const SPEAKER_DATA: u8 = 1 << 1;
const SPEAKER_REFRESH: u8 = 1 << 4;
const SPEAKER_OUT: u8 = 1 << 5;
/// How long the memory refresh signal stays as it is.
const REFRESH_NS: u64 = 15_085;

/// The timer.
#[derive(Clone, Copy, Debug)]
pub struct Pit {
    channels: [Channel; 3],
    hpet_legacy: bool,
    /// Port 61h is here, and not with the VMM.
    speaker_port: bool,
    speaker_data: bool,
    /// How many rises of channel 0's output since it was loaded have been reported.
    reported: u64,
    /// When a rise was last reported; 0 if none was.
    last_report_ns: u64,
    /// What [`Self::advance`] reported and no interrupt has told the guest yet. The caller's.
    pub ticks: Ticks,
}

impl Default for Pit {
    fn default() -> Self {
        Self::new()
    }
}

impl Pit {
    /// A timer after power-up: no channel counts. The gates of channels 0 and 1 are wired high.
    pub const fn new() -> Self {
        Self {
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            hpet_legacy: false,
            speaker_port: true,
            speaker_data: false,
            reported: 0,
            last_report_ns: 0,
            ticks: Ticks::new(),
        }
    }

    /// Whether port 61h is answered here (`KVM_PIT_SPEAKER_DUMMY`); otherwise the VMM has it, and
    /// drives the gate of channel 2 through the state.
    pub fn set_speaker_port(&mut self, here: bool) {
        self.speaker_port = here;
    }

    /// When [`Self::advance`] should be called: when IRQ 0 next rises, if ever. A write of a port
    /// may change it.
    pub fn next_event(&self) -> Option<u64> {
        if self.hpet_legacy {
            return None;
        }
        let [timer, ..] = &self.channels;
        let rise = timer.rise_at(self.reported.saturating_add(1))?;
        let earliest = match self.last_report_ns {
            0 => 0,
            last => last.saturating_add(MIN_PERIOD_NS),
        };
        Some(rise.max(earliest))
    }

    /// What is to come at a time of the monotonic clock comes `ns` later: so much time did not pass
    /// for the guest.
    pub fn move_time(&mut self, ns: u64) {
        for channel in &mut self.channels {
            channel.move_time(ns);
        }
        if self.last_report_ns != 0 {
            self.last_report_ns = self.last_report_ns.saturating_add(ns);
        }
    }

    /// How often IRQ 0 has risen since the last call. What is more than one has been missed; the
    /// caller may deliver it later or forget it.
    pub fn advance(&mut self, now_ns: u64) -> u32 {
        if self.hpet_legacy {
            return 0;
        }
        let [timer, ..] = &self.channels;
        let rises = timer.rises(now_ns);
        let new = rises.saturating_sub(self.reported);
        if new == 0 {
            return 0;
        }
        self.reported = rises;
        self.last_report_ns = now_ns;
        u32::try_from(new).unwrap_or(u32::MAX)
    }

    /// Reads a port; nothing if it is not one of the timer's.
    pub fn port_read(&mut self, port: u16, now_ns: u64) -> Option<u8> {
        match port {
            SPEAKER_PORT => self.speaker_port.then(|| self.read_speaker(now_ns)),
            // The control word cannot be read.
            CONTROL_PORT => Some(0),
            _ => {
                let index = usize::from(port.checked_sub(CHANNEL_PORT)?);
                Some(self.channels.get_mut(index)?.read(now_ns))
            }
        }
    }

    /// Writes a port; false if it is not one of the timer's.
    pub fn port_write(&mut self, port: u16, value: u8, now_ns: u64) -> bool {
        match port {
            SPEAKER_PORT if !self.speaker_port => return false,
            SPEAKER_PORT => {
                self.speaker_data = value & SPEAKER_DATA != 0;
                let [_, _, speaker] = &mut self.channels;
                speaker.set_gate(value & SPEAKER_GATE != 0, now_ns);
            }
            CONTROL_PORT => self.write_control(value, now_ns),
            _ => {
                let Some(index) = port.checked_sub(CHANNEL_PORT) else {
                    return false;
                };
                let Some(channel) = self.channels.get_mut(usize::from(index)) else {
                    return false;
                };
                if channel.write(value, now_ns) && index == 0 {
                    self.restart_reports();
                }
            }
        }
        true
    }

    fn restart_reports(&mut self) {
        self.reported = 0;
        self.ticks.restart();
    }

    fn write_control(&mut self, value: u8, now_ns: u64) {
        let select = value >> SELECT_SHIFT;
        if select == SELECT_READ_BACK {
            for (i, channel) in self.channels.iter_mut().enumerate() {
                if value & READ_BACK_CHANNEL_0 << i == 0 {
                    continue;
                }
                if value & READ_BACK_NO_COUNT == 0 {
                    channel.latch_count(now_ns);
                }
                if value & READ_BACK_NO_STATUS == 0 {
                    channel.latch_status(now_ns);
                }
            }
        } else if let Some(channel) = self.channels.get_mut(usize::from(select)) {
            if channel.control(value, now_ns) && select == 0 {
                self.restart_reports();
            }
        }
    }

    fn read_speaker(&self, now_ns: u64) -> u8 {
        let [_, _, speaker] = &self.channels;
        let bits = [
            (SPEAKER_GATE, speaker.gate()),
            (SPEAKER_DATA, self.speaker_data),
            (SPEAKER_REFRESH, (now_ns / REFRESH_NS) & 1 != 0),
            (SPEAKER_OUT, speaker.output(now_ns)),
        ];
        bits.iter()
            .filter(|(_, on)| *on)
            .fold(0, |value, (bit, _)| value | bit)
    }

    /// Fills in `kvm_pit_state2`.
    pub fn state(&self, bytes: &mut [u8; STATE_SIZE]) {
        let mut writer = Writer::new(bytes);
        for channel in &self.channels {
            channel.put(&mut writer);
        }
        let mut flags = 0;
        if self.hpet_legacy {
            flags |= FLAG_HPET_LEGACY;
        }
        if self.speaker_data {
            flags |= FLAG_SPEAKER_DATA;
        }
        writer.put_u32(flags);
    }

    /// Takes `kvm_pit_state2` over. Counts begin anew at `now_ns`: the load times of the structure
    /// are those of another clock.
    pub fn set_state(&mut self, bytes: &[u8; STATE_SIZE], now_ns: u64) {
        let mut reader = Reader::new(bytes);
        for channel in &mut self.channels {
            *channel = Channel::get(&mut reader, now_ns);
        }
        let flags = reader.get_u32();
        self.hpet_legacy = flags & FLAG_HPET_LEGACY != 0;
        self.speaker_data = flags & FLAG_SPEAKER_DATA != 0;
        self.restart_reports();
        self.last_report_ns = 0;
    }
}
