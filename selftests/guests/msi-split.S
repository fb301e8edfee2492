// SPDX-License-Identifier: GPL-2.0-only
//
// The guest `msi` with local APICs only in the kernel.
// mode: long64
// irqchip: split
#include "msi.S"
