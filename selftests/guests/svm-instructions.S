// SPDX-License-Identifier: GPL-2.0-only
//
// A guest without SVM gets #UD from every SVM instruction, and from those of VMX.
// mode: long64
#include "long64.inc"
    interrupts
    mov $0x100000, %eax
    try vmrun %rax
    try vmload %rax
    try vmsave %rax
    try stgi
    try clgi
    xor %ecx, %ecx
    try invlpga %rax, %ecx
    try skinit %eax
    try .byte 0xf3, 0x0f, 0xc7, 0x30    // vmxon (%rax)
    try .byte 0x0f, 0x01, 0xc2          // vmlaunch
    try .byte 0x0f, 0x01, 0xc4          // vmxoff
    try .byte 0x66, 0x0f, 0x38, 0x80, 0x08      // invept
    try rsm
    report $1
    done
interrupt_code
