// SPDX-License-Identifier: GPL-2.0-only

//! State that a VMM sets, valid or nearly so: whether it is taken, what is read then, and again
//! after a guest has run with it.

mod chips;
mod fpu;
mod regs;
mod vcpu;

use std::collections::BTreeMap;
use std::time::Duration;

use selftests::kvm::Handle;

use crate::cases::Mode;
use crate::guest::{Config, Machine};
use crate::probe::{Probe, Subject};
use crate::random::Random;
use chips::{irqchip, lapic, line, msi, pit};
use fpu::{fpu, xcrs, xsave};
use regs::{debugregs, some_regs, some_sregs, some_sregs2};
use vcpu::{clock, guest_debug, mp_state, nested_state, routing, tsc_khz};

/// Sets something; whether a guest may run with it.
type Part = fn(&Machine, Mode, &mut Random, &mut Probe) -> Result<bool, String>;

/// The parts that each vCPU has, and those of the controllers in the kernel.
const PARTS: &[Part] = &[
    some_regs,
    some_sregs,
    some_sregs,
    some_sregs2,
    debugregs,
    xsave,
    xsave,
    xcrs,
    fpu,
    mp_state,
    guest_debug,
    clock,
    tsc_khz,
    nested_state,
    routing,
];
const CHIPS: &[Part] = &[mp_state, lapic, lapic, irqchip, irqchip, pit, msi, line];

/// The machines that are there, and the device.
pub(crate) struct States {
    device: Handle,
    machines: BTreeMap<Config, Machine>,
}

impl States {
    pub(crate) fn open(device: Handle) -> Box<dyn Subject> {
        Box::new(Self {
            device,
            machines: BTreeMap::new(),
        })
    }
}

impl Subject for States {
    fn ask(&mut self, random: &mut Random, limit: Duration) -> Result<Probe, String> {
        let config = Config {
            chips: random.one_in(3),
            ..Default::default()
        };
        let machine = match self.machines.remove(&config) {
            Some(machine) => machine,
            None => Machine::new(&self.device, config)?,
        };
        let mut probe = Probe::default();
        let mode = random.pick(&[Mode::Real, Mode::Protected, Mode::Long]);
        let part = random.pick(if config.chips { CHIPS } else { PARTS });
        probe.word(format!("mode={}", mode.name()));
        machine.fill(mode);
        machine.reset(mode, false)?;
        let runs = part(&machine, mode, random, &mut probe)?;
        let mut usable = !config.chips;
        if runs {
            usable &= machine.run(&mut probe, limit)?;
            let exit = probe.get("exit");
            if ["hlt", "halted"].contains(&exit) {
                machine.describe(&mut probe)?;
            }
        }
        if usable {
            self.machines.insert(config, machine);
        }
        Ok(probe)
    }
}

/// Changes some fields to values that may be wrong; their names go into the question.
fn change<'a>(random: &mut Random, probe: &mut Probe, fields: &mut [(&'a str, &'a mut dyn Field)]) {
    let count = random.pick(&[1, 1, 2, 3]);
    for _ in 0..count {
        let at = random.below(fields.len() as u64) as usize;
        let (name, field) = &mut fields[at];
        let value = match random.below(4) {
            0 => random.value(),
            _ => field.value() ^ random.bit(field.bits()),
        };
        field.put(value);
        probe.word(format!("{name}={:x}", field.value()));
        probe.word(*name);
    }
}

/// A number in a structure.
trait Field {
    fn value(&self) -> u64;
    fn put(&mut self, value: u64);
    fn bits(&self) -> u64;
}

macro_rules! fields {
    ($($kind:ty)*) => {$(
        impl Field for $kind {
            fn value(&self) -> u64 {
                u64::from(*self)
            }
            fn put(&mut self, value: u64) {
                *self = value as $kind;
            }
            fn bits(&self) -> u64 {
                u64::from(<$kind>::BITS)
            }
        }
    )*};
}
fields!(u8 u16 u32 u64);
