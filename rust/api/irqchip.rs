// SPDX-License-Identifier: GPL-2.0-only

//! Ioctls of a VM that concern its interrupt controllers.

use crate::irq::irqchip::Irqchip;
use crate::linux;
use crate::uapi::{self, UserArg};
use irqchip::lines::{Delivery, Source};
use irqchip::message::Message;
use irqchip::pic::Which;
use irqchip::routing::{self, Limits, Route, MAX_GSIS, MSI_FLAGS};
use irqchip::{ioapic, pic, pit, Pit};
use kernel::ffi::c_long;
use kernel::prelude::*;

/// Dispatches on the number.
pub(crate) fn ioctl(irqchip: &Irqchip, cmd: u32, arg: UserArg) -> Result<c_long> {
    match cmd {
        uapi::KVM_CREATE_PIT2 => create_pit(irqchip, arg),
        uapi::KVM_GET_IRQCHIP
        | uapi::KVM_SET_IRQCHIP
        | uapi::KVM_GET_PIT2
        | uapi::KVM_SET_PIT2
        | uapi::KVM_REINJECT_CONTROL
            if !irqchip.is_full() =>
        {
            Err(ENXIO)
        }
        _ if !irqchip.has_lapics() => match cmd {
            uapi::KVM_IRQ_LINE | uapi::KVM_IRQ_LINE_STATUS => Err(ENXIO),
            uapi::KVM_SET_GSI_ROUTING | uapi::KVM_SIGNAL_MSI => Err(EINVAL),
            _ => Err(ENOTTY),
        },
        uapi::KVM_IRQ_LINE => irq_line(irqchip, arg, false),
        uapi::KVM_IRQ_LINE_STATUS => irq_line(irqchip, arg, true),
        uapi::KVM_GET_IRQCHIP => get_irqchip(irqchip, arg),
        uapi::KVM_SET_IRQCHIP => set_irqchip(irqchip, arg),
        uapi::KVM_GET_PIT2 => get_pit(irqchip, arg),
        uapi::KVM_SET_PIT2 => set_pit(irqchip, arg),
        uapi::KVM_REINJECT_CONTROL => reinject_control(irqchip, arg),
        uapi::KVM_SET_GSI_ROUTING => set_routing(irqchip, arg),
        uapi::KVM_SIGNAL_MSI => signal_msi(irqchip, arg),
        _ => Err(ENOTTY),
    }
}

fn create_pit(irqchip: &Irqchip, arg: UserArg) -> Result<c_long> {
    let config: uapi::kvm_pit_config = arg.read()?;
    if config.flags & !uapi::KVM_PIT_SPEAKER_DUMMY != 0 {
        return Err(EINVAL);
    }
    irqchip.create_pit(config.flags & uapi::KVM_PIT_SPEAKER_DUMMY != 0)
}

fn irq_line(irqchip: &Irqchip, arg: UserArg, with_status: bool) -> Result<c_long> {
    let mut line: uapi::kvm_irq_level = arg.read()?;
    // SAFETY: All variants of the union are the same integer.
    let gsi = unsafe { line.__bindgen_anon_1.irq };
    let delivery = match with_status {
        true => irqchip.set_gsi_counted(gsi, line.level != 0),
        false => irqchip.set_gsi(gsi, Source::USER, line.level != 0),
    };
    irqchip.broadcasts.finish();
    if with_status {
        line.__bindgen_anon_1.status = match delivery {
            Some(Delivery::Delivered) => 1,
            Some(Delivery::Coalesced) => 0,
            Some(Delivery::Ignored) | None => -1,
        };
        arg.write(&line)?;
    }
    Ok(0)
}

