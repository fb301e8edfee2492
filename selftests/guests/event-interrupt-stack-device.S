// SPDX-License-Identifier: GPL-2.0-only
//
// An external interrupt whose stack is a device: the VMM hears of a delivery that cannot be made.
// mode: long64
// bug: kvm-interrupt-delivery
#include "long64.inc"
    interrupts
    say deliver
    mov $MMIO + 0x800, %esp
    sti
    ask INTERRUPT, 0x61
    nop
    nop
    report $1
    done
interrupt_code
