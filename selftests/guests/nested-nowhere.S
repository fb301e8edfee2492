// SPDX-License-Identifier: GPL-2.0-only
//
// A VMCB where there is no memory: nothing of the kind can be emulated.
// mode: long64
// feature: svm
#include "long64.inc"
#include "svm.inc"
    interrupts
    svm_on
    mov $RAM_END - 0x1000, %eax
    vmsave %rax
    report $1
    mov $RAM_END, %eax
    vmsave %rax
    done
interrupt_code
