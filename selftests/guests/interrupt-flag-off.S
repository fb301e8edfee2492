// SPDX-License-Identifier: GPL-2.0-only
//
// A guest that spins with interrupts off does not keep its VMM from interrupting it.
// mode: long64
// limit: 500
// bug: bochs-intr-masked
#include "long64.inc"
    cli
    report $1
1:  jmp 1b
