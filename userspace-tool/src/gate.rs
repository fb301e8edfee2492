// SPDX-License-Identifier: GPL-2.0-only

//! Pausing: the place where the threads of processors wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Who waits.
#[derive(Debug, Default)]
struct State {
    /// Threads that will come by, and those that wait here now.
    threads: usize,
    waiting: usize,
}

/// A gate that is open or closed. A thread that has entered comes by between two runs of its guest.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// It changes under the lock of the rest, and is read without.
    closed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

/// A thread that comes by the gate, until this is dropped.
pub(crate) struct Passenger<'a>(&'a Gate);

impl Gate {
    /// From now on this thread counts.
    pub(crate) fn enter(&self) -> Passenger<'_> {
        self.change(|state| state.threads += 1);
        Passenger(self)
    }

    /// Closes the gate. Who is in the guest must be called out of it then.
    pub(crate) fn close(&self) {
        self.change(|_| self.closed.store(true, Ordering::SeqCst));
    }

    /// Opens it.
    pub(crate) fn open(&self) {
        self.change(|_| self.closed.store(false, Ordering::SeqCst));
    }

    /// Whether it is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Waits until all threads wait, or the gate is open again; not longer than this. False if the
    /// time is over.
    pub(crate) fn wait_for_all(&self, limit: Duration) -> bool {
        let coming = |state: &mut State| self.is_closed() && state.waiting < state.threads;
        let waited = self.changed.wait_timeout_while(self.lock(), limit, coming);
        let (state, outcome) = waited.unwrap_or_else(PoisonError::into_inner);
        drop(state);
        !outcome.timed_out()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

impl Passenger<'_> {
    /// Waits while the gate is closed.
    pub(crate) fn pass(&self) {
        if !self.0.is_closed() {
            return;
        }
        let mut state = self.0.lock();
        state.waiting += 1;
        self.0.changed.notify_all();
        let state = self.0.changed.wait_while(state, |_| self.0.is_closed());
        state.unwrap_or_else(PoisonError::into_inner).waiting -= 1;
    }
}

impl Drop for Passenger<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.threads -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn no_thread_passes_a_closed_gate() {
        let gate = Gate::default();
        let (rounds, end) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let passenger = gate.enter();
                    while end.load(Ordering::SeqCst) == 0 {
                        passenger.pass();
                        rounds.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            for _ in 0..100 {
                gate.close();
                assert!(gate.wait_for_all(Duration::from_secs(300)));
                // Threads that have not entered yet may come later, but find it closed.
                let before = rounds.load(Ordering::SeqCst);
                std::thread::yield_now();
                let after = rounds.load(Ordering::SeqCst);
                assert!(after == before || gate.lock().threads < 3);
                assert!(gate.is_closed());
                gate.open();
            }
            end.store(1, Ordering::SeqCst);
        });
        assert_eq!(gate.lock().threads, 0);
        gate.close();
        assert!(gate.wait_for_all(Duration::from_secs(300)));
    }
}
