// SPDX-License-Identifier: GPL-2.0-only

//! Instructions, whole, changed and random, on memory, on devices and at the border of both: what
//! they access, which registers they leave, and how they end.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use kvm_bindings::*;
use selftests::kvm::{number, Handle, Xsave};

use crate::cases::{self, Case, Mode};
use crate::guest::{fnv, regs, words, Config, Machine, CODE, DEVICE, DEVICE_END, HLT};
use crate::probe::{Probe, Subject};
use crate::random::Random;

/// The end of 16-bit code.
const CODE_64K: usize = 0x2_0000;

/// The flags that arithmetic sets, often to anything.
const STATUS: u64 = 0x8d5;

/// Second bytes behind 0F: system instructions, which have tests of their own or end the emulator,
/// and what reads the time, random numbers or CPUID.
const LEFT_OUT: &[u8] = &[
    0x00, 0x01, 0x20, 0x21, 0x22, 0x23, 0x24, 0x26, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0xa2, 0xaa,
    0xc7,
];

/// SHLD, SHRD, BSF and BSR, behind 0F: they leave flags undefined (APM vol. 3), which an
/// instruction behind them may read.
const UNDEFINED: &[u8] = &[0xa4, 0xa5, 0xac, 0xad, 0xbc, 0xbd];

/// The machine and the lists of `single`.
pub(crate) struct Instructions {
    device: Handle,
    machines: BTreeMap<Config, Machine>,
    cases: Vec<Case>,
}

impl Instructions {
    pub(crate) fn open(device: Handle) -> Box<dyn Subject> {
        Box::new(Self {
            device,
            machines: BTreeMap::new(),
            cases: cases::all(),
        })
    }

    /// Bytes to execute.
    fn bytes(&self, mode: Mode, random: &mut Random) -> Vec<u8> {
        loop {
            let mut alone = true;
            let mut bytes = match random.below(4) {
                0 => {
                    alone = false;
                    random.next().to_le_bytes()[..6].to_vec()
                }
                _ => loop {
                    let at = random.below(self.cases.len() as u64) as usize;
                    if self.cases[at].mode == mode {
                        break self.cases[at].bytes.clone();
                    }
                },
            };
            for _ in 0..random.pick(&[0, 1, 1, 2]) {
                let at = random.below(bytes.len() as u64) as usize;
                let how = random.below(4);
                alone &= how == 0;
                match how {
                    0 => bytes.insert(0, random.pick(PREFIXES)),
                    1 => bytes[at] ^= random.bit(8) as u8,
                    2 => bytes[at] = random.next() as u8,
                    _ => bytes.push(random.next() as u8),
                }
            }
            bytes.truncate(15);
            let refused = |pair: &[u8]| match pair[0] {
                0x0f if !alone && UNDEFINED.contains(&pair[1]) => true,
                0x0f => LEFT_OUT.contains(&pair[1]),
                // FNSTENV and FNSAVE store where the last instruction of the x87 unit was,
                // whoever's.
                0xd9 | 0xdd => (pair[1] >> 3) & 7 == 6 && pair[1] < 0xc0,
                _ => false,
            };
            if !bytes.windows(2).any(refused) {
                return bytes;
            }
        }
    }
}

const PREFIXES: &[u8] = &[
    0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x40, 0x48, 0x4f,
];

impl Subject for Instructions {
    fn ask(&mut self, random: &mut Random, limit: Duration) -> Result<Probe, String> {
        let config = Config::default();
        let machine = match self.machines.remove(&config) {
            Some(machine) => machine,
            None => Machine::new(&self.device, config)?,
        };
        let mode = random.pick(&Mode::ALL);
        let bytes = self.bytes(mode, random);
        let mut probe = Probe::default();
        probe.word(format!("mode={}", mode.name()));
        let mut text = String::new();
        for byte in &bytes {
            let _ = write!(text, "{byte:02x}");
        }
        probe.word(format!("code={text}"));
        machine.fill(mode);
        machine.reset(mode, false)?;
        // Wherever it may go to.
        let length = CODE_64K - CODE as usize;
        machine.ram.write(CODE as usize, &vec![HLT; length]);
        machine.ram.write(CODE as usize, &bytes);
        let r = some_regs(mode, random);
        machine.vcpu.handle.set(number::SET_REGS, &r)?;
        let usable = machine.run(&mut probe, limit)?;
        if probe.get("exit") == "hlt" {
            describe(&machine, mode, &mut probe)?;
        }
        if usable {
            self.machines.insert(config, machine);
        }
        Ok(probe)
    }
}

