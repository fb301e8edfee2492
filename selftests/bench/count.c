// SPDX-License-Identifier: GPL-2.0-only
/*
 * A QEMU plugin that counts the instructions which the emulated machine executes, of host and guests
 * together, and writes the number to a file when QEMU ends: -plugin count.so,out=FILE
 *
 * Debian's package has no header for plugins, so what is used of version 7 is declared here.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

struct qemu_plugin_tb;

void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*call)(struct qemu_plugin_tb *, void *),
					   void *data);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb, void (*call)(unsigned, void *),
					  int flags, void *data);
void qemu_plugin_register_atexit_cb(uint64_t id, void (*call)(void *), void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);

int qemu_plugin_version = 7;

/* A counter for each emulated CPU, on a cache line of its own. */
static struct {
	uint64_t count;
	uint64_t pad[7];
} cpus[64];
static char out[4096];

static void executed(unsigned cpu, void *instructions)
{
	cpus[cpu % 64].count += (uintptr_t)instructions;
}

static void translated(struct qemu_plugin_tb *tb, void *unused)
{
	qemu_plugin_register_vcpu_tb_exec_cb(tb, executed, 0, (void *)qemu_plugin_tb_n_insns(tb));
}

static void ended(void *unused)
{
	uint64_t all = 0;
	FILE *file = fopen(out, "w");

	for (size_t i = 0; i < 64; i++)
		all += cpus[i].count;
	if (file) {
		fprintf(file, "%llu\n", (unsigned long long)all);
		fclose(file);
	}
}

int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
	if (argc != 1 || strncmp(argv[0], "out=", 4) || strlen(argv[0]) - 4 >= sizeof(out))
		return -1;
	strcpy(out, argv[0] + 4);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated, NULL);
	qemu_plugin_register_atexit_cb(id, ended, NULL);
	return 0;
}
