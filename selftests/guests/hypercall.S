// SPDX-License-Identifier: GPL-2.0-only
//
// VMMCALL: an unknown call answers -1000 (KVM_ENOSYS), a user's -1 (EPERM).
// mode: long64
#include "long64.inc"
    mov $0x7777, %eax
    vmmcall
    report_eax
    shr $32, %rax
    report_eax
    user
    mov $0x7777, %eax
    vmmcall
    report_eax
    done
