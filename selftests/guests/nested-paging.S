// SPDX-License-Identifier: GPL-2.0-only
//
// Nested paging of a guest's own guest: where addresses lead, and whose a fault is.
// mode: long64
// feature: svm
#include "long64.inc"
#include "svm.inc"
    interrupts
    svm_on
    // The first GiB, nothing, the first once more, to be read only, and the one with devices.
    movl $NPT3 + 7, NPT
    movl $0x87, NPT3
    movl $0x85, NPT3 + 16
    movl $0xc0000087, NPT3 + 24
    // The inner guest's page tables have the same at 10 MiB, 12 MiB and 14 MiB.
    map 5, 0x40000083
    map 6, 0x80000083
    map 7, 0xd0000083
    movl $0x1111, 0x50000
    .macro paged entry:req
    prepare \entry
    set NP, 1
    set NCR3, NPT
    run
    report_field EXIT_INFO1
    report_field EXIT_INFO2
    .endm
    say absent
    paged inner_absent
    say read
    paged inner_read
    report %r11d
    say written
    paged inner_write
    say device
    paged inner_device
    report %r11d
    say tables
    prepare inner_call
    set NP, 1
    set NCR3, NPT
    set SAVED_CR3, 0x40001000
    set TLB_CONTROL, 1
    run
    report_field EXIT_INFO1
    report_field EXIT_INFO2
    say given
    movl $0x87, NPT3 + 16               // with a flush the right to write is seen
    prepare inner_write
    set NP, 1
    set NCR3, NPT
    set TLB_CONTROL, 1
    run
    report 0x50000
    movl $0, NPT3 + 16                  // and so is that nothing is there
    prepare inner_read
    set NP, 1
    set NCR3, NPT
    set TLB_CONTROL, 1
    run
    report_field EXIT_INFO1
    report_field EXIT_INFO2
    say refused
    prepare inner_call
    set NP, 1
    set NCR3 + 4, 0x80000000
    run
    say reserved
    movl $0x2087, NPT3 + 16
    prepare inner_read
    set NP, 1
    set NCR3, NPT
    set TLB_CONTROL, 1
    run
    report_field EXIT_INFO1
    // Tables where no memory is.
    movl $0x80000007, NPT
    prepare inner_call
    set NP, 1
    set NCR3, NPT
    set TLB_CONTROL, 1
    run
    report_field EXIT_INFO1
    done

inner_call:
    vmmcall
inner_absent:
    mov 0xa00000, %r11d
    vmmcall
inner_read:
    mov 0xc50000, %r11d
    vmmcall
inner_write:
    movl $0x2222, 0xc50000
    vmmcall
inner_device:
    mov 0xe00000, %r11d
    vmmcall
svm_code
interrupt_code
