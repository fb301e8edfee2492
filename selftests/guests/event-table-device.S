// SPDX-License-Identifier: GPL-2.0-only
//
// An interrupt table that is a device: the VMM hears of a delivery that cannot be made.
// mode: long64
#include "long64.inc"
    interrupts
    say deliver
    lidt pointer
    ud2
pointer:
    .word 0xfff
    .quad MMIO
    report $1
    done
interrupt_code
