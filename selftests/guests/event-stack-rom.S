// SPDX-License-Identifier: GPL-2.0-only
//
// An exception whose stack is in a read-only slot: the VMM hears of a delivery that cannot be made.
// mode: long64
// rom: yes
#include "long64.inc"
    interrupts
    say deliver
    mov $ROM + 0x800, %esp
    ud2
    report $1
    done
interrupt_code
