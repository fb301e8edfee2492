// SPDX-License-Identifier: GPL-2.0-only
//
// 64 CPUs, in x2APIC mode.
// mode: long64
// irqchip: kernel
// cpus: 64
// bug: bochs-tss-long-mode
#define X2APIC
#include "smp-64.inc"
