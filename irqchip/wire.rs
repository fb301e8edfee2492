// SPDX-License-Identifier: GPL-2.0-only

//! Reading and writing the structures of the interface, field by field and little-endian.
//!
//! Positions beyond the end read as zero and swallow what is written, so no layout mistake can
//! panic; the tests compare the layouts with the interface.

/// Puts fields one after the other.
pub(crate) struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl<'a> Writer<'a> {
    /// Begins at the start of `bytes`, which become zero.
    pub(crate) fn new(bytes: &'a mut [u8]) -> Self {
        bytes.fill(0);
        Self { bytes, at: 0 }
    }

    /// Goes on at `position`.
    pub(crate) fn seek(&mut self, position: usize) {
        self.at = position;
    }

    fn put<const N: usize>(&mut self, field: [u8; N]) {
        let slot = self.bytes.get_mut(self.at..);
        if let Some(slot) = slot.and_then(|rest| rest.first_chunk_mut()) {
            *slot = field;
        }
        self.at = self.at.saturating_add(N);
    }

    pub(crate) fn put_u8(&mut self, value: u8) {
        self.put([value]);
    }

    pub(crate) fn put_bool(&mut self, value: bool) {
        self.put([u8::from(value)]);
    }

    pub(crate) fn put_u16(&mut self, value: u16) {
        self.put(value.to_le_bytes());
    }

    pub(crate) fn put_u32(&mut self, value: u32) {
        self.put(value.to_le_bytes());
    }

    pub(crate) fn put_u64(&mut self, value: u64) {
        self.put(value.to_le_bytes());
    }
}

/// Takes fields one after the other.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Begins at the start of `bytes`.
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Goes on at `position`.
    pub(crate) fn seek(&mut self, position: usize) {
        self.at = position;
    }

    fn get<const N: usize>(&mut self) -> [u8; N] {
        let slot = self.bytes.get(self.at..);
        let field = slot.and_then(|rest| rest.first_chunk().copied());
        self.at = self.at.saturating_add(N);
        field.unwrap_or([0; N])
    }

    pub(crate) fn get_u8(&mut self) -> u8 {
        u8::from_le_bytes(self.get())
    }

    pub(crate) fn get_bool(&mut self) -> bool {
        self.get_u8() != 0
    }

    pub(crate) fn get_u16(&mut self) -> u16 {
        u16::from_le_bytes(self.get())
    }

    pub(crate) fn get_u32(&mut self) -> u32 {
        u32::from_le_bytes(self.get())
    }

    pub(crate) fn get_u64(&mut self) -> u64 {
        u64::from_le_bytes(self.get())
    }
}
