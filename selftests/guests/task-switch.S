// SPDX-License-Identifier: GPL-2.0-only
//
// A task switch by JMP to a TSS, and back by IRET after a CALL.
// mode: protected32
#include "protected32.inc"
    interrupts
    .set other, 0x20000
    movw $0x67, 0x1000 + 0x48       // descriptor 0x48: an available 32-bit TSS
    movw $0, 0x1000 + 0x4a
    movl $0x00008902, 0x1000 + 0x4c
    movl $task, other + 0x20        // EIP
    movl $2, other + 0x24           // EFLAGS
    movl $0x1234, other + 0x28      // EAX
    movl $0x60000, other + 0x38     // ESP
    movl $DATA, other + 0x48        // ES
    movl $CODE32, other + 0x4c      // CS
    movl $DATA, other + 0x50        // SS
    movl $DATA, other + 0x54        // DS
    movl $0x680000, other + 0x64
    say call
    lcall $0x48, $0
    report $2
    str %eax
    report_eax
    say jmp
    movl $task2, other + 0x20
    movl $2, other + 0x24
    ljmp $0x48, $0
task:
    report_eax
    str %eax
    report_eax
    pushf
    pop %eax
    and $0x4000, %eax               // NT
    report_eax
    movzwl other, %eax              // the back link
    report_eax
    mov %cr0, %eax
    and $8, %eax                    // TS
    report_eax
    iret
task2:
    report $3
    testb $2, 0x1000 + 0x4d         // busy
    setnz %al
    movzx %al, %eax
    report_eax
    testb $2, 0x1000 + 0x45
    setz %al
    movzx %al, %eax
    report_eax
    done
interrupt_code
