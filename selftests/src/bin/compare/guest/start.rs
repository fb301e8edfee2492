// SPDX-License-Identifier: GPL-2.0-only

//! The state of a vCPU in which everything begins.

use kvm_bindings::*;
use selftests::kvm::{number, Xsave};

use super::{
    Machine, CODE, CODE_32, CODE_64, DATA, DEVICE, GDT, IDT, STACK, TABLES, TASK, TSS, USER_32,
    USER_64, USER_DATA,
};
use crate::cases::Mode;

impl Machine {
    /// The state in which everything begins.
    pub(crate) fn reset(&self, mode: Mode, user: bool) -> Result<(), String> {
        let vcpu = &self.vcpu.handle;
        vcpu.set(number::SET_GUEST_DEBUG, &kvm_guest_debug::default())?;
        let runnable = kvm_mp_state {
            mp_state: KVM_MP_STATE_RUNNABLE,
        };
        vcpu.set(number::SET_MP_STATE, &runnable)?;
        vcpu.set(number::SET_VCPU_EVENTS, &all_events())?;
        vcpu.set(number::SET_DEBUGREGS, &quiet_debug())?;
        vcpu.set(number::SET_SREGS, &self.sregs(mode, user)?)?;
        vcpu.set(number::SET_REGS, &regs(mode))?;
        let mut xsave = Xsave::default();
        // FCW, MXCSR, and that x87, SSE and AVX are there.
        xsave.0[0] = 0x37f;
        xsave.0[6] = 0x1f80;
        for (at, word) in xsave.0[40..104].iter_mut().enumerate() {
            *word = 0x0101_0101 * at as u32;
        }
        xsave.0[128] = 7;
        vcpu.set(number::SET_XSAVE, &xsave)?;
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        xcrs.xcrs[0].value = 7;
        vcpu.set(number::SET_XCRS, &xcrs)?;
        self.vcpu.share(|shared| {
            shared.request_interrupt_window = 0;
            shared.immediate_exit = 0;
            shared.cr8 = 0;
        });
        Ok(())
    }

    /// Segments and tables of a mode.
    pub(crate) fn sregs(&self, mode: Mode, user: bool) -> Result<kvm_sregs, String> {
        let mut sregs: kvm_sregs = self.vcpu.handle.get(number::GET_SREGS)?;
        let user = user || mode == Mode::Virtual8086;
        let flat = !mode.is_16_bit();
        let rpl = if user { 3 } else { 0 };
        let data = |paragraph: u16| match flat {
            true => {
                let selector = if user { USER_DATA } else { DATA };
                segment(0, selector | rpl, 3, mode, user)
            }
            false => segment(u64::from(paragraph) << 4, paragraph, 3, mode, user),
        };
        sregs.ds = data(0xd000);
        (sregs.es, sregs.fs, sregs.gs) = (sregs.ds, sregs.ds, sregs.ds);
        sregs.ss = data(0x700);
        let code = match (mode, user) {
            (Mode::Long, false) => CODE_64,
            (Mode::Long, true) => USER_64,
            (_, false) => CODE_32,
            (_, true) => USER_32,
        };
        let kind = if mode == Mode::Virtual8086 { 3 } else { 0xb };
        sregs.cs = match flat {
            true => segment(0, code | rpl, kind, mode, user),
            false => segment(CODE, (CODE >> 4) as u16, kind, mode, user),
        };
        sregs.gdt = table(GDT as u64, 0x4f);
        sregs.idt = match mode {
            Mode::Real => table(0, 0x3ff),
            _ => table(IDT as u64, 0xfff),
        };
        sregs.tr = kvm_segment {
            base: TSS,
            limit: 0x67,
            selector: TASK,
            // QEMU gives up on a busy one where an exception changes the stack by it.
            type_: if mode == Mode::Long { 0xb } else { 9 },
            present: 1,
            ..Default::default()
        };
        sregs.ldt = kvm_segment {
            type_: 2,
            limit: 0xffff,
            present: 1,
            ..Default::default()
        };
        sregs.interrupt_bitmap = [0; 4];
        sregs.apic_base = 0xfee0_0900;
        (sregs.cr2, sregs.cr8) = (0, 0);
        sregs.cr4 = 0x600;
        (sregs.cr0, sregs.efer, sregs.cr3) = match mode {
            Mode::Real => (0x30, 0, 0),
            Mode::Long => {
                sregs.cr4 |= 0x4_0020;
                (0x8000_0031, 0x500, TABLES as u64)
            }
            _ => (0x31, 0, 0),
        };
        Ok(sregs)
    }
}

/// The first registers.
pub(crate) fn regs(mode: Mode) -> kvm_regs {
    let flat = !mode.is_16_bit();
    let device = if flat { DEVICE } else { 0 };
    kvm_regs {
        rax: 0x0123_4567_89ab_cd05,
        rbx: device + 0x300,
        rcx: 3,
        rdx: 0x80,
        rdi: device + 0x100,
        rsi: device + 0x200,
        rbp: device + 0x700,
        rsp: if flat { STACK + 0x800 } else { 0x800 },
        rip: if flat { CODE } else { 0 },
        rflags: if mode == Mode::Virtual8086 {
            0x2_3002
        } else {
            2
        },
        r8: 0x8888_8888_8888_8888,
        ..Default::default()
    }
}

fn table(base: u64, limit: u16) -> kvm_dtable {
    kvm_dtable {
        base,
        limit,
        ..Default::default()
    }
}

/// Nothing pending, and all of it valid.
pub(crate) fn all_events() -> kvm_vcpu_events {
    kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    }
}

/// No breakpoints: one that the delivery of an event meets ends QEMU.
fn quiet_debug() -> kvm_debugregs {
    kvm_debugregs {
        dr6: 0xffff_0ff0,
        dr7: 0x400,
        ..Default::default()
    }
}

fn segment(base: u64, selector: u16, kind: u8, mode: Mode, user: bool) -> kvm_segment {
    let wide = !mode.is_16_bit();
    let code = kind == 0xb;
    kvm_segment {
        base,
        limit: if wide { 0xffff_ffff } else { 0xffff },
        selector,
        type_: kind,
        s: 1,
        dpl: if user { 3 } else { 0 },
        present: 1,
        l: u8::from(mode == Mode::Long && code),
        db: u8::from(wide && !(mode == Mode::Long && code)),
        g: u8::from(wide),
        ..Default::default()
    }
}
