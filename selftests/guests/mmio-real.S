// SPDX-License-Identifier: GPL-2.0-only
//
// Real mode with 4 GiB segments ("unreal"): memory that is not there, through 32-bit addresses and
// through a segment whose base lies there, with 16- and 32-bit operands.
// mode: real16
#define __ax eax
#include "report.inc"
.code16
.globl _start
_start:
    lgdtl gdt_pointer
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    jmp 1f
1:  mov $8, %bx
    mov %bx, %ds                // base 0, limit 4 GiB
    mov $16, %bx
    mov %bx, %fs                // base MMIO, limit 64 KiB
    and $~1, %al
    mov %eax, %cr0
    jmp 2f
2:  say store
    movl $MMIO, %ebx
    movl $0x11223344, %eax
    addr32 movb %al, (%ebx)
    addr32 movw %ax, 2(%ebx)
    addr32 movl %eax, 4(%ebx)
    addr32 movw $0x5a5b, 8(%ebx)
    addr32 movl $0x5a5b5c5d, 12(%ebx)
    say load
    addr32 movw 0x40(%ebx), %cx
    report %ecx
    addr32 movl 0x44(%ebx), %ecx
    report %ecx
    say segment
    movw $0x100, %bx
    movw $0x20, %si
    movb %al, %fs:0x10
    movw %fs:(%bx), %cx
    report %ecx
    movw %fs:4(%bx,%si), %cx
    report %ecx
    movw $0xfff0, %bp
    movl %fs:8(%bp), %ecx
    report %ecx
    movw $0xfffe, %bx
    movb %fs:4(%bx), %cl        // the offset wraps at 64 KiB
    report %ecx
    movb %al, %fs:0x20          // the short form of AL and an offset
    movw %fs:0x22, %ax
    report_eax
    say strings
    movw $0xd000, %ax           // ES:DI is memory that is there
    xorw %ax, %ax
    movw %ax, %es
    movw $buffer, %di
    movw $0x80, %si
    movw $3, %cx
    cld
    rep movsb %fs:(%si), %es:(%di)
    report buffer
    movl $MMIO + 0x90, %esi
    movl $buffer, %edi
    addr32 movsl
    report buffer
    done
    .balign 8
gdt:
    .quad 0
    .quad 0x00cf93000000ffff
    .quad 0xd00093000000ffff
gdt_pointer:
    .word 0x17
    .long gdt
buffer:
    .long 0, 0