fn get_irqchip(irqchip: &Irqchip, arg: UserArg) -> Result<c_long> {
    let mut chip: uapi::kvm_irqchip = arg.read()?;
    let mut bytes = [0u8; 512];
    {
        let devices = irqchip.devices();
        match chip.chip_id {
            uapi::KVM_IRQCHIP_PIC_MASTER => {
                devices
                    .pic
                    .state(Which::Master, head::<{ pic::STATE_SIZE }>(&mut bytes)?);
            }
            uapi::KVM_IRQCHIP_PIC_SLAVE => {
                devices
                    .pic
                    .state(Which::Slave, head::<{ pic::STATE_SIZE }>(&mut bytes)?);
            }
            uapi::KVM_IRQCHIP_IOAPIC => {
                devices
                    .ioapic
                    .state(head::<{ ioapic::STATE_SIZE }>(&mut bytes)?);
            }
            _ => return Err(EINVAL),
        }
    }
    for (to, from) in irqchip_bytes(&mut chip).iter_mut().zip(bytes) {
        *to = from;
    }
    arg.write(&chip)?;
    Ok(0)
}

fn set_irqchip(irqchip: &Irqchip, arg: UserArg) -> Result<c_long> {
    let mut chip: uapi::kvm_irqchip = arg.read()?;
    let id = chip.chip_id;
    let bytes = *irqchip_bytes(&mut chip);
    let mut devices = irqchip.devices();
    match id {
        uapi::KVM_IRQCHIP_PIC_MASTER | uapi::KVM_IRQCHIP_PIC_SLAVE => {
            let which = match id {
                uapi::KVM_IRQCHIP_PIC_MASTER => Which::Master,
                _ => Which::Slave,
            };
            let state = bytes.first_chunk::<{ pic::STATE_SIZE }>().ok_or(EINVAL)?;
            devices.pic.set_state(which, state);
            irqchip.pic_changed(&mut devices.kicks);
        }
        uapi::KVM_IRQCHIP_IOAPIC => {
            let state = bytes
                .first_chunk::<{ ioapic::STATE_SIZE }>()
                .ok_or(EINVAL)?;
            let (ioapic, mut send) = irqchip.ioapic(&mut devices);
            ioapic.set_state(state, &mut send);
        }
        _ => return Err(EINVAL),
    }
    Ok(0)
}

/// The union of `struct kvm_irqchip`, as bytes.
fn irqchip_bytes(chip: &mut uapi::kvm_irqchip) -> &mut [u8; 512] {
    // SAFETY: The union is 512 bytes long, and all of its variants are made of integers.
    unsafe { &mut *core::ptr::addr_of_mut!(chip.chip).cast::<[u8; 512]>() }
}

fn head<const N: usize>(bytes: &mut [u8]) -> Result<&mut [u8; N]> {
    bytes.first_chunk_mut::<N>().ok_or(EINVAL)
}

fn get_pit(irqchip: &Irqchip, arg: UserArg) -> Result<c_long> {
    let mut bytes = [0u8; pit::STATE_SIZE];
    irqchip
        .devices()
        .pit
        .as_ref()
        .ok_or(ENXIO)?
        .state(&mut bytes);
    arg.write_bytes(&bytes)?;
    // The structure's reserved end.
    let rest = core::mem::size_of::<uapi::kvm_pit_state2>() - bytes.len();
    arg.offset(bytes.len()).write_bytes(&[0u8; 64][..rest])?;
    Ok(0)
}

fn set_pit(irqchip: &Irqchip, arg: UserArg) -> Result<c_long> {
    let state: uapi::kvm_pit_state2 = arg.read()?;
    // SAFETY: The structure consists of integers, and is at least as long.
    let bytes = unsafe { &*core::ptr::from_ref(&state).cast::<[u8; pit::STATE_SIZE]>() };
    let mut devices = irqchip.devices();
    let pit: &mut Pit = devices.pit.as_mut().ok_or(ENXIO)?;
    pit.set_state(bytes, linux::now());
    irqchip.restart_pit(&devices);
    Ok(0)
}

const _: () = assert!(core::mem::size_of::<uapi::kvm_pit_state2>() >= pit::STATE_SIZE);
const _: () = assert!(core::mem::size_of::<uapi::kvm_pit_state2>() <= pit::STATE_SIZE + 64);

