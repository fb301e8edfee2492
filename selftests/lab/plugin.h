/* SPDX-License-Identifier: GPL-2.0-only */
/* What the lab's plugins use of QEMU's interface for plugins: Debian's package has no header for it. */
#ifndef PLUGIN_H
#define PLUGIN_H

#include <stddef.h>
#include <stdint.h>

struct qemu_plugin_tb;
struct qemu_plugin_insn;

/*
 * QEMU 11 has version 7 of the interface. QEMU 10.0, of which the machine `strict` is made, has 4: some calls get the plugin's
 * number first and no data, and interrupts are not told.
 */
#ifndef PLUGIN_VERSION
#define PLUGIN_VERSION 7
#endif
#if PLUGIN_VERSION < 5
#define TRANSLATED(tb) uint64_t id, struct qemu_plugin_tb *tb
#define ENDED uint64_t id, void *unused
#else
#define TRANSLATED(tb) struct qemu_plugin_tb *tb, void *unused
#define ENDED void *unused
#endif

enum { DISCON_INTERRUPT = 1, DISCON_EXCEPTION = 2 };

void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*call)(TRANSLATED()), void *data);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb, void (*call)(unsigned, void *),
					  int flags, void *data);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, void (*call)(unsigned, void *),
					    int flags, void *data);
__attribute__((weak))
void qemu_plugin_register_vcpu_discon_cb(uint64_t id, int type,
					 void (*call)(unsigned, int, uint64_t, uint64_t, void *),
					 void *data);
void qemu_plugin_register_atexit_cb(uint64_t id, void (*call)(ENDED), void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *insn, void *dest, size_t length);

#endif
