// SPDX-License-Identifier: GPL-2.0-only
//
// Into protected mode with paging and back, in every step that start-up code makes.
// mode: real16
// bug: bochs-tss-long-mode
#define __ax eax
#include "report.inc"
.code16
.globl _start
_start:
    smsw %ax
    movzwl %ax, %eax
    report_eax
    lgdtl 1f
    movl $0x11, %eax
    lmsw %ax
    ljmpl $CODE32, $2f
1:  .word 0x4f
    .long 0x1000
.code32
2:  mov $DATA, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    say protected
    mov %cr0, %eax
    report_eax
    say paging                  // 32-bit tables with a 4 MiB page
    movl $0x87, 0x10000
    mov $0x10, %eax
    mov %eax, %cr4              // PSE
    mov $0x10000, %eax
    mov %eax, %cr3
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    jmp 3f
3:  mov %cr0, %eax
    report_eax
    mov 0x10000, %eax           // accessed and dirty
    report_eax
    and $0x7fffffff, %eax
    say pae
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    movl $0x12001, 0x11000
    movl $0x87, 0x12000
    mov $0x20, %eax
    mov %eax, %cr4
    mov $0x11000, %eax
    mov %eax, %cr3
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    jmp 4f
4:  mov 0x12000, %eax
    report_eax
    say long
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    movl $0x11007, 0x13000
    movl $0x12007, 0x11000
    mov $0x13000, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
    rdmsr
    report_eax                  // LME and LMA
    ljmp $CODE64, $5f
.code64
5:  mov $0x123456789, %rax
    shr $4, %rax
    report_eax
    say back
    mov $6f, %ebx
    ljmp *(%rbx)
6:  .long 7f
    .word CODE32
.code32
7:  mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    mov $0xc0000080, %ecx
    rdmsr
    report_eax                  // LMA is gone
    and $~0x100, %eax
    wrmsr
    xor %eax, %eax
    mov %eax, %cr4
    ljmp $CODE16, $8f
.code16
8:  mov $DATA16, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    xor %eax, %eax
    mov %eax, %cr0
    ljmp $0, $9f
9:  xor %ax, %ax
    mov %ax, %ds
    mov %ax, %ss
    report $0x16
    done