/// Most registers point somewhere: into memory, to a device, or at a border.
fn some_regs(mode: Mode, random: &mut Random) -> kvm_regs {
    let mut r = regs(mode);
    let flat = !mode.is_16_bit();
    let somewhere = |random: &mut Random| {
        let at = match random.below(6) {
            0 => DEVICE - random.below(16),
            1 => DEVICE_END - random.below(16),
            // Not so near to the code that a store changes itself.
            2 => 0x7000 + random.below(0xe00),
            // Not the tables: what a CPU has cached of them is its own affair.
            3 if random.one_in(4) => return random.value().max(0x7000),
            _ => DEVICE + random.below(0x1000),
        };
        if flat {
            at
        } else {
            at.wrapping_sub(DEVICE) & 0xffff
        }
    };
    (r.rbx, r.rdi, r.rsi, r.rbp) = (
        somewhere(random),
        somewhere(random),
        somewhere(random),
        somewhere(random),
    );
    (r.rax, r.rdx, r.r8) = (random.value(), random.value(), random.value());
    r.rcx = random.below(6);
    if random.one_in(16) {
        r.rsp = somewhere(random);
    }
    // CF, PF, AF, ZF, SF, DF and OF.
    r.rflags |= random.next() & 0xcd5;
    r
}

/// The registers, without the flags that an instruction of the emulators may leave as it likes.
fn describe(machine: &Machine, mode: Mode, probe: &mut Probe) -> Result<(), String> {
    let mut all = Probe::default();
    machine.describe(&mut all)?;
    let emulated = !probe.get("trace").is_empty();
    for (name, value) in all.answer {
        match name {
            "flags" if emulated => {
                let flags = u64::from_str_radix(&value, 16).unwrap_or(0);
                probe.put("flags", format!("{:x}", flags & !STATUS));
            }
            // The upper halves mean nothing outside of 64-bit mode (APM vol. 1, 3.1.2), and an
            // emulator may leave them as it likes.
            "regs" if mode != Mode::Long => probe.put("regs", lower_halves(&value)),
            // An exception's frame has the flags.
            "stack" if emulated => {}
            "events" | "dr7" => {}
            _ => probe.put(name, value),
        }
    }
    let vcpu = &machine.vcpu.handle;
    let fpu: kvm_fpu = vcpu.get(number::GET_FPU)?;
    let xsave: Xsave = vcpu.get(number::GET_XSAVE)?;
    let upper: Vec<u8> = xsave.0[144..208]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    probe.put(
        "fpu",
        format!(
            "{:x}:{:x}:{:x}:{:x}:{:x}",
            fpu.fcw,
            fpu.fsw,
            fpu.ftwx,
            fnv(&fpu.xmm.concat()),
            fnv(&upper)
        ),
    );
    // As above, if the stack is there.
    let regs: kvm_regs = vcpu.get(number::GET_REGS)?;
    let stack = DEVICE - 0x100..DEVICE_END + 0x100;
    if emulated && stack.contains(&regs.rsp) {
        return Ok(());
    }
    let near = [
        machine.ram.read(DEVICE as usize - 0x100, 0x100),
        machine.ram.read(DEVICE_END as usize, 0x100),
        machine.ram.read(CODE as usize, 0x100),
    ];
    probe.put("memory", format!("{:x}", fnv(&near.concat())));
    Ok(())
}

/// Of registers in words, 32 bits of each.
fn lower_halves(text: &str) -> String {
    let each = text.split(',').map(|word| {
        let value = u64::from_str_radix(word, 16).unwrap_or(0);
        value & u64::from(u32::MAX)
    });
    words(&each.collect::<Vec<_>>())
}
