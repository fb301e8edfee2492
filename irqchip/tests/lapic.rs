// SPDX-License-Identifier: GPL-2.0-only

//! The local APIC's registers, modes and messages, one rule of the manual at a time.

use irqchip::bits::Vectors;
use irqchip::lapic::{BaseLimits, BaseWriter, Effect, Eoi, LocalEvent, LocalSource, STATE_SIZE};
use irqchip::{DeliveryMode, Lapic, Now, Shorthand, Snapshot};

const T0: Now = Now { ns: 0, tsc: 0 };

const ID: u32 = 0x20;
const VERSION: u32 = 0x30;
const TPR: u32 = 0x80;
const PPR: u32 = 0xa0;
const EOI: u32 = 0xb0;
const LDR: u32 = 0xd0;
const DFR: u32 = 0xe0;
const SVR: u32 = 0xf0;
const ISR: u32 = 0x100;
const TMR: u32 = 0x180;
const IRR: u32 = 0x200;
const ESR: u32 = 0x280;
const ICR: u32 = 0x300;
const ICR2: u32 = 0x310;
const LVT_TIMER: u32 = 0x320;
const LVT_PERFORMANCE: u32 = 0x340;
const LINT0: u32 = 0x350;
const LINT1: u32 = 0x360;
const LVT_ERROR: u32 = 0x370;
const MASKED: u32 = 1 << 16;

const AE: u64 = 1 << 11;
const EXTD: u64 = 1 << 10;
const BSC: u64 = 1 << 8;
const BASE: u64 = 0xfee0_0000;
const LIMITS: BaseLimits = BaseLimits {
    physical_bits: 48,
    x2apic: true,
};

fn read(lapic: &mut Lapic, offset: u32) -> u32 {
    let mut bytes = [0; 4];
    lapic.mmio_read(offset, &mut bytes, T0);
    u32::from_le_bytes(bytes)
}

fn write(lapic: &mut Lapic, offset: u32, value: u32) -> Effect {
    lapic.mmio_write(offset, &value.to_le_bytes(), T0)
}

fn enabled(id: u32) -> Lapic {
    let mut lapic = Lapic::new(id, id == 0);
    assert_eq!(write(&mut lapic, SVR, 0x1ff), Effect::Routing);
    lapic
}

fn x2apic(id: u32) -> Lapic {
    let mut lapic = enabled(id);
    let base = lapic.base() | EXTD;
    let effect = lapic.set_base(base, BaseWriter::Guest, LIMITS);
    assert_eq!(effect, Ok(Effect::Routing));
    lapic
}

#[test]
fn power_up_state() {
    let mut lapic = Lapic::new(3, false);
    assert_eq!(lapic.base(), BASE | AE);
    assert_eq!(Lapic::new(0, true).base(), BASE | AE | BSC);
    assert_eq!(read(&mut lapic, ID), 3 << 24);
    assert_eq!(read(&mut lapic, VERSION), 0x0005_0014);
    assert_eq!(read(&mut lapic, DFR), u32::MAX);
    assert_eq!(read(&mut lapic, SVR), 0xff);
    for lvt in (LVT_TIMER..=LVT_ERROR).step_by(16) {
        assert_eq!(read(&mut lapic, lvt), MASKED);
    }
    for register in [TPR, PPR, LDR, ESR, ICR, ICR2, 0x380, 0x390, 0x3e0] {
        assert_eq!(read(&mut lapic, register), 0);
    }
    assert_eq!(lapic.pending_vector(), None);
    assert_eq!(lapic.timer_deadline(), None);
}

