// SPDX-License-Identifier: GPL-2.0-only
//
// Protection keys: PKRU lives through exits, and binds the CPU and the emulator alike.
// mode: long64
// feature: pku
#include "long64.inc"
#define KEYED   0x3fe00000      // the first pages once more, with key 1
    .macro rights bits
    mov $((\bits) << 2), %eax
    xor %ecx, %ecx
    xor %edx, %edx
    wrpkru
    .endm
    interrupts
    xor %ecx, %ecx
    try rdpkru                  // undefined without CR4.PKE
    mov %cr4, %rax
    bts $22, %rax
    mov %rax, %cr4
    mov $7, %eax
    xor %ecx, %ecx
    cpuid
    shr $3, %ecx
    and $3, %ecx
    report %ecx                 // PKU and OSPKE
    map 0x1ff, 0x87
    orl $(1 << 27), 0x4000 + 0x1ff * 8 + 4
    mov %cr3, %rax
    mov %rax, %cr3
    mov $(KEYED + 0x70000), %ebx
    movl $0x1234, 0x70000
    say free
    rights 0
    try mov (%rbx), %esi
    report %esi
    say no_writes
    rights 2
    try mov (%rbx), %esi
    try movl $1, (%rbx)
    say nothing
    rights 3
    try mov (%rbx), %esi
    try movl $1, (%rbx)
    say exits
    mov $0x80000000, %eax
    cpuid
    mov $7, %al
    out %al, $0x80
    mov $MMIO, %ecx
    mov (%rcx), %eax
    xor %ecx, %ecx
    rdpkru
    report_eax
    say emulated
    mov $(KEYED + 0x70000), %ebx
    mov $MMIO, %esi
    mov %ebx, %edi
    try movsl                   // from a device to the keyed page
    mov %ebx, %esi
    mov $MMIO, %edi
    try movsl
    rights 2
    mov %ebx, %esi
    try movsl
    say user
    mov $MMIO, %esi
    user
    mov %ebx, %edi
    try movsl
    try mov (%rbx), %eax
    done
interrupt_code
