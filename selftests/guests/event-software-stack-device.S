// SPDX-License-Identifier: GPL-2.0-only
//
// INT n and its stack on a device: the VMM hears of a delivery that cannot be made.
// mode: long64
#include "long64.inc"
    interrupts
    say deliver
    mov $MMIO + 0x800, %esp
    int $0x60
    report $1
    done
interrupt_code