fn set_routing(irqchip: &Irqchip, arg: UserArg) -> Result<c_long> {
    let header: uapi::kvm_irq_routing = arg.read()?;
    if header.nr > MAX_GSIS || header.flags != 0 {
        return Err(EINVAL);
    }
    let entries = arg
        .after::<uapi::kvm_irq_routing>()
        .read_array::<uapi::kvm_irq_routing_entry>(header.nr as usize)?;
    let limits = Limits {
        pins: irqchip.is_full(),
        extended_ids: irqchip.has_wide_ids(),
    };
    let mut routes = KVec::with_capacity(entries.len(), GFP_KERNEL_ACCOUNT)?;
    for entry in entries.iter() {
        // SAFETY: The union begins with up to eight words of integers in every variant.
        let words = unsafe { entry.u.pad };
        let [a, b, c, d, ..] = words;
        let route = Route::from_entry(entry.gsi, entry.type_, entry.flags, [a, b, c, d], limits)
            .map_err(|_| EINVAL)?;
        routes.push(route, GFP_KERNEL_ACCOUNT)?;
    }
    routing::sort_and_check(&mut routes).map_err(|_| EINVAL)?;
    // The old table is freed after the lock.
    let old = core::mem::replace(&mut irqchip.devices().routes, routes);
    drop(old);
    // Nothing goes by the old routes any more.
    irqchip.broadcasts.finish();
    Ok(0)
}

fn signal_msi(irqchip: &Irqchip, arg: UserArg) -> Result<c_long> {
    let msi: uapi::kvm_msi = arg.read()?;
    if msi.flags & !MSI_FLAGS != 0 {
        return Err(EINVAL);
    }
    let address = u64::from(msi.address_hi) << 32 | u64::from(msi.address_lo);
    let wide_ids = irqchip.has_wide_ids();
    if wide_ids && !Message::extended_address_is_legal(address) {
        return Err(EINVAL);
    }
    let message = Message::from_msi(address, msi.data, wide_ids);
    Ok(c_long::from(irqchip.send(message)))
}

/// KVM_REINJECT_CONTROL: whether ticks of the PIT wait for each other.
fn reinject_control(irqchip: &Irqchip, arg: UserArg) -> Result<c_long> {
    let control: uapi::kvm_reinject_control = arg.read()?;
    let mut devices = irqchip.devices();
    let pit: &mut Pit = devices.pit.as_mut().ok_or(ENXIO)?;
    pit.ticks.set_reinject(control.pit_reinject != 0);
    Ok(0)
}

/// Flags of KVM_CAP_X2APIC_API that there are.
pub(crate) const X2APIC_API: u32 =
    uapi::KVM_X2APIC_API_USE_32BIT_IDS | uapi::KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;

/// KVM_ENABLE_CAP, as far as it concerns interrupts. `vcpus`: how many there are already.
pub(crate) fn enable(
    irqchip: &Irqchip,
    cap: &uapi::kvm_enable_cap,
    vcpus: usize,
) -> Result<c_long> {
    let [value, ..] = cap.args;
    match cap.cap {
        uapi::KVM_CAP_SPLIT_IRQCHIP if value > u64::from(MAX_GSIS) => Err(EINVAL),
        uapi::KVM_CAP_SPLIT_IRQCHIP if vcpus != 0 => Err(EEXIST),
        uapi::KVM_CAP_SPLIT_IRQCHIP => irqchip.create_split(value as u32),
        uapi::KVM_CAP_X2APIC_API if value & !u64::from(X2APIC_API) == 0 => {
            irqchip.enable_x2apic_api(value as u32);
            Ok(0)
        }
        uapi::KVM_CAP_X86_APIC_BUS_CYCLES_NS => {
            // A count of 2^32 by 128 is a time of less than 2^63 ns.
            let ns = u32::try_from(value)
                .ok()
                .filter(|ns| (1..=1 << 24).contains(ns));
            let ns = ns.ok_or(EINVAL)?;
            if !irqchip.has_lapics() {
                return Err(ENXIO);
            }
            if vcpus != 0 {
                return Err(EINVAL);
            }
            irqchip.set_bus_cycle_ns(ns);
            Ok(0)
        }
        _ => Err(EINVAL),
    }
}
