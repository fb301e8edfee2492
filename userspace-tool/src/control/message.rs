// SPDX-License-Identifier: GPL-2.0-only

//! Lines of text over a UNIX socket, and the descriptors that come with them (unix(7)).

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{recvmsg, sendmsg, ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr};

/// How many descriptors a request may bring.
pub(crate) const DESCRIPTORS: usize = 64;

/// Sends bytes, and descriptors with the first of them.
pub(crate) fn send(
    stream: &UnixStream,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let number = stream.as_fd().as_raw_fd();
    let flags = MsgFlags::MSG_NOSIGNAL;
    let sent = sendmsg::<UnixAddr>(number, &[IoSlice::new(bytes)], control, flags, None)?;
    let mut rest = stream;
    io::Write::write_all(&mut rest, &bytes[sent..])
}

/// A reader that keeps the descriptors that come.
pub(crate) struct Receiver<'a> {
    stream: &'a UnixStream,
    descriptors: Vec<OwnedFd>,
}

impl<'a> Receiver<'a> {
    /// Of this stream.
    pub(crate) fn new(stream: &'a UnixStream) -> Self {
        Self {
            stream,
            descriptors: Vec::new(),
        }
    }

    /// The descriptors that have come since the last call.
    pub(crate) fn take(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }
}

impl Read for Receiver<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut control = nix::cmsg_space!([i32; DESCRIPTORS]);
        let mut pieces = [IoSliceMut::new(buffer)];
        let received = recvmsg::<UnixAddr>(
            self.stream.as_raw_fd(),
            &mut pieces,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        let count = received.bytes;
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = message {
                for number in numbers {
                    // SAFETY: The kernel has just given this descriptor to us alone.
                    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
                    self.descriptors.push(descriptor);
                }
            }
        }
        if self.descriptors.len() > DESCRIPTORS {
            return Err(io::Error::other("too many descriptors"));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{BufRead, BufReader, Write};

    #[test]
    fn descriptors_come_with_the_line() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        send(&ours, b"one\ntw", &[read.as_fd()]).unwrap();
        send(&ours, b"o\n", &[]).unwrap();
        let mut reader = BufReader::new(Receiver::new(&theirs));
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let mut descriptors = reader.get_mut().take();
        assert_eq!((&*line, descriptors.len()), ("one\n", 1));
        File::from(write).write_all(b"x").unwrap();
        let mut byte = [0];
        let mut pipe = File::from(descriptors.remove(0));
        pipe.read_exact(&mut byte).unwrap();
        reader.read_line(&mut line).unwrap();
        assert_eq!((&*line, byte), ("one\ntwo\n", *b"x"));
        assert!(reader.get_mut().take().is_empty());
    }
}
