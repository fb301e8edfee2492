// SPDX-License-Identifier: GPL-2.0-only
//
// A triple fault ends in a shutdown.
// mode: long64
#include "long64.inc"
    report $1
    lidt none
    ud2
    report $2
none:
    .word 0
    .quad 0
