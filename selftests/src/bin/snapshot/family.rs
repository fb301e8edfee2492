// SPDX-License-Identifier: GPL-2.0-only

//! A VM whose memory is known at any time: each CPU writes to a part of its own, and a model of it
//! does the same. A child of fork(2) has a copy of both, and goes its own way.

use selftests::kvm::{number, Handle};
use selftests::process::Child;
use selftests::snapshot::Snapshot;

use kvm_bindings::kvm_regs;

use crate::writer::{Writer, TARGET};

/// What a CPU of the writer does.
struct Model {
    /// The state of its random numbers.
    random: u64,
    /// The answer that it has not seen yet.
    answer: Option<u32>,
    words: Vec<u64>,
}

/// The VM, and what its memory must be.
pub(crate) struct Member<'a> {
    device: &'a Handle,
    pub(crate) writer: Writer,
    models: Vec<Model>,
    /// How often memory was written by this program.
    writes: u64,
}

impl Model {
    /// As many writes as there are between two exits.
    fn go_on(&mut self) {
        if let Some(answer) = self.answer.take() {
            self.random = (self.random ^ u64::from(answer)) | 1;
        }
        for _ in 0..16 {
            let mut random = self.random;
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let place = random >> 11 & (self.words.len() as u64 - 1);
            let word = &mut self.words[place as usize];
            let old = *word;
            *word = old.wrapping_add(random);
            self.random = (old ^ place) | 1;
        }
    }
}

impl<'a> Member<'a> {
    /// With so many CPUs, and so many bytes for each, a power of two.
    pub(crate) fn new(device: &'a Handle, cpus: u32, bytes: usize) -> Result<Self, String> {
        let all = (bytes * cpus as usize).next_power_of_two();
        let writer = Writer::new(device, cpus, all)?;
        let mut models = Vec::new();
        for (id, vcpu) in (0..).zip(&writer.machine.vcpus) {
            let mut regs: kvm_regs = vcpu.handle.get(number::GET_REGS)?;
            regs.r9 = TARGET + id * bytes as u64;
            regs.r10 = bytes as u64 / 8 - 1;
            vcpu.handle.set(number::SET_REGS, &regs)?;
            models.push(Model {
                random: regs.r8,
                answer: None,
                words: vec![0; bytes / 8],
            });
        }
        Ok(Self {
            device,
            writer,
            models,
            writes: 0,
        })
    }

    /// All CPUs go on, with answers that depend on `seed`; then this program writes.
    pub(crate) fn go_on(&mut self, exits: u64, seed: u64) -> Result<(), String> {
        self.writer.run(exits, seed)?;
        for (id, model) in (0u64..).zip(&mut self.models) {
            for count in 0..exits {
                model.go_on();
                model.answer = Some((seed ^ id).wrapping_mul(count + 1) as u32);
            }
            for _ in 0..4 {
                self.writes += 1;
                let place = self.writes.wrapping_mul(0x9e37_79b9) as usize % model.words.len();
                let at = (id as usize * model.words.len() + place) * 8;
                model.words[place] ^= seed ^ self.writes;
                self.writer.target.write_words(at, &[model.words[place]]);
            }
        }
        Ok(())
    }

    /// Whether memory is as it should be.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (id, model) in self.models.iter().enumerate() {
            let length = model.words.len() * 8;
            let bytes = self.writer.target.read(id * length, length);
            let mut words = bytes.chunks_exact(8).zip(&model.words);
            let wrong = words.position(|(is, should)| is != should.to_ne_bytes());
            if let Some(place) = wrong {
                let is = &bytes[place * 8..place * 8 + 8];
                let should = model.words[place].to_ne_bytes();
                return Err(format!("CPU {id}, word {place}: {is:x?} for {should:x?}"));
            }
        }
        Ok(())
    }

    /// Rounds of it.
    pub(crate) fn rounds(&mut self, count: u64, seed: u64) -> Result<(), String> {
        for round in 0..count {
            self.go_on(1 + (seed + round) % 5, seed.wrapping_mul(round + 3))?;
        }
        self.check()
    }

    /// A child that does `work` with a VM of its own, which begins as this one is now.
    pub(crate) fn child(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Result<Child, String> {
        let snapshot = Snapshot::of_state(&self.writer.machine.vm)?;
        self.child_of(&snapshot, work)
    }

    /// The same from a snapshot that is there; memory must be as it was.
    pub(crate) fn child_of(
        &mut self,
        snapshot: &Snapshot,
        work: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Result<Child, String> {
        Child::start(|| {
            self.become_child(snapshot)?;
            work(self)
        })
    }

    /// In a child: its own VM takes the place of the parent's.
    pub(crate) fn become_child(&mut self, snapshot: &Snapshot) -> Result<(), String> {
        let machine = &mut self.writer.machine;
        machine.fork_from(self.device, snapshot, 0)
    }
}
