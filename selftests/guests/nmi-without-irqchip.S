// SPDX-License-Identifier: GPL-2.0-only
//
// NMIs from the VMM without in-kernel interrupt controllers, and IRET by way of an interrupt.
// mode: long64
#include "long64.inc"
    interrupts
    ask NMI
    nop
    report $1
    ask NMI
    nop
    report $2
    sti
    ask INTERRUPT, 0x40
    ask NMI
    nop
    nop
    report $3
    done
interrupt_code
