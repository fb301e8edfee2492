// SPDX-License-Identifier: GPL-2.0-only

//! The virtual machine control block: layout only (APM vol. 2, appendix B).
//!
//! Every bit pattern is a valid value of every field. The fields are private: `vmcb/access.rs` has
//! the accessors, whose setters keep the clean bits true, and `vmcb/reset.rs` the state after
//! RESET.

mod access;
mod reset;
mod segment;

pub use access::{TlbControl, VirtualInterrupt};
pub use reset::{DR6_RESET, DR7_RESET, PAT_RESET};

use crate::intercept::Intercepts;
use core::mem::{align_of, size_of};
use memoffset::offset_of;
use x86::regs::Segment;

/// The VMCB: one page, at an address that VMRUN gets in RAX.
#[derive(Debug, Clone)]
#[repr(C, align(4096))]
pub struct Vmcb {
    /// 000: what to intercept, what to inject, and why the guest exited.
    control: Control,
    _110: [u8; 0x2f0],
    /// 400: the guest's registers.
    save: Save,
    _6e8: [u8; 0x918],
}

/// The control area (APM vol. 2, table B-1).
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Control {
    /// 000: the six intercept words.
    intercepts: Intercepts,
    _018: [u8; 0x24],
    /// 03C: PAUSE filter threshold.
    pause_filter_threshold: u16,
    /// 03E: PAUSE filter count.
    pause_filter_count: u16,
    /// 040: physical address of the I/O permission map.
    iopm_base: u64,
    /// 048: physical address of the MSR permission map.
    msrpm_base: u64,
    /// 050: added to the TSC in the guest.
    tsc_offset: u64,
    /// 058: address space of the guest in the TLB.
    asid: u32,
    /// 05C: what VMRUN flushes.
    tlb_control: u8,
    /// 05D: enhanced return address predictor control.
    erap_control: u8,
    _05e: [u8; 2],
    /// 060: V_TPR, V_IRQ, VGIF, priorities and masking.
    int_control: u32,
    /// 064: V_INTR_VECTOR.
    int_vector: u32,
    /// 068: interrupt shadow, guest interrupt mask.
    int_state: u64,
    /// 070: why the guest exited.
    exit_code: u64,
    /// 078: EXITINFO1.
    exit_info1: u64,
    /// 080: EXITINFO2.
    exit_info2: u64,
    /// 088: the event whose delivery was cut short; its error code is the upper half.
    exit_int_info: u64,
    /// 090: nested paging, SEV.
    np_control: u64,
    /// 098: AVIC APIC_BAR.
    avic_bar: u64,
    /// 0A0: GHCB address.
    ghcb: u64,
    /// 0A8: the event to inject; its error code is the upper half.
    event_inj: u64,
    /// 0B0: root of the nested page table.
    ncr3: u64,
    /// 0B8: LBR and VMLOAD virtualization.
    virt_ext: u64,
    /// 0C0: clean bits.
    clean: u32,
    _0c4: u32,
    /// 0C8: address of the next instruction.
    next_rip: u64,
    /// 0D0: how many instruction bytes follow.
    insn_len: u8,
    /// 0D1: instruction bytes.
    insn_bytes: [u8; 15],
    /// 0E0: AVIC backing page.
    avic_backing_page: u64,
    _0e8: u64,
    /// 0F0: AVIC logical table.
    avic_logical_table: u64,
    /// 0F8: AVIC physical table.
    avic_physical_table: u64,
    _100: u64,
    /// 108: VMSA address.
    vmsa: u64,
}

