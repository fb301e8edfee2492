// SPDX-License-Identifier: GPL-2.0-only
//
// The two 8259s: initialization, masks, in-service and request registers, cascade, EOI.
// mode: long64
// irqchip: kernel
#include "long64.inc"
#include "lapic.inc"
    .macro byte port, value
    mov $\value, %al
    out %al, $\port
    .endm
    interrupts
    lapic_on
    movl $0x700, LVT_LINT0(%rbx) // ExtINT
    movq $0, eoi
    byte 0x20, 0x11
    byte 0x21, 0x20
    byte 0x21, 0x04
    byte 0x21, 0x01
    byte 0xa0, 0x11
    byte 0xa1, 0x28
    byte 0xa1, 0x02
    byte 0xa1, 0x01
    say mask
    byte 0x21, 0xff
    in $0x21, %al
    movzx %al, %eax
    report_eax
    byte 0xa1, 0xff
    sti
    ask RAISE, 3
    nop
    report $1
    say request
    byte 0x20, 0x0a
    in $0x20, %al
    movzx %al, %eax
    report_eax
    say unmask
    byte 0x21, 0xf3
    nop
    ask LOWER, 3
    byte 0x20, 0x0b
    in $0x20, %al
    movzx %al, %eax
    report_eax                  // in service
    byte 0x20, 0x20
    in $0x20, %al
    movzx %al, %eax
    report_eax
    say cascade
    byte 0xa1, 0xfd
    ask RAISE, 9
    nop
    ask LOWER, 9
    byte 0xa0, 0x20
    byte 0x20, 0x20
    say nothing
    nop
    report $2
    done
interrupt_code
