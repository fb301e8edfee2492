// SPDX-License-Identifier: GPL-2.0-only

//! The interrupt controllers and the PIT, and the messages and lines that reach them.

use kvm_bindings::*;
use selftests::kvm::number;

use super::change;
use crate::cases::Mode;
use crate::guest::{errno, fnv, Machine};
use crate::probe::Probe;
use crate::random::Random;

/// Registers of the local APIC. Its timer does not tick.
pub(crate) fn lapic(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("lapic");
    let vcpu = &machine.vcpu.handle;
    let mut page: kvm_lapic_state = vcpu.get(number::GET_LAPIC)?;
    for _ in 0..random.pick(&[1, 1, 2, 4]) {
        let register = random.below(0x40) * 16;
        let value = match register {
            0x320 => random.value() as u32 | 0x1_0000,
            0x380 | 0x390 => 0,
            _ => random.value() as u32,
        };
        let at = register as usize;
        for (to, byte) in page.regs[at..at + 4].iter_mut().zip(value.to_le_bytes()) {
            *to = byte as i8;
        }
        probe.word(format!("{register:x}={value:x}"));
        probe.word(format!("{register:x}"));
    }
    probe.put("set", errno(vcpu.set(number::SET_LAPIC, &page)));
    let after: kvm_lapic_state = vcpu.get(number::GET_LAPIC)?;
    let words = after.regs.chunks(16).enumerate().map(|(number, bytes)| {
        let word = bytes[..4].iter().rev();
        let value = word.fold(0u32, |word, byte| word << 8 | u32::from(*byte as u8));
        (number * 16, value)
    });
    let there: Vec<_> = words
        .map(|(at, value)| (at, value & lapic_bits(at)))
        .filter(|(_, value)| *value != 0)
        .map(|(at, value)| format!("{at:x}={value:x}"))
        .collect();
    probe.put("got", there.join(","));
    let sregs: kvm_sregs = vcpu.get(number::GET_SREGS)?;
    probe.put("cr8", sregs.cr8);
    Ok(false)
}

/// What a register of the local APIC holds (APM vol. 2, 16.3.2 and further): no reserved bits,
/// which KVM keeps, and nothing that follows from others, as the PPR does, or from the time.
fn lapic_bits(register: usize) -> u32 {
    match register {
        0x20 | 0xd0 | 0x310 => 0xff00_0000,
        0x80 => 0xff,
        0xe0 => 0xf000_0000,
        0xf0 => 0x3ff,
        0x100..=0x27f => u32::MAX,
        0x300 => 0xc_cfff,
        0x320 => 0x7_00ff,
        0x330 | 0x340 => 0x1_07ff,
        0x370 => 0x1_00ff,
        0x350 | 0x360 => 0x1_a7ff,
        0x380 => u32::MAX,
        0x3e0 => 0xb,
        _ => 0,
    }
}

/// The PICs and the IOAPIC.
pub(crate) fn irqchip(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("irqchip");
    let mut chip = kvm_irqchip {
        chip_id: random.pick(&[0, 1, 2, 2, 3, u32::MAX]),
        ..Default::default()
    };
    let id = chip.chip_id;
    probe.word(format!("chip={id:x}"));
    let got = machine.vm.exchange(number::GET_IRQCHIP, &mut chip);
    probe.put("get", errno(got));
    // SAFETY: Bytes, of which all are valid.
    let bytes = unsafe { &mut chip.chip.dummy };
    let length = if id < 2 { 16 } else { 24 + 24 * 8 };
    for _ in 0..random.pick(&[1, 1, 2, 4]) {
        let at = random.below(length) as usize;
        bytes[at] = random.value() as i8;
        probe.word(format!("{at:x}={:x}", bytes[at]));
    }
    probe.put("set", errno(machine.vm.set(number::SET_IRQCHIP, &chip)));
    let mut after = kvm_irqchip {
        chip_id: id,
        ..Default::default()
    };
    let done = machine.vm.exchange(number::GET_IRQCHIP, &mut after);
    if done.is_ok() {
        // SAFETY: As above.
        let bytes = unsafe { &mut after.chip.dummy[..length as usize] };
        plain(id, bytes);
        let each: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        probe.put("got", each.concat());
    }
    Ok(false)
}

/// Without what means nothing: reserved and read-only bits of the IOAPIC, and how much a true byte
/// is.
fn plain(id: u32, bytes: &mut [i8]) {
    if id == 2 {
        // Its place, which is fixed here; the upper bytes of the selector and of the ID; padding.
        bytes[..8].fill(0);
        bytes[9..12].fill(0);
        bytes[12] &= 0xf;
        bytes[13..16].fill(0);
        bytes[20..24].fill(0);
        for entry in bytes[24..].chunks_mut(8) {
            // Delivery status, and remote IRR of messages that have no EOI.
            let has_end = entry[1] & 7 < 2 && entry[1] < 0;
            entry[1] &= if has_end { 0xef_u8 } else { 0xaf_u8 } as i8;
            entry[2] &= 1;
            entry[3..7].fill(0);
        }
    } else {
        bytes[4] &= 7;
        let truths = [6, 7, 8, 10, 11, 12, 13];
        truths
            .iter()
            .for_each(|at| bytes[*at] = i8::from(bytes[*at] != 0));
    }
}

