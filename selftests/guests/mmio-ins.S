// SPDX-License-Identifier: GPL-2.0-only
//
// INS to memory that is not there: the port is read, then the device is written, and never read.
// mode: long64
// bug: kvm-ins-merges
// bug: bochs-cr2
#include "long64.inc"
    interrupts
    mov $MMIO, %ebx
    mov $0x80, %edx
    cld
    say one
    mov %rbx, %rdi
    insb
    insw
    insl
    sub %rbx, %rdi
    report %edi
    say rep
    lea 0x100(%rbx), %rdi
    mov $3, %ecx
    rep insb
    report %ecx
    sub %rbx, %rdi
    report %edi
    lea 0x110(%rbx), %rdi
    mov $2, %ecx
    rep insl
    say backwards
    std
    lea 0x202(%rbx), %rdi
    mov $2, %ecx
    rep insw
    cld
    say over_two_pages
    lea 0xfff(%rbx), %rdi
    insl
    say from_memory_on
    map 0x1fe, 0x87             // memory, and behind it the device
    map 0x1ff, 0xd0000087
    mov $0x80, %edx
    mov $0x3fe00000 - 2, %edi
    mov $4, %ecx
    rep insb
    report 0x3fdffffc
    mov $0x3fe00000 - 1, %edi
    insl
    say outs
    lea 0x300(%rbx), %rsi
    outsb
    mov $2, %ecx
    rep outsw
    done
interrupt_code
