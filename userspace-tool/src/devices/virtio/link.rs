// SPDX-License-Identifier: GPL-2.0-only

//! What a network device is plugged into: a TAP device of the host, or a program such as passt that
//! speaks for the guest without any rights.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::error::{Error, Result};

/// The longest frame: passt's, with room for a tag.
pub(crate) const FRAME_LIMIT: usize = 65_554;

/// A link carries frames. One that is gone carries none: the guest then sees a quiet network.
pub(crate) trait Link: Send {
    /// Sends a frame. One that there is no room for is lost.
    fn send(&mut self, frame: &[u8]);
    /// The next frame, and how long it is; nothing if there is none.
    fn receive(&mut self, frame: &mut [u8]) -> Option<usize>;
    /// Gives the descriptor away, if the link is there.
    fn give(self: Box<Self>) -> Option<OwnedFd>;
    /// What becomes readable when there may be a frame; nothing if there will be none.
    fn source(&self) -> Option<BorrowedFd<'_>>;
    /// What becomes writable when there is room for the rest of a frame; nothing if none waits.
    fn sink(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// Sends the rest of a frame, as far as there is room.
    fn flush(&mut self) {}
}

/// A TAP device.
pub(crate) struct Tap {
    file: Option<File>,
}

nix::ioctl_write_int!(tunsetiff, b'T', 202);

impl Tap {
    /// Attaches to the device of this name, and makes it if there is none (`CAP_NET_ADMIN`).
    pub(crate) fn open(name: &str) -> Result<Self> {
        let failed = |error: io::Error| Error::Network {
            what: format!("TAP device {name}"),
            error,
        };
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            // SAFETY: All zeros are a valid value of this union of plain data.
            ifr_ifru: unsafe { std::mem::zeroed() },
        };
        // The last byte stays a NUL.
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
            return Err(failed(ErrorKind::InvalidInput.into()));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        let mut options = OpenOptions::new();
        let options = options
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK);
        let file = options.open("/dev/net/tun").map_err(failed)?;
        // SAFETY: The request is a whole `ifreq`, which lives until the call returns.
        unsafe {
            tunsetiff(
                file.as_raw_fd(),
                (&raw mut request).expose_provenance() as u64,
            )
        }
        .map_err(|error| failed(error.into()))?;
        Ok(Self { file: Some(file) })
    }
}

impl Tap {
    /// A device that is attached already.
    pub(crate) fn given(file: File) -> Self {
        Self { file: Some(file) }
    }
}

impl Link for Tap {
    fn give(self: Box<Self>) -> Option<OwnedFd> {
        self.file.map(OwnedFd::from)
    }

    fn send(&mut self, frame: &[u8]) {
        // A queue that is full, and a device that is down, lose frames.
        let _ = self.file.as_ref().map(|mut file| file.write(frame));
    }

    fn receive(&mut self, frame: &mut [u8]) -> Option<usize> {
        match self.file.as_ref()?.read(frame) {
            Ok(0) => self.file = None,
            Ok(length) => return Some(length),
            Err(error) if is_later(&error) => {}
            Err(_) => self.file = None,
        }
        None
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }
}

/// Whether there is only nothing now.
fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// The length that stands before each frame on a stream, with the most significant byte first.
const PREFIX: usize = 4;

/// A stream to a program that takes the other end of the cable: passt, or one that speaks like it.
pub(crate) struct Stream {
    socket: Option<UnixStream>,
    /// What has come and is not a whole frame yet.
    input: Vec<u8>,
    /// The rest of a frame that has gone in part.
    output: Vec<u8>,
    /// The program, if it was started from here.
    child: Option<Child>,
}

