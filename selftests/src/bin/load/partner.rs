// SPDX-License-Identifier: GPL-2.0-only

//! A thread on another CPU that answers: through pipes, through a futex, and to signals.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::bind;

/// What a byte in the pipe asks for.
const ECHO: u8 = 0;
const FUTEX: u8 = 1;
const END: u8 = 2;

/// Signals that arrived, of all threads.
static SIGNALS: AtomicU32 = AtomicU32::new(0);

extern "C" fn signalled(_: i32) {
    SIGNALS.fetch_add(1, SeqCst);
}

/// Signals are counted, and system calls that they interrupt go on.
pub(crate) fn take_signals() {
    // SAFETY: The handler does nothing that a handler may not do.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = signalled as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
    }
}

/// The words that both threads see.
#[derive(Default)]
struct Words {
    /// Odd: it is the partner's turn.
    turn: AtomicU32,
    thread: AtomicI32,
}

pub(crate) struct Partner {
    words: Arc<Words>,
    there: File,
    back: File,
    handle: JoinHandle<()>,
}

/// The two ends of a pipe: to read from, and to write to.
fn pipe() -> (File, File) {
    let mut ends = [-1; 2];
    // SAFETY: The kernel writes to this function's own memory, and the descriptors are new.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1]))
    }
}

fn futex(word: &AtomicU32, operation: i32, value: u32) {
    let none = std::ptr::null::<libc::timespec>();
    // SAFETY: The word lives as long as both threads, and the kernel only reads it.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            operation | libc::FUTEX_PRIVATE_FLAG,
            value,
            none,
        )
    };
}

/// Waits until the word has another value than this.
fn wait_while(word: &AtomicU32, value: u32) {
    while word.load(SeqCst) == value {
        futex(word, libc::FUTEX_WAIT, value);
    }
}

fn answer(words: &Words, mut asked: File, mut answers: File, cpu: usize) {
    // SAFETY: A plain system call.
    words.thread.store(unsafe { libc::gettid() }, SeqCst);
    let mut byte = [0];
    while asked.read_exact(&mut byte).is_ok() && byte[0] != END {
        bind(cpu);
        if byte[0] == FUTEX {
            let mine = words.turn.load(SeqCst) | 1;
            wait_while(&words.turn, mine - 1);
            words.turn.store(mine + 1, SeqCst);
            futex(&words.turn, libc::FUTEX_WAKE, 1);
        }
        if answers.write_all(&byte).is_err() {
            break;
        }
    }
}

impl Partner {
    pub(crate) fn start(cpu: usize) -> Self {
        let (asked, there) = pipe();
        let (back, answers) = pipe();
        let words = Arc::new(Words::default());
        let handle = std::thread::spawn({
            let words = words.clone();
            move || answer(&words, asked, answers, cpu)
        });
        Self {
            words,
            there,
            back,
            handle,
        }
    }

    fn ask(&self, what: u8) -> Result<(), String> {
        (&self.there).write_all(&[what]).map_err(|e| e.to_string())
    }

    fn answered(&self, what: u8) -> Result<(), String> {
        let mut byte = [0xff];
        (&self.back)
            .read_exact(&mut byte)
            .map_err(|e| e.to_string())?;
        if byte[0] != what {
            return Err(format!("{} came back", byte[0]));
        }
        Ok(())
    }

    /// There and back through pipes.
    pub(crate) fn echo(&self) -> Result<(), String> {
        self.ask(ECHO)?;
        self.answered(ECHO)
    }

    /// There and back through a futex.
    pub(crate) fn take_turns(&self) -> Result<(), String> {
        self.ask(FUTEX)?;
        let theirs = self.words.turn.load(SeqCst) + 1;
        self.words.turn.store(theirs, SeqCst);
        futex(&self.words.turn, libc::FUTEX_WAKE, 1);
        wait_while(&self.words.turn, theirs);
        self.answered(FUTEX)
    }

    /// A signal to the other thread arrives.
    pub(crate) fn signal(&self) -> Result<(), String> {
        self.echo()?;
        let before = SIGNALS.load(SeqCst);
        let thread = self.words.thread.load(SeqCst);
        // SAFETY: A signal that a handler takes, to a thread of this process.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGUSR1) };
        self.echo()?;
        if SIGNALS.load(SeqCst) == before {
            return Err("the signal did not arrive".into());
        }
        Ok(())
    }

    pub(crate) fn end(self) {
        let _ = self.ask(END);
        let _ = self.handle.join();
    }
}
