// SPDX-License-Identifier: GPL-2.0-only
//
// CR4.MCE is what the guest wrote, although the CPU runs with it on.
// mode: long64
// bug: tcg-cr-read
// bug: kvm-cr4-mce
#include "long64.inc"
    mov %cr4, %rax
    report_eax
    or $0x40, %rax
    mov %rax, %cr4
    mov %cr4, %rax
    report_eax
    and $~0x40, %rax
    mov %rax, %cr4
    mov %cr4, %rax
    report_eax
    done