/// The state save area of a guest without encrypted state (APM vol. 2, table B-2). Offsets count
/// from the start of the VMCB.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Save {
    /// 400
    es: Segment,
    /// 410
    cs: Segment,
    /// 420
    ss: Segment,
    /// 430
    ds: Segment,
    /// 440
    fs: Segment,
    /// 450
    gs: Segment,
    /// 460
    gdtr: Segment,
    /// 470
    ldtr: Segment,
    /// 480
    idtr: Segment,
    /// 490
    tr: Segment,
    _4a0: [u8; 0x2a],
    /// 4CA: virtual machine privilege level.
    vmpl: u8,
    /// 4CB
    cpl: u8,
    _4cc: [u8; 4],
    /// 4D0
    efer: u64,
    _4d8: [u8; 0x70],
    /// 548
    cr4: u64,
    /// 550
    cr3: u64,
    /// 558
    cr0: u64,
    /// 560
    dr7: u64,
    /// 568
    dr6: u64,
    /// 570
    rflags: u64,
    /// 578
    rip: u64,
    _580: [u8; 0x58],
    /// 5D8
    rsp: u64,
    /// 5E0
    s_cet: u64,
    /// 5E8
    ssp: u64,
    /// 5F0
    isst_addr: u64,
    /// 5F8
    rax: u64,
    /// 600
    star: u64,
    /// 608
    lstar: u64,
    /// 610
    cstar: u64,
    /// 618
    sfmask: u64,
    /// 620
    kernel_gs_base: u64,
    /// 628
    sysenter_cs: u64,
    /// 630
    sysenter_esp: u64,
    /// 638
    sysenter_eip: u64,
    /// 640
    cr2: u64,
    _648: [u8; 0x20],
    /// 668
    g_pat: u64,
    /// 670
    dbgctl: u64,
    /// 678
    br_from: u64,
    /// 680
    br_to: u64,
    /// 688
    last_excp_from: u64,
    /// 690
    last_excp_to: u64,
    _698: [u8; 0x48],
    /// 6E0
    spec_ctrl: u64,
}

/// Asserts the offset of a field, counted from the start of the VMCB as the manual does.
macro_rules! at {
    ($base:expr, $area:ident: $($offset:literal $field:ident)*) => {
        $(const _: () = assert!($base + offset_of!($area, $field) == $offset);)*
    };
}

at! { 0, Vmcb: 0x000 control 0x400 save }
at! { 0x000, Control:
    0x000 intercepts 0x03c pause_filter_threshold 0x03e pause_filter_count 0x040 iopm_base
    0x048 msrpm_base 0x050 tsc_offset 0x058 asid 0x05c tlb_control 0x05d erap_control
    0x060 int_control 0x064 int_vector 0x068 int_state 0x070 exit_code 0x078 exit_info1
    0x080 exit_info2 0x088 exit_int_info 0x090 np_control 0x098 avic_bar 0x0a0 ghcb
    0x0a8 event_inj 0x0b0 ncr3 0x0b8 virt_ext 0x0c0 clean 0x0c8 next_rip 0x0d0 insn_len
    0x0d1 insn_bytes 0x0e0 avic_backing_page 0x0f0 avic_logical_table 0x0f8 avic_physical_table
    0x108 vmsa
}
at! { 0x400, Save:
    0x400 es 0x410 cs 0x420 ss 0x430 ds 0x440 fs 0x450 gs 0x460 gdtr 0x470 ldtr 0x480 idtr 0x490 tr
    0x4ca vmpl 0x4cb cpl 0x4d0 efer 0x548 cr4 0x550 cr3 0x558 cr0 0x560 dr7 0x568 dr6 0x570 rflags
    0x578 rip 0x5d8 rsp 0x5e0 s_cet 0x5e8 ssp 0x5f0 isst_addr 0x5f8 rax 0x600 star 0x608 lstar
    0x610 cstar 0x618 sfmask 0x620 kernel_gs_base 0x628 sysenter_cs 0x630 sysenter_esp
    0x638 sysenter_eip 0x640 cr2 0x668 g_pat 0x670 dbgctl 0x678 br_from 0x680 br_to
    0x688 last_excp_from 0x690 last_excp_to 0x6e0 spec_ctrl
}
const _: () = assert!(size_of::<Control>() == 0x110);
const _: () = assert!(size_of::<Save>() == 0x2e8);
const _: () = assert!(size_of::<Vmcb>() == 0x1000);
const _: () = assert!(align_of::<Vmcb>() == 0x1000);
const _: () = assert!(size_of::<Segment>() == 16);
