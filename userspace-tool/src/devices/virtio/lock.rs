// SPDX-License-Identifier: GPL-2.0-only

//! Locks on a disk's file that QEMU respects, as QEMU's are respected here: bytes of the file
//! stand for what a program does with it and for what it does not let others do (open file
//! description locks, fcntl(2); QEMU's `block/file-posix.c` says which bytes).

use std::fs::File;
use std::io::{Error, ErrorKind, Result};

use nix::fcntl::{fcntl, FcntlArg};

/// The byte of the first thing that a program does, and of the first that it lets no other do.
const DOES: i64 = 100;
const FORBIDS: i64 = 200;
/// What there is to do: to rely on the contents, to write, to change the size.
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// A lock on one byte.
fn byte(kind: i32, start: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: 1,
        l_pid: 0,
    }
}

/// Locks a file that is open for reading at least, for as long as it is open. It fails with
/// `WouldBlock` if another program uses it, and one of both writes.
pub(crate) fn lock(file: &File, read_only: bool) -> Result<()> {
    let does: &[i64] = if read_only { &[READ] } else { &[READ, WRITE] };
    let forbids = [WRITE, RESIZE];
    // First all are taken, then all are looked at: of two programs at once, one sees the other.
    for start in (does.iter().map(|what| DOES + what)).chain(forbids.map(|what| FORBIDS + what)) {
        fcntl(file, FcntlArg::F_OFD_SETLK(&byte(libc::F_RDLCK, start)))?;
    }
    for start in (does.iter().map(|what| FORBIDS + what)).chain(forbids.map(|what| DOES + what)) {
        let mut found = byte(libc::F_WRLCK, start);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
        if found.l_type != libc::F_UNLCK as libc::c_short {
            return Err(Error::from(ErrorKind::WouldBlock));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let path = std::env::temp_dir().join(format!("pacifica-lock-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let in_use = |file: &File, read_only| {
            lock(file, read_only).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        };
        let (first, second) = (open(), open());
        lock(&first, true).unwrap();
        lock(&second, true).unwrap();
        assert!(in_use(&open(), false));
        drop((first, second));
        let writer = open();
        lock(&writer, false).unwrap();
        assert!(in_use(&open(), true) && in_use(&open(), false));
        drop(writer);
        lock(&open(), false).unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}
