// SPDX-License-Identifier: GPL-2.0-only

//! The kinds of timers.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::clocks::now;

/// One round of a loop.
type Round = Box<dyn FnMut() -> Result<(), String>>;

/// One kind. `start` makes what its rounds need.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) start: fn() -> Round,
}

pub(crate) const KINDS: [Kind; 6] = [
    Kind {
        name: "a short sleep",
        start: || sleeps(100_000),
    },
    Kind {
        name: "a sleep",
        start: || sleeps(3_000_000),
    },
    Kind {
        name: "a sleep until a time",
        start: until,
    },
    Kind {
        name: "a periodic timer",
        start: periodic,
    },
    Kind {
        name: "a timer of the wheel",
        start: wheel,
    },
    Kind {
        name: "work and sleep",
        start: work,
    },
];

fn timespec(nanoseconds: u64) -> libc::timespec {
    libc::timespec {
        tv_sec: (nanoseconds / 1_000_000_000) as i64,
        tv_nsec: (nanoseconds % 1_000_000_000) as i64,
    }
}

fn sleep(flags: i32, nanoseconds: u64) -> Result<(), String> {
    let time = timespec(nanoseconds);
    let clock = libc::CLOCK_MONOTONIC;
    // SAFETY: The kernel reads this function's own memory.
    match unsafe { libc::clock_nanosleep(clock, flags, &raw const time, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(std::io::Error::from_raw_os_error(error).to_string()),
    }
}

/// Sleeps of this length are not shorter.
fn sleeps(nanoseconds: u64) -> Round {
    Box::new(move || {
        let start = now();
        sleep(0, nanoseconds)?;
        not_before(start + nanoseconds)
    })
}

fn not_before(time: u64) -> Result<(), String> {
    match time.checked_sub(now()) {
        Some(early) if early > 0 => Err(format!("{early} ns early")),
        _ => Ok(()),
    }
}

/// Sleeps until times at equal distances, as long as the CPU keeps up.
fn until() -> Round {
    const DISTANCE: u64 = 500_000;
    let mut next = now();
    Box::new(move || {
        next = now().max(next + DISTANCE);
        sleep(libc::TIMER_ABSTIME, next)?;
        not_before(next)
    })
}

/// A timer that goes on by itself: at any time it has expired as often as the clock says. Its
/// period is longer than a tick, below which a kernel without high resolution goes by ticks.
fn periodic() -> Round {
    const PERIOD: u64 = 10_000_000;
    let times = libc::itimerspec {
        it_interval: timespec(PERIOD),
        it_value: timespec(PERIOD),
    };
    let before = now();
    // SAFETY: The descriptor is new and the file's alone; the kernel reads this function's memory.
    let mut timer = unsafe {
        let fd = libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC);
        libc::timerfd_settime(fd, 0, &raw const times, std::ptr::null_mut());
        File::from_raw_fd(fd)
    };
    let after = now();
    let mut expired = 0;
    Box::new(move || {
        let least = (now() - after) / PERIOD;
        let mut bytes = [0; 8];
        timer.read_exact(&mut bytes).map_err(|e| e.to_string())?;
        expired += u64::from_le_bytes(bytes);
        let most = (now() - before) / PERIOD;
        if (least..=most).contains(&expired) {
            Ok(())
        } else {
            Err(format!("expired {expired} times, not {least} to {most}"))
        }
    })
}

/// Waits for what never comes. The kernel gives up by its timer wheel, which its tick drives.
fn wheel() -> Round {
    let (socket, other) = UnixDatagram::pair().expect("the kernel has sockets");
    let set = socket.set_read_timeout(Some(Duration::from_millis(4)));
    set.expect("sockets have timeouts");
    Box::new(move || {
        let _open = &other;
        match socket.recv(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            outcome => Err(format!("{outcome:?}")),
        }
    })
}

/// The CPU has work when timers expire; between that it rests.
fn work() -> Round {
    Box::new(|| {
        let end = now() + 5_000_000;
        while now() < end {}
        sleep(0, 5_000_000)?;
        not_before(end)
    })
}
