// SPDX-License-Identifier: GPL-2.0-only

//! What the tests have in common: the program, and guests of a few instructions.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// The program under test: the one just built, unless `PACIFICA_TEST_PROGRAM` names another.
pub(crate) fn program() -> Command {
    Command::new(
        std::env::var_os("PACIFICA_TEST_PROGRAM")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_pacifica").into()),
    )
}

/// What tier 2 gives to the tests that want a hypervisor.
pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

/// The hypervisor's node.
pub(crate) fn device() -> String {
    variable("PACIFICA_TEST_DEVICE")
}

/// The image of a guest, in a file that lives as long as this value.
pub(crate) struct Guest(PathBuf);

impl Guest {
    /// An ELF image of these instructions, at 2 MiB.
    pub(crate) fn new(code: &[u8]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("pacifica-guest-{}-{number}", std::process::id()));
        std::fs::write(&path, image(code)).unwrap();
        Self(path)
    }

    /// Where the image is.
    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The bytes of the image: an ELF header, one program header, the instructions.
fn image(code: &[u8]) -> Vec<u8> {
    const ADDRESS: u64 = 2 << 20;
    let size = code.len() as u64;
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    image.extend([ADDRESS, 64, 0].map(u64::to_le_bytes).concat());
    image.extend([0u16, 0, 64, 56, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    image.extend([1u32, 7].map(u32::to_le_bytes).concat());
    image.extend(
        [120, ADDRESS, ADDRESS, size, size, 4096]
            .map(u64::to_le_bytes)
            .concat(),
    );
    image.extend(code);
    image
}
