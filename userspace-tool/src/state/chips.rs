// SPDX-License-Identifier: GPL-2.0-only

//! The state of what the module emulates beside the processors: PICs, I/O APIC, PIT, clock.

use kvm_bindings::{
    kvm_clock_data, kvm_irqchip, kvm_pit_state2, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The chips, by their numbers.
const CHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// The state of the chips.
#[derive(Serialize, Deserialize)]
pub(crate) struct State {
    chips: Vec<kvm_irqchip>,
    pit: kvm_pit_state2,
    /// The paravirtual clock, in nanoseconds.
    clock: u64,
}

impl State {
    /// Reads it. No processor may run.
    pub(crate) fn read(vm: &VmFd) -> Result<Self> {
        let chip = |number| {
            let mut chip = kvm_irqchip {
                chip_id: number,
                ..Default::default()
            };
            vm.get_irqchip(&mut chip)
                .map_err(|error| Error::kvm("KVM_GET_IRQCHIP", error))?;
            Ok(chip)
        };
        let pit = vm.get_pit2();
        let clock = vm.get_clock();
        Ok(Self {
            chips: CHIPS.into_iter().map(chip).collect::<Result<_>>()?,
            pit: pit.map_err(|error| Error::kvm("KVM_GET_PIT2", error))?,
            clock: clock
                .map_err(|error| Error::kvm("KVM_GET_CLOCK", error))?
                .clock,
        })
    }

    /// Writes it. The clock goes on from where it was.
    pub(crate) fn write(&self, vm: &VmFd) -> Result<()> {
        for chip in self.chips.iter().take(CHIPS.len()) {
            vm.set_irqchip(chip)
                .map_err(|error| Error::kvm("KVM_SET_IRQCHIP", error))?;
        }
        vm.set_pit2(&self.pit)
            .map_err(|error| Error::kvm("KVM_SET_PIT2", error))?;
        let clock = kvm_clock_data {
            clock: self.clock,
            ..Default::default()
        };
        vm.set_clock(&clock)
            .map_err(|error| Error::kvm("KVM_SET_CLOCK", error))
    }
}
