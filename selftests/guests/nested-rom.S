// SPDX-License-Identifier: GPL-2.0-only
//
// A VMCB in a read-only slot can be loaded from, and not be written: neither by VMSAVE nor by
// VMRUN.
// mode: long64
// feature: svm
// rom: yes
// bug: kvm-vmcb-rom
#include "long64.inc"
#include "svm.inc"
    interrupts
    svm_on
    mov $ROM, %eax
    vmload %rax
    report $1
    mov $ROM, %eax
    vmrun %rax
    done
interrupt_code
