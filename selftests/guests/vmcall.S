// SPDX-License-Identifier: GPL-2.0-only
//
// VMCALL, the hypercall of Intel's CPUs, becomes VMMCALL.
// mode: long64
#include "long64.inc"
    mov $0x7777, %eax
1:  vmcall
    report_eax
    movzwl 1b + 1, %eax
    report_eax
    mov $0x7777, %eax
    call 1f
    report_eax
    done
1:  vmcall
    ret
