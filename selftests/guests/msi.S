// SPDX-License-Identifier: GPL-2.0-only
//
// MSIs: from the VMM, and to the guest's own CPU by KVM_SIGNAL_MSI, with HLT as well.
// mode: long64
// irqchip: kernel
#include "long64.inc"
#include "lapic.inc"
    interrupts
    lapic_on
    sti
    ask MSI, 0x77
    nop
    cli
    ask MSI, 0x78
    ask MSI, 0x78               // the same twice is one
    sti
    hlt
    report $1
    done
interrupt_code
