// SPDX-License-Identifier: GPL-2.0-only
//
// Eight CPUs that interrupt each other, in x2APIC mode.
// mode: long64
// irqchip: kernel
// cpus: 8
// bug: bochs-tss-long-mode
#define X2APIC
#include "smp-storm.inc"
