// SPDX-License-Identifier: GPL-2.0-only

//! The machine's end of its socket.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use super::message::Receiver;
use super::{Answer, Request};
use crate::devices::bus::lock;

/// How long a request may be.
const LINE_LIMIT: u64 = 64 << 10;
/// How long a connection may be silent: others wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who answers. It changes when the machine starts again.
pub(crate) type Handler = Box<dyn FnMut(Request, Vec<OwnedFd>) -> Answer + Send>;

/// The socket, which goes with this.
pub(crate) struct Server {
    /// The name is this machine's. The file stays: another machine may wait for it.
    lock: Flock<File>,
    path: PathBuf,
    /// Until the first answer: then a thread has it.
    listener: Option<UnixListener>,
    handler: Arc<Mutex<Option<Handler>>>,
}

impl Server {
    /// Opens the socket there. A socket that a machine has left behind is taken away; one at which
    /// a machine listens is not.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        let in_use = |_| io::Error::from(io::ErrorKind::AddrInUse);
        let file = File::create(path.with_extension("lock"))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(in_use)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        Ok(Self {
            lock,
            path: path.into(),
            listener: Some(listener),
            handler: Arc::default(),
        })
    }

    /// A socket that was opened elsewhere, with the lock of its name.
    pub(crate) fn given(path: &Path, lock: File, listener: UnixListener) -> io::Result<Self> {
        let in_use = |_| io::Error::from(io::ErrorKind::AddrInUse);
        Ok(Self {
            lock: Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(in_use)?,
            path: path.into(),
            listener: Some(listener),
            handler: Arc::default(),
        })
    }

    /// The lock and the socket, for another process that takes them.
    pub(crate) fn descriptors(&self) -> Option<[BorrowedFd<'_>; 2]> {
        Some([self.lock.as_fd(), self.listener.as_ref()?.as_fd()])
    }

    /// They are another process's: nothing is unlocked or removed.
    pub(crate) fn give(mut self) {
        drop(self.listener.take());
        std::mem::forget(self);
    }

    /// The directory of the socket.
    pub(crate) fn directory(&self) -> Option<&Path> {
        self.path.parent()
    }

    /// Who answers from now on. The thread that listens starts with the first one, from a thread
    /// that is confined by then.
    pub(crate) fn set(&mut self, handler: Option<Handler>) -> io::Result<()> {
        *lock(&self.handler) = handler;
        let Some(listener) = self.listener.take() else {
            return Ok(());
        };
        let handler = self.handler.clone();
        // It ends with the program.
        let thread = thread::Builder::new().name("control".into());
        thread.spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // A connection that breaks is over.
                let _ = serve(&stream, &handler);
            }
        })?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Answers the requests of a connection.
fn serve(stream: &UnixStream, handler: &Mutex<Option<Handler>>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(Receiver::new(stream));
    loop {
        let mut line = String::new();
        if reader.by_ref().take(LINE_LIMIT).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let files = reader.get_mut().take();
        // Until the answer is written: a machine that ends at a request waits for that.
        let mut handler = lock(handler);
        let answer = match (serde_json::from_str(&line), handler.as_mut()) {
            (Ok(request), Some(handler)) => handler(request, files),
            (Ok(_), None) => error("the machine is about to start or to end"),
            (Err(reason), _) => error(&reason.to_string()),
        };
        let text = serde_json::to_string(&answer).map_err(io::Error::other)?;
        let mut writer = stream;
        writer.write_all(text.as_bytes())?;
        writer.write_all(b"\n")?;
    }
}

fn error(reason: &str) -> Answer {
    Answer::Error {
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::client::ask;

    #[test]
    fn requests_are_answered_until_the_machine_goes() {
        let path = std::env::temp_dir().join(format!("pacifica-control-{}", std::process::id()));
        let mut server = Server::bind(&path).unwrap();
        server.set(None).unwrap();
        assert!(matches!(
            ask(&path, Request::Pause, &[], None),
            Ok(Answer::Error { .. })
        ));
        let handler: Handler = Box::new(|request, _| match request {
            Request::Pause => Answer::Done,
            other => error(&format!("{other:?}")),
        });
        server.set(Some(handler)).unwrap();
        assert_eq!(ask(&path, Request::Pause, &[], None).unwrap(), Answer::Done);
        assert_eq!(ask(&path, Request::Quit, &[], None).unwrap(), error("Quit"));
        // A second machine does not take the place of one that is there.
        let second = Server::bind(&path).map(drop).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        for nonsense in ["{}\n", "\n", "x\n", "{\"request\":7}\n"] {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(nonsense.as_bytes()).unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            assert!(
                line.starts_with("{\"answer\":\"error\""),
                "{nonsense}: {line}"
            );
        }
        drop(server);
        assert!(!path.exists());
        // One that was left behind is no obstacle.
        drop(UnixListener::bind(&path).unwrap());
        drop(Server::bind(&path).unwrap());
        fs::remove_file(path.with_extension("lock")).unwrap();
    }
}