impl Stream {
    /// A stream that is open.
    pub(crate) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: Some(socket),
            input: Vec::new(),
            output: Vec::new(),
            child: None,
        })
    }

    /// Connects to a program that listens there.
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).and_then(Self::new);
        stream.map_err(|error| Error::Network {
            what: format!("socket {}", path.display()),
            error,
        })
    }

    /// Starts passt for this machine; it ends with it.
    pub(crate) fn passt() -> Result<Self> {
        let failed = |error| Error::Network {
            what: "program passt".into(),
            error,
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let mut stream = Self::new(ours).map_err(failed)?;
        let theirs = OwnedFd::from(theirs);
        let number = theirs.as_raw_fd();
        let mut command = Command::new("passt");
        command.args(["--foreground", "--quiet", "--fd", &number.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // SAFETY: Between fork and exec only this one system call is made.
        unsafe {
            command.pre_exec(move || match libc::fcntl(number, libc::F_SETFD, 0) {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        stream.child = Some(command.spawn().map_err(failed)?);
        Ok(stream)
    }

    /// Sends what is left of an earlier frame; says whether all of it has gone.
    fn send_rest(&mut self) -> bool {
        while !self.output.is_empty() {
            let Some(mut socket) = self.socket.as_ref() else {
                return false;
            };
            match socket.write(&self.output) {
                Ok(count) if count > 0 => drop(self.output.drain(..count)),
                Err(error) if is_later(&error) => return false,
                _ => {
                    self.socket = None;
                    return false;
                }
            }
        }
        true
    }

    /// The whole frame at the beginning of the input. A length that cannot be right ends the link.
    fn next(&mut self, frame: &mut [u8]) -> Option<usize> {
        let (prefix, rest) = self.input.split_first_chunk::<PREFIX>()?;
        let length = u32::from_be_bytes(*prefix) as usize;
        let Some(place) = frame.get_mut(..length) else {
            self.socket = None;
            return None;
        };
        place.copy_from_slice(rest.get(..length)?);
        self.input.drain(..PREFIX + length);
        Some(length)
    }
}

impl Link for Stream {
    /// The program at the other end stays.
    fn give(mut self: Box<Self>) -> Option<OwnedFd> {
        self.child = None;
        self.socket.take().map(OwnedFd::from)
    }

    fn send(&mut self, frame: &[u8]) {
        // In the middle of a frame, there is no room for another.
        if self.send_rest() && self.socket.is_some() {
            self.output.extend((frame.len() as u32).to_be_bytes());
            self.output.extend(frame);
            self.send_rest();
        }
    }

    fn receive(&mut self, frame: &mut [u8]) -> Option<usize> {
        self.send_rest();
        loop {
            if let Some(length) = self.next(frame) {
                return Some(length);
            }
            let mut more = [0; 16 << 10];
            match self.socket.as_ref()?.read(&mut more) {
                Ok(count) if count > 0 => self.input.extend(&more[..count]),
                Err(error) if is_later(&error) => return None,
                _ => self.socket = None,
            }
        }
    }

    fn source(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    fn sink(&self) -> Option<BorrowedFd<'_>> {
        self.source().filter(|_| !self.output.is_empty())
    }

    fn flush(&mut self) {
        self.send_rest();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.socket = None;
        if let Some(mut child) = self.child.take() {
            // It has ended already, or ends now.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_whole_however_they_are_cut() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut link = Stream::new(ours).unwrap();
        let mut frame = [0; FRAME_LIMIT];
        let sent = b"\0\0\0\x03abc\0\0\0\0\0\0\0\x02de";
        for cut in 0..sent.len() {
            theirs.write_all(&sent[..cut]).unwrap();
            let mut got = Vec::new();
            while let Some(length) = link.receive(&mut frame) {
                got.push(frame[..length].to_vec());
            }
            theirs.write_all(&sent[cut..]).unwrap();
            while let Some(length) = link.receive(&mut frame) {
                got.push(frame[..length].to_vec());
            }
            assert_eq!(got, [&b"abc"[..], b"", b"de"], "{cut}");
        }
        link.send(b"xyz");
        let mut got = [0; 7];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(got, *b"\0\0\0\x03xyz");
    }

    #[test]
    fn a_full_stream_loses_whole_frames_only() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut link = Stream::new(ours).unwrap();
        let frame = [7; 1500];
        assert!(link.sink().is_none());
        for _ in 0..1000 {
            link.send(&frame);
        }
        assert_eq!(link.sink().is_some(), !link.output.is_empty());
        theirs.set_nonblocking(true).unwrap();
        let mut got = Vec::new();
        // What is left of the last frame goes when there is room.
        while theirs.read_to_end(&mut got).is_err() && !link.output.is_empty() {
            link.flush();
        }
        let _ = theirs.read_to_end(&mut got);
        assert!(got.len() > 1504 && got.len() % 1504 == 0, "{}", got.len());
        assert!(got.chunks(1504).all(|piece| piece[..4] == [0, 0, 5, 220]));
    }

    #[test]
    fn an_end_or_nonsense_ends_the_link() {
        for nonsense in [&b"\xff\xff\xff\xff"[..], b"\0\x01\x01\0"] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let mut link = Stream::new(ours).unwrap();
            theirs.write_all(nonsense).unwrap();
            assert_eq!(link.receive(&mut [0; FRAME_LIMIT]), None);
            assert!(link.source().is_none());
            link.send(b"a");
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut link = Stream::new(ours).unwrap();
        drop(theirs);
        assert_eq!(link.receive(&mut [0; 100]), None);
        assert!(link.source().is_none());
    }

    #[test]
    fn names_of_devices_have_a_limit() {
        for name in ["", "a-name-that-is-too-long", "a\0b"] {
            assert!(Tap::open(name).is_err(), "{name:?}");
        }
    }
}