/// The PIT, in a machine that nobody uses again. When its counters were loaded is not compared.
pub(crate) fn pit(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("pit");
    let config = kvm_pit_config {
        flags: random.pick(&[0, 1, 1, 2, 0x8000_0000]),
        ..Default::default()
    };
    probe.word(format!("config={:x}", config.flags));
    let made = machine.vm.set(number::CREATE_PIT2, &config);
    probe.put("create", errno(made));
    if made.is_err() {
        return Ok(false);
    }
    let mut state: kvm_pit_state2 = machine.vm.get(number::GET_PIT2)?;
    for channel in &mut state.channels {
        (channel.rw_mode, channel.read_state, channel.write_state) = (3, 3, 3);
        channel.mode = 2;
    }
    let at = random.below(3) as usize;
    let channel = &mut state.channels[at];
    probe.word(format!("channel={at}"));
    let (name, field, most): (_, &mut u8, _) = match random.below(9) {
        0 => ("count_latched", &mut channel.count_latched, 3),
        1 => ("status_latched", &mut channel.status_latched, 1),
        2 => {
            channel.status_latched = 1;
            ("status", &mut channel.status, 0xff)
        }
        // The lower or the upper byte is next, in keeping with `rw_mode`.
        3 => ("read_state", &mut channel.read_state, 4),
        4 => ("write_state", &mut channel.write_state, 4),
        5 => ("rw_mode", &mut channel.rw_mode, 3),
        6 => ("mode", &mut channel.mode, 5),
        7 => ("bcd", &mut channel.bcd, 1),
        _ => ("gate", &mut channel.gate, 1),
    };
    let least = match name {
        // There are three ways to access a counter.
        "rw_mode" => 1,
        "read_state" | "write_state" => 3,
        _ => 0,
    };
    *field = (least + random.below(most + 1 - least)) as u8;
    let value = *field;
    if name == "rw_mode" {
        // What is to be read and written next is in keeping with it.
        (channel.read_state, channel.write_state) = (value, value);
    }
    probe.word(format!("{name}={value:x}"));
    if random.one_in(2) {
        channel.count = random.below(0x1_0000) as u32 + 1;
        channel.latched_count = random.value() as u16;
        probe.word(format!(
            "count={:x},{:x}",
            channel.count, channel.latched_count
        ));
    }
    if random.one_in(4) {
        state.flags = random.below(2) as u32;
        probe.word(format!("flags={:x}", state.flags));
    }
    probe.put("set", errno(machine.vm.set(number::SET_PIT2, &state)));
    let after: kvm_pit_state2 = machine.vm.get(number::GET_PIT2)?;
    probe.put("flags", format!("{:x}", after.flags));
    let channels: Vec<_> = after
        .channels
        .iter()
        .map(|c| {
            format!(
                "{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}:{:x}",
                c.count,
                c.latched_count,
                c.count_latched,
                c.status_latched,
                c.status,
                c.read_state,
                c.write_state,
                c.write_latch,
                c.rw_mode,
                c.mode,
                c.bcd,
                c.gate
            )
        })
        .collect();
    probe.put("got", channels.join(","));
    Ok(false)
}

pub(crate) fn msi(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("msi");
    let mut msi = kvm_msi {
        address_lo: 0xfee0_0000,
        data: 0x40,
        ..Default::default()
    };
    change(
        random,
        probe,
        &mut [
            ("address", &mut msi.address_lo),
            ("high", &mut msi.address_hi),
            ("data", &mut msi.data),
            ("flags", &mut msi.flags),
            ("devid", &mut msi.devid),
        ],
    );
    probe.word(format!("delivery={}", (msi.data >> 8) & 7));
    // An INIT would reset what the rest of the probe looks at.
    let init = (msi.data >> 8) & 7 >= 5;
    if !init {
        let done = machine.vm.set(number::SIGNAL_MSI, &msi);
        let text = done.map(|count| count.to_string());
        probe.put("set", text.unwrap_or_else(|error| errno::<()>(Err(error))));
    }
    probe.put("events", machine.events()?);
    put_irr(machine, probe)?;
    Ok(false)
}

/// Which interrupts the local APIC has.
fn put_irr(machine: &Machine, probe: &mut Probe) -> Result<(), String> {
    let page: kvm_lapic_state = machine.vcpu.handle.get(number::GET_LAPIC)?;
    let bytes: Vec<u8> = page.regs[0x180..0x280]
        .iter()
        .map(|byte| *byte as u8)
        .collect();
    probe.put("irr", format!("{:x}", fnv(&bytes)));
    Ok(())
}

pub(crate) fn line(
    machine: &Machine,
    _mode: Mode,
    random: &mut Random,
    probe: &mut Probe,
) -> Result<bool, String> {
    probe.word("line");
    let irq = match random.below(3) {
        0 => random.value() as u32,
        _ => random.below(30) as u32,
    };
    let level = kvm_irq_level {
        __bindgen_anon_1: kvm_irq_level__bindgen_ty_1 { irq },
        level: random.pick(&[0, 1, 1, 2, u32::MAX]),
    };
    probe.word(format!("irq={irq:x} level={:x}", level.level));
    let mut status = level;
    let number = number::IRQ_LINE_STATUS;
    let done = match random.one_in(2) {
        true => machine.vm.set(number::IRQ_LINE, &level),
        false => machine.vm.exchange(number, &mut status),
    };
    probe.put("set", errno(done));
    // SAFETY: A number, whichever of its names is used.
    probe.put("status", unsafe { status.__bindgen_anon_1.status });
    put_irr(machine, probe)?;
    Ok(false)
}