#[test]
fn request_service_end() {
    let mut lapic = enabled(0);
    assert!(lapic.accept(0x51, true));
    assert_eq!(read(&mut lapic, IRR + 0x20), 1 << 0x11);
    assert_eq!(read(&mut lapic, TMR + 0x20), 1 << 0x11);
    assert_eq!(lapic.pending_vector(), Some(0x51));
    assert_eq!(lapic.acknowledge(), Some(0x51));
    assert_eq!(read(&mut lapic, ISR + 0x20), 1 << 0x11);
    assert_eq!(read(&mut lapic, PPR), 0x50);

    // The same class waits, a higher one does not.
    lapic.accept(0x5f, false);
    assert_eq!(lapic.acknowledge(), None);
    lapic.accept(0x60, false);
    assert_eq!(lapic.acknowledge(), Some(0x60));
    let ended = |vector, level| Effect::Eoi(Eoi { vector, level });
    assert_eq!(write(&mut lapic, EOI, 0), ended(0x60, false));
    assert_eq!(lapic.pending_vector(), None);
    assert_eq!(write(&mut lapic, EOI, 0), ended(0x51, true));
    assert_eq!(lapic.acknowledge(), Some(0x5f));
    assert_eq!(write(&mut lapic, EOI, 0), ended(0x5f, false));
    assert_eq!(write(&mut lapic, EOI, 0), Effect::None);
}

#[test]
fn a_vector_can_be_requested_while_in_service() {
    let mut lapic = enabled(0);
    lapic.accept(0x40, false);
    lapic.acknowledge();
    lapic.accept(0x40, false);
    assert_eq!(lapic.pending_vector(), None);
    lapic.end_of_interrupt();
    assert_eq!(lapic.pending_vector(), Some(0x40));
}

#[test]
fn task_priority_and_cr8() {
    let mut lapic = enabled(0);
    lapic.accept(0x45, false);
    lapic.set_cr8(4);
    assert_eq!((lapic.tpr(), lapic.cr8(), lapic.ppr()), (0x40, 4, 0x40));
    assert_eq!(lapic.pending_vector(), None);
    let _ = write(&mut lapic, TPR, 0x3f);
    assert_eq!(lapic.cr8(), 3);
    assert_eq!(lapic.pending_vector(), Some(0x45));
    lapic.acknowledge();
    assert_eq!(lapic.ppr(), 0x40);
    // Within the class of the interrupt in service the TPR shows all its bits.
    lapic.set_tpr(0x4a);
    assert_eq!(lapic.ppr(), 0x4a);
}

#[test]
fn merge_takes_what_the_inbox_collected() {
    let mut lapic = enabled(0);
    lapic.accept(0x30, true);
    let mut requests = Vectors::EMPTY;
    let mut levels = Vectors::EMPTY;
    for vector in [0x30, 0x31, 0xff, 0x0f] {
        requests.insert(vector);
    }
    levels.insert(0x31);
    levels.insert(0x32);
    lapic.merge(&requests, &levels);
    assert_eq!(read(&mut lapic, IRR), 0);
    assert_eq!(read(&mut lapic, IRR + 0x10), 3 << 16);
    assert_eq!(read(&mut lapic, TMR + 0x10), 1 << 17);
    assert_eq!(lapic.acknowledge(), Some(0xff));
    let _ = write(&mut lapic, ESR, 0);
    assert_eq!(read(&mut lapic, ESR), 1 << 6);

    let mut off = Lapic::new(0, true);
    off.merge(&requests, &levels);
    assert!(off.requests().is_empty());
}

#[test]
fn disabled_by_software() {
    let mut lapic = enabled(0);
    let _ = write(&mut lapic, LVT_PERFORMANCE, 0x44);
    lapic.accept(0x40, false);
    assert_eq!(write(&mut lapic, SVR, 0xff), Effect::Routing);
    // Nothing new is accepted, what is requested already stays (APM vol. 2, 16.4.7).
    assert!(!lapic.accept(0x41, false));
    assert_eq!(lapic.pending_vector(), Some(0x40));
    assert_eq!(read(&mut lapic, LVT_PERFORMANCE), MASKED | 0x44);
    let _ = write(&mut lapic, LVT_PERFORMANCE, 0x44);
    assert_eq!(read(&mut lapic, LVT_PERFORMANCE), MASKED | 0x44);
    assert_eq!(lapic.snapshot(), Snapshot::xapic(0, 0, u32::MAX, false));
}

