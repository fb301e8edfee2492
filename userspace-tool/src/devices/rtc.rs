// SPDX-License-Identifier: GPL-2.0-only

//! The real-time clock, as far as reading the time goes (Motorola MC146818A).

use time::OffsetDateTime;

use super::bus::ByteDevice;

// Registers.
const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// Status A: the usual divider and rate.
const A_DIVIDER: u8 = 0x26;
/// Status A: an update of the time registers is near.
const A_UPDATE: u8 = 1 << 7;
/// Status B: 24-hour mode; the registers are in binary-coded decimal.
const B_24_HOURS: u8 = 1 << 1;
/// Status D: the battery is good.
const D_VALID: u8 = 1 << 7;
/// The index port's bit 7 masks non-maskable interrupts and does not belong to the index.
const INDEX_MASK: u8 = 0x7f;
/// The update takes this long, and is announced this long before: 1984 µs and 244 µs.
const UPDATE_NANOSECONDS: u32 = 2_228_000;

/// The clock. It shows the host's time in UTC, and cannot be set.
pub(crate) struct Rtc {
    index: u8,
    now: fn() -> OffsetDateTime,
}

impl Rtc {
    /// The clock, at index 0.
    pub(crate) fn new() -> Self {
        Self {
            index: 0,
            now: OffsetDateTime::now_utc,
        }
    }

    /// The register that is selected: the time is the host's.
    pub(crate) fn state(&self) -> u8 {
        self.index
    }

    /// Selects it again.
    pub(crate) fn restore(&mut self, index: u8) {
        self.index = index & INDEX_MASK;
    }

    /// The value of the register that is selected.
    fn register(&self) -> u8 {
        let now = (self.now)();
        let year = now.year().clamp(0, 9999).unsigned_abs();
        match self.index {
            SECONDS => bcd(now.second()),
            MINUTES => bcd(now.minute()),
            HOURS => bcd(now.hour()),
            WEEKDAY => now.weekday().number_from_sunday(),
            DAY => bcd(now.day()),
            MONTH => bcd(now.month().into()),
            YEAR => bcd((year % 100) as u8),
            CENTURY => bcd((year / 100) as u8),
            STATUS_A if now.nanosecond() >= 1_000_000_000 - UPDATE_NANOSECONDS => {
                A_DIVIDER | A_UPDATE
            }
            STATUS_A => A_DIVIDER,
            STATUS_B => B_24_HOURS,
            STATUS_C => 0,
            STATUS_D => D_VALID,
            _ => 0,
        }
    }
}

/// Binary-coded decimal of a number below 100.
fn bcd(value: u8) -> u8 {
    ((value / 10 % 10) << 4) | (value % 10)
}

impl ByteDevice for Rtc {
    fn read(&mut self, offset: u16) -> u8 {
        match offset {
            1 => self.register(),
            _ => 0xff,
        }
    }

    fn write(&mut self, offset: u16, value: u8) {
        if offset == 0 {
            self.index = value & INDEX_MASK;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(rtc: &mut Rtc, index: u8) -> u8 {
        ByteDevice::write(rtc, 0, index);
        ByteDevice::read(rtc, 1)
    }

    #[test]
    fn the_time_is_in_bcd() {
        // 2026-11-21 01:02:59 UTC, a Saturday.
        let mut rtc = Rtc {
            index: 0,
            now: || OffsetDateTime::from_unix_timestamp(1_795_222_979).unwrap(),
        };
        let registers = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY];
        let values = registers.map(|index| read(&mut rtc, index));
        assert_eq!(values, [0x59, 0x02, 0x01, 7, 0x21, 0x11, 0x26, 0x20]);
        assert_eq!(read(&mut rtc, STATUS_A | 0x80), A_DIVIDER);
        assert_eq!(read(&mut rtc, STATUS_D), D_VALID);
        assert_eq!(ByteDevice::read(&mut rtc, 0), 0xff);
    }

    #[test]
    fn the_end_of_a_second_is_announced() {
        let mut rtc = Rtc {
            index: 0,
            now: || OffsetDateTime::from_unix_timestamp_nanos(999_000_000).unwrap(),
        };
        assert_eq!(read(&mut rtc, STATUS_A), A_DIVIDER | A_UPDATE);
    }
}
