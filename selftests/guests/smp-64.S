// SPDX-License-Identifier: GPL-2.0-only
//
// 64 CPUs.
// mode: long64
// irqchip: kernel
// cpus: 64
// bug: bochs-tss-long-mode
#include "smp-64.inc"