#[test]
fn local_vector_table() {
    let mut lapic = enabled(0);
    assert_eq!(lapic.raise(LocalSource::Lint1), LocalEvent::None);
    let _ = write(&mut lapic, LINT1, 0x400);
    assert_eq!(lapic.raise(LocalSource::Lint1), LocalEvent::Nmi);
    let _ = write(&mut lapic, LVT_PERFORMANCE, 0x400);
    assert_eq!(lapic.raise(LocalSource::Performance), LocalEvent::Nmi);
    let _ = write(&mut lapic, LVT_PERFORMANCE, 0x55);
    assert_eq!(lapic.raise(LocalSource::Performance), LocalEvent::Requested);
    assert_eq!(lapic.pending_vector(), Some(0x55));

    assert!(lapic.accepts_pic_interrupt());
    assert_eq!(write(&mut lapic, LINT0, MASKED), Effect::Routing);
    assert!(!lapic.accepts_pic_interrupt());
    assert_eq!(write(&mut lapic, LINT0, 0x700), Effect::Routing);
    assert_eq!(write(&mut lapic, LINT0, 0x700), Effect::None);
    assert!(lapic.accepts_pic_interrupt());
    assert_eq!(lapic.raise(LocalSource::Lint0), LocalEvent::ExtInt);
    assert_eq!(write(&mut lapic, LINT0, 0x700 | MASKED), Effect::Routing);
    assert!(!lapic.accepts_pic_interrupt());

    // Reserved and read-only bits stay zero.
    let _ = write(&mut lapic, LINT0, u32::MAX);
    assert_eq!(read(&mut lapic, LINT0), 0x1_a7ff);
    let _ = write(&mut lapic, LVT_TIMER, u32::MAX);
    assert_eq!(read(&mut lapic, LVT_TIMER), 0x7_00ff);
}

#[test]
fn switched_off_the_pins_are_intr_and_nmi() {
    let mut lapic = enabled(0);
    lapic.accept(0x40, false);
    let effect = lapic.set_base(BASE, BaseWriter::Guest, LIMITS);
    assert_eq!(effect, Ok(Effect::Routing));
    assert_eq!(lapic.base(), BASE | BSC);
    assert_eq!(lapic.mmio_base(), None);
    assert_eq!(lapic.pending_vector(), None);
    assert_eq!(lapic.snapshot(), Snapshot::ABSENT.with_pic(true));
    assert!(lapic.accepts_pic_interrupt());
    assert_eq!(lapic.raise(LocalSource::Lint1), LocalEvent::Nmi);
    // Switched on again it is as new.
    let effect = lapic.set_base(BASE | AE, BaseWriter::Guest, LIMITS);
    assert_eq!(effect, Ok(Effect::Routing));
    assert_eq!(read(&mut lapic, SVR), 0xff);
    assert!(lapic.requests().is_empty());
}

