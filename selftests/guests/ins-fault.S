// SPDX-License-Identifier: GPL-2.0-only
//
// REP INS into a page that is not mapped: the port is not read for an element that faults.
// mode: long64
// bug: kvm-ins-readahead
// bug: bochs-cr2
#include "long64.inc"
    interrupts
    map 0x1ff, 0
    map 0x1fe, 0x87
    mov $0x80, %edx
    mov $0x3fe00000 - 2, %edi
    mov $4, %ecx
    try rep insb
    report %ecx
    report %edi
    report 0x1ffffc
    done
interrupt_code
