// SPDX-License-Identifier: GPL-2.0-only
//
// 16-byte moves to and from memory that is not there.
// mode: long64
#include "long64.inc"
    mov $MMIO, %ebx
    movdqu 0x10(%rbx), %xmm3
    movd %xmm3, %eax
    report_eax
    psrldq $12, %xmm3
    movd %xmm3, %eax
    report_eax
    movdqa 0x20(%rbx), %xmm4
    movups %xmm4, 0x40(%rbx)
    movntdq %xmm4, 0x60(%rbx)
    done