#[test]
fn base_register_transitions() {
    use BaseWriter::{Guest, Vmm};
    let states = [0, AE, AE | EXTD];
    // Rows: from; columns: to (APM vol. 2, 16.9).
    let guest_may = [[true, true, false], [true, true, true], [true, false, true]];
    for (from, row) in states.iter().zip(guest_may) {
        for (to, legal) in states.iter().zip(row) {
            let mut lapic = Lapic::new(1, false);
            assert!(lapic.set_base(BASE | from, Vmm, LIMITS).is_ok());
            let mut by_vmm = lapic;
            assert_eq!(lapic.set_base(BASE | to, Guest, LIMITS).is_ok(), legal);
            assert_eq!(lapic.base(), BASE | if legal { to } else { from });
            assert!(by_vmm.set_base(BASE | to, Vmm, LIMITS).is_ok());
        }
    }
    let mut lapic = Lapic::new(0, true);
    for value in [
        BASE | EXTD,
        BASE | AE | 1,
        BASE | AE | 1 << 9,
        BASE | AE | 1 << 48,
    ] {
        assert!(lapic.set_base(value, Guest, LIMITS).is_err());
        assert!(lapic.set_base(value, Vmm, LIMITS).is_err());
    }
    let old = BaseLimits {
        x2apic: false,
        ..LIMITS
    };
    assert!(lapic.set_base(BASE | AE | EXTD, Guest, old).is_err());
    // Only the VMM decides which processor is the first.
    assert!(lapic.set_base(BASE | AE, Guest, LIMITS).is_ok());
    assert_eq!(lapic.base(), BASE | AE | BSC);
    assert!(lapic.set_base(BASE | AE, Vmm, LIMITS).is_ok());
    assert_eq!(lapic.base(), BASE | AE);
    // The page can move.
    assert!(lapic.set_base(0x1_0000_0000 | AE, Guest, LIMITS).is_ok());
    assert_eq!(lapic.mmio_base(), Some(0x1_0000_0000));
}

#[test]
fn init_keeps_the_mode_and_the_id() {
    let mut lapic = x2apic(0x123);
    lapic.accept(0x40, false);
    lapic.set_tpr(0x20);
    lapic.init();
    assert!(lapic.is_x2apic());
    assert_eq!(lapic.msr_read(0x802, T0), Ok(0x123));
    assert_eq!(lapic.msr_read(0x80d, T0), Ok(0x12_0008));
    assert_eq!(lapic.msr_read(0x80f, T0), Ok(0xff));
    assert_eq!(lapic.tpr(), 0);
    assert!(lapic.requests().is_empty());
}

#[test]
fn an_xapic_with_a_long_id_does_not_answer_to_a_short_one() {
    let lapic = enabled(0x103);
    assert_eq!(lapic.snapshot().id(), 0x103);
    assert!(!lapic.snapshot().is_x2apic());
}

#[test]
fn icr_of_an_xapic() {
    let mut lapic = enabled(0);
    assert_eq!(write(&mut lapic, ICR2, 0x0512_3456), Effect::None);
    assert_eq!(read(&mut lapic, ICR2), 0x0500_0000);
    let Effect::Ipi(ipi) = write(&mut lapic, ICR, 0x4000 | 0x1000 | 0x41) else {
        panic!("no IPI");
    };
    assert_eq!(
        (ipi.mode, ipi.vector, ipi.level),
        (DeliveryMode::Fixed, 0x41, false)
    );
    assert_eq!((ipi.dest.id, ipi.dest.logical), (5, false));
    // The delivery status does not stick.
    assert_eq!(read(&mut lapic, ICR), 0x4041);

    let Effect::Ipi(ipi) = write(&mut lapic, ICR, 0xc500) else {
        panic!("no INIT");
    };
    assert_eq!((ipi.mode, ipi.level), (DeliveryMode::Init, true));
    assert_eq!(
        write(&mut lapic, ICR, 0x8500),
        Effect::None,
        "INIT de-assert"
    );
    let Effect::Ipi(ipi) = write(&mut lapic, ICR, 0x0609) else {
        panic!("no start-up IPI");
    };
    assert_eq!((ipi.mode, ipi.vector), (DeliveryMode::StartUp, 9));
    let Effect::Ipi(ipi) = write(&mut lapic, ICR, 0xc_0c99) else {
        panic!("no IPI to the others");
    };
    assert_eq!(
        (ipi.dest.shorthand, ipi.dest.logical),
        (Shorthand::Others, true)
    );
    for mode in [0x300, 0x700] {
        assert_eq!(write(&mut lapic, ICR, mode | 0x41), Effect::None);
    }

    // To itself it needs nobody's help.
    assert_eq!(write(&mut lapic, ICR, 0x4_4077), Effect::None);
    assert_eq!(lapic.pending_vector(), Some(0x77));
}

