// SPDX-License-Identifier: GPL-2.0-only
//
// An inner guest whose page tables are in a read-only slot: every instruction of it is emulated,
// and the outer guest gets those that it intercepts, and no other.
// mode: long64
// feature: svm
// rom: yes
// bug: kvm-rom-tables
#include "long64.inc"
#include "svm.inc"
    .macro inner entry:req
    prepare \entry
    set SAVED_CR3, ROM_TABLES
    .endm
    .macro where entry:req
    mov SAVED_RIP(%rbx), %eax
    sub $\entry, %eax
    report_eax
    .endm
    // The inner guest, without an intercept, and with one.
    .macro both entry:req, field:req, bit:req
    inner \entry
    run
    inner \entry
    btsl $\bit, \field(%rbx)
    run
    where \entry
    report_field EXIT_INFO1
    .endm
    interrupts
    svm_on
    btsl $0, IO_MAP + 0x10
    btsl $6, MSR_MAP + 0x820
    say call
    inner inner_call
    run
    say cpuid
    both inner_cpuid, EXITS3, 18
    say msr
    both inner_msr, EXITS3, 28
    say port
    both inner_port, EXITS3, 27
    say tables
    both inner_sidt, EXITS3, 6
    both inner_ldt, EXITS3, 12
    say flags
    both inner_flags, EXITS3, 16
    both inner_flags, EXITS3, 17
    say interrupt
    inner inner_interrupt
    btsl $21, EXITS3(%rbx)
    run
    where inner_interrupt
    say iret
    both inner_iret, EXITS3, 20
    say tsc
    both inner_tsc, EXITS3, 14
    say control
    both inner_control, CR_EXITS, 0
    both inner_control, CR_EXITS, 16
    both inner_control, EXITS3, 5
    say debug
    both inner_debug, DR_EXITS, 0x16
    say hlt
    inner inner_hlt
    btsl $24, EXITS3(%rbx)
    run
    where inner_hlt
    say svm
    inner inner_load
    btsl $2, EXITS4(%rbx)
    run
    where inner_load
    say program
    inner inner_program
    btsl $24, EXITS3(%rbx)
    btsl $13, EXCEPTION_EXITS(%rbx)
    run
    done

inner_call:
    vmmcall
inner_cpuid:
    xor %eax, %eax
    cpuid
    vmmcall
inner_msr:
    mov $0xc0000082, %ecx
    rdmsr
    inc %ecx
    rdmsr
    vmmcall
inner_port:
    out %al, $0x81
    out %al, $0x80
    vmmcall
inner_sidt:
    sidt -16(%rsp)
    vmmcall
inner_ldt:
    xor %eax, %eax
    lldt %ax
    vmmcall
inner_flags:
    pushf
    popf
    vmmcall
inner_interrupt:
    int $0x80
inner_iret:
    mov %rsp, %rax
    push $16
    push %rax
    push $2
    push $8
    push $1f
    iretq
1:  vmmcall
inner_tsc:
    rdtsc
    vmmcall
inner_control:
    mov %cr0, %rax
    mov %rax, %cr0
    btc $18, %rax                       // AM
    mov %rax, %cr0
    vmmcall
inner_debug:
    mov %dr6, %rax
    mov %rax, %dr6
    vmmcall
inner_hlt:
    hlt
inner_load:
    vmload %rax
inner_program:
    mov %rsp, %rax
    push $USER
    push %rax
    push $2
    push $USERCODE
    push $inner_hlt
    iretq
svm_code
interrupt_code
