// SPDX-License-Identifier: GPL-2.0-only
//
// HLT without in-kernel interrupt controllers comes to the VMM; an interrupt then goes on.
// mode: long64
// after-hlt: continue
#include "long64.inc"
    interrupts
    say sti_hlt
    cli
    ask INTERRUPT, 0x50
    sti
    hlt                         // the shadow ends with HLT, and the interrupt wakes it
    report $1
    say masked
    cli
    hlt
    report $2
    done
interrupt_code