#[test]
fn illegal_vectors_and_registers_are_errors() {
    let mut lapic = enabled(0);
    let _ = write(&mut lapic, LVT_ERROR, 0xfe);
    assert_eq!(write(&mut lapic, ICR, 0x400f), Effect::None);
    assert_eq!(read(&mut lapic, ESR), 0, "not before it is written");
    assert_eq!(lapic.acknowledge(), Some(0xfe));
    assert!(!lapic.accept(0x0f, false));
    assert_eq!(read(&mut lapic, 0x3f0), 0);
    assert_eq!(write(&mut lapic, ESR, 0), Effect::None);
    assert_eq!(read(&mut lapic, ESR), 0xe0);
    let _ = write(&mut lapic, ESR, 0);
    assert_eq!(read(&mut lapic, ESR), 0);
    // An error vector that is an error itself ends there.
    let _ = write(&mut lapic, LVT_ERROR, 3);
    assert!(!lapic.accept(2, false));
}

#[test]
fn mmio_of_every_shape() {
    let mut lapic = enabled(0x5a);
    let mut byte = [0];
    lapic.mmio_read(ID + 3, &mut byte, T0);
    assert_eq!(byte, [0x5a]);
    let mut long = [0xff; 8];
    lapic.mmio_read(ID, &mut long, T0);
    assert_eq!(long, [0, 0, 0, 0x5a, 0, 0, 0, 0]);
    let mut across = [0xff; 4];
    lapic.mmio_read(ID + 14, &mut across, T0);
    assert_eq!(across, [0, 0, 0x14, 0]);
    // Short and unaligned writes do nothing.
    for (offset, data) in [
        (TPR, &[0x10][..]),
        (TPR + 4, &[0x10; 4]),
        (TPR + 1, &[1; 4]),
    ] {
        assert_eq!(lapic.mmio_write(offset, data, T0), Effect::None);
    }
    assert_eq!(lapic.tpr(), 0);
    assert_eq!(
        lapic.mmio_write(TPR, &[0x10, 0, 0, 0, 9, 9, 9, 9], T0),
        Effect::None
    );
    assert_eq!(lapic.tpr(), 0x10);
}

#[test]
fn x2apic_registers() {
    let mut lapic = x2apic(0x35);
    assert_eq!(lapic.snapshot(), Snapshot::x2apic(0x35, true));
    assert_eq!(lapic.msr_read(0x802, T0), Ok(0x35));
    assert_eq!(lapic.msr_read(0x803, T0), Ok(0x0005_0014));
    assert_eq!(lapic.msr_read(0x80d, T0), Ok(3 << 16 | 1 << 5));
    // Not there: DFR, the upper ICR, the ID's write, EOI's and self IPI's read, the remote read.
    for index in [
        0x800, 0x80b, 0x80c, 0x80e, 0x831, 0x83f, 0x840, 0x8ff, 0x7ff, 0x900,
    ] {
        assert!(lapic.msr_read(index, T0).is_err(), "{index:x}");
    }
    for index in [
        0x802, 0x803, 0x80a, 0x80d, 0x80e, 0x810, 0x820, 0x831, 0x839, 0x8ff,
    ] {
        assert!(lapic.msr_write(index, 0, T0).is_err(), "{index:x}");
    }
    // Reserved bits.
    for (index, value) in [
        (0x808, 0x100),
        (0x80b, 1),
        (0x828, 1),
        (0x838, 1 << 32),
        (0x83f, 0x100),
        (0x830, 1 << 13),
        (0x830, 1 << 16),
        (0x830, 1 << 20),
    ] {
        assert!(lapic.msr_write(index, value, T0).is_err(), "{index:x}");
    }
    assert_eq!(lapic.msr_write(0x808, 0x20, T0), Ok(Effect::None));
    assert_eq!(lapic.cr8(), 2);
    assert_eq!(lapic.msr_write(0x83f, 0x66, T0), Ok(Effect::None));
    assert_eq!(lapic.acknowledge(), Some(0x66));
    let eoi = Eoi {
        vector: 0x66,
        level: false,
    };
    assert_eq!(lapic.msr_write(0x80b, 0, T0), Ok(Effect::Eoi(eoi)));

    let value = 0x1_0000 << 32 | 0x44;
    let Ok(Effect::Ipi(ipi)) = lapic.msr_write(0x830, value, T0) else {
        panic!("no IPI");
    };
    assert_eq!(ipi.dest.id, 0x1_0000);
    assert_eq!(lapic.msr_read(0x830, T0), Ok(value));
    // An xAPIC has no MSRs.
    assert!(enabled(0).msr_read(0x802, T0).is_err());
}

