// SPDX-License-Identifier: GPL-2.0-only
//
// Eight CPUs that interrupt each other.
// mode: long64
// irqchip: kernel
// cpus: 8
// bug: bochs-tss-long-mode
#include "smp-storm.inc"
