// SPDX-License-Identifier: GPL-2.0-only
//
// The PIT's channel 0 through the PIC, and channel 2's output through port 0x61.
// mode: long64
// irqchip: kernel
// pit: yes
#include "long64.inc"
#include "lapic.inc"
    .macro byte port, value
    mov $\value, %al
    out %al, $\port
    .endm
    interrupts
    lapic_on
    movl $0x700, LVT_LINT0(%rbx)
    movq $0, eoi
    byte 0x20, 0x11
    byte 0x21, 0x20
    byte 0x21, 0x04
    byte 0x21, 0x01
    byte 0x21, 0xfe
    byte 0xa1, 0xff
    say rate
    byte 0x43, 0x34
    byte 0x40, 0x00
    byte 0x40, 0x10
    mov $3, %ecx
1:  sti
    hlt
    cli
    byte 0x20, 0x20
    loop 1b
    byte 0x21, 0xff
    say one_shot
    byte 0x61, 0x01
3:  byte 0x43, 0xb0
    byte 0x42, 0xff
    byte 0x42, 0xff
    in $0x61, %al
    and $0x20, %eax
    jnz 3b                      // a busy host was away for the 55 ms: again
    report_eax
2:  in $0x61, %al
    and $0x20, %al
    jz 2b
    report $1
    say counter
    byte 0x43, 0x00
    in $0x40, %al
    in $0x40, %al
    report $2
    done
interrupt_code