#[test]
fn identity_in_saved_state() {
    let id_word = |lapic: &Lapic, extended| {
        let mut page = [0; STATE_SIZE];
        lapic.state(&mut page, T0, extended);
        (
            u32::from_le_bytes(page[0x20..0x24].try_into().unwrap()),
            page,
        )
    };
    let mut lapic = x2apic(2);
    assert_eq!(id_word(&lapic, false).0, 2 << 24);
    assert_eq!(id_word(&lapic, true).0, 2);
    let mut page = id_word(&lapic, true).1;
    assert_eq!(lapic.set_state(&page, T0, true), Ok(()));
    page[0x20] = 3;
    assert!(lapic.set_state(&page, T0, true).is_err());
    assert_eq!(lapic.set_state(&page, T0, false), Ok(()));
    assert_eq!(id_word(&lapic, true).0, 2);

    let mut lapic = enabled(2);
    assert_eq!(write(&mut lapic, ID, 0x0700_0000), Effect::Routing);
    let page = id_word(&lapic, true).1;
    let mut other = Lapic::new(2, false);
    assert_eq!(other.set_state(&page, T0, true), Ok(()));
    assert_eq!(other.snapshot().id(), 7);
    assert!(other.is_enabled());
}

/// VMMs without firmware change the mode of what they read, and write it back (Firecracker,
/// kvmtool, crosvm).
#[test]
fn a_vmm_can_wire_lint0_before_the_guest_enables_the_apic() {
    const LVT0: usize = 0x350;
    const LVT1: usize = 0x360;
    for (is_bsp, wired) in [(true, true), (false, false)] {
        let mut lapic = Lapic::new(0, is_bsp);
        assert_eq!(lapic.accepts_pic_interrupt(), wired);
        let mut page = [0; STATE_SIZE];
        lapic.state(&mut page, T0, false);
        page[LVT0 + 1] |= 7;
        page[LVT1..LVT1 + 4].copy_from_slice(&0x400u32.to_le_bytes());
        assert_eq!(lapic.set_state(&page, T0, false), Ok(()));
        assert_eq!(lapic.accepts_pic_interrupt(), wired);
        assert_eq!(lapic.raise(LocalSource::Lint1), LocalEvent::Nmi);
        lapic.init();
        assert_eq!(lapic.accepts_pic_interrupt(), wired);
    }
}

/// Where the APIC is the VMM's, its base is kept all the same.
#[test]
fn the_base_without_an_apic() {
    const MOVED: u64 = 0xfee1_0900;
    let write = |value, writer| LIMITS.written(0xfee0_0900, value, writer);
    assert_eq!(write(MOVED, BaseWriter::Vmm), Ok(MOVED));
    assert_eq!(write(MOVED & !0x100, BaseWriter::Guest), Ok(MOVED));
    for reserved in [1, 1 << 9, 1 << 63] {
        assert!(write(MOVED | reserved, BaseWriter::Vmm).is_err());
        assert!(write(MOVED | reserved, BaseWriter::Guest).is_err());
    }
}
