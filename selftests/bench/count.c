// SPDX-License-Identifier: GPL-2.0-only
/*
 * A QEMU plugin that counts the instructions which the emulated machine executes, of host and guests
 * together, and those among them that switch worlds or cost far more than others on silicon:
 * -plugin count.so,out=FILE[,own=on]
 *
 * When QEMU ends, the file has a line of numbers for the whole run, and one for each time that a
 * program executed the two marks (see `begin` and `end` of selftests/src/bin/measure/machine.rs).
 * A line is: instructions VMRUN VMLOAD VMSAVE WRMSR XSETBV. With own=on, only what the CPU executed that met the marks,
 * without its waiting: what has a PAUSE, and the few blocks behind one, which look again; and without the interrupts that
 * come meanwhile. That needs a machine without -icount: with it, QEMU takes the CPU that translated a block for the one that
 * executes it.
 */
#include "../lab/plugin.h"
#include <stdio.h>
#include <string.h>

int qemu_plugin_version = PLUGIN_VERSION;

enum { INSTRUCTIONS, VMRUN, VMLOAD, VMSAVE, WRMSR, XSETBV, KINDS, BEGIN = KINDS, END, IRETQ, ALL };

static const struct {
	uint8_t length, bytes[8];
} code[ALL] = {
	[VMRUN] = { 3, { 0x0f, 0x01, 0xd8 } },
	[VMLOAD] = { 3, { 0x0f, 0x01, 0xda } },
	[VMSAVE] = { 3, { 0x0f, 0x01, 0xdb } },
	[WRMSR] = { 2, { 0x0f, 0x30 } },
	[XSETBV] = { 3, { 0x0f, 0x01, 0xd1 } },
	[BEGIN] = { 8, { 0x0f, 0x1f, 0x84, 0x00, 0x01, 0x00, 0x4d, 0x4d } },
	[IRETQ] = { 2, { 0x48, 0xcf } },
	[END] = { 8, { 0x0f, 0x1f, 0x84, 0x00, 0x02, 0x00, 0x4d, 0x4d } },
};

/* The counters of each emulated CPU, on cache lines of their own. */
static uint64_t cpus[64][16];
static uint64_t spans[256][KINDS];
static size_t ended_spans;
static char out[4096];
static int own;

/* So many blocks look whether the waiting is over. */
enum { LOOK = 3 };
/* Of each CPU: the blocks that look still, and how many interrupts since the last mark it has not returned from. */
static unsigned int waits[64], interrupts[64];

static void sum(uint64_t *all)
{
	memset(all, 0, KINDS * sizeof(*all));
	for (size_t i = 0; i < 64; i++)
		for (size_t kind = 0; kind < KINDS; kind++)
			all[kind] += cpus[i][kind];
}

static void mark(unsigned cpu, size_t kind)
{
	uint64_t now[KINDS];

	if (ended_spans == 256)
		return;
	interrupts[cpu % 64] = 0;
	if (own)
		memcpy(now, cpus[cpu % 64], sizeof(now));
	else
		sum(now);
	for (size_t i = 0; i < KINDS; i++)
		spans[ended_spans][i] = kind == BEGIN ? now[i] : now[i] - spans[ended_spans][i];
	ended_spans += kind == END;
}

/* block: twice the number of instructions, and one more if there is a PAUSE among them. */
static void executed(unsigned cpu, void *block)
{
	unsigned int *wait = &waits[cpu % 64];

	if (own && (uintptr_t)block & 1)
		*wait = LOOK;
	else if (own && *wait)
		--*wait;
	else if (!own || !interrupts[cpu % 64])
		cpus[cpu % 64][INSTRUCTIONS] += (uintptr_t)block >> 1;
}

static void interrupted(unsigned cpu, int type, uint64_t from, uint64_t to, void *unused)
{
	interrupts[cpu % 64]++;
}

static void special(unsigned cpu, void *kind)
{
	if ((uintptr_t)kind == IRETQ)
		interrupts[cpu % 64] -= interrupts[cpu % 64] > 0;
	else if ((uintptr_t)kind < KINDS)
		cpus[cpu % 64][(uintptr_t)kind]++;
	else
		mark(cpu, (uintptr_t)kind);
}

static void translated(TRANSLATED(tb))
{
	size_t n = qemu_plugin_tb_n_insns(tb), pauses = 0;

	for (size_t i = 0; i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		uint8_t bytes[16];
		size_t length = qemu_plugin_insn_data(insn, bytes, sizeof(bytes));

		for (size_t kind = VMRUN; kind < ALL; kind++)
			if (code[kind].length && length == code[kind].length &&
			    !memcmp(bytes, code[kind].bytes, length))
				qemu_plugin_register_vcpu_insn_exec_cb(insn, special, 0, (void *)kind);
		pauses |= length == 2 && bytes[0] == 0xf3 && bytes[1] == 0x90;
	}
	qemu_plugin_register_vcpu_tb_exec_cb(tb, executed, 0, (void *)(2 * n + pauses));
}

static void ended(ENDED)
{
	uint64_t all[KINDS];
	FILE *file = fopen(out, "w");

	if (!file)
		return;
	sum(all);
	for (size_t span = 0; span <= ended_spans; span++) {
		const uint64_t *line = span ? spans[span - 1] : all;

		for (size_t kind = 0; kind < KINDS; kind++)
			fprintf(file, "%llu%c", (unsigned long long)line[kind], kind + 1 < KINDS ? ' ' : '\n');
	}
	fclose(file);
}

int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
	own = argc == 2 && !strcmp(argv[1], "own=on");
	if (argc != 1 + own || strncmp(argv[0], "out=", 4) || strlen(argv[0]) - 4 >= sizeof(out))
		return -1;
	strcpy(out, argv[0] + 4);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated, NULL);
	if (own && !qemu_plugin_register_vcpu_discon_cb)
		return -1;
	if (own)
		qemu_plugin_register_vcpu_discon_cb(id, DISCON_INTERRUPT | DISCON_EXCEPTION, interrupted, NULL);
	qemu_plugin_register_atexit_cb(id, ended, NULL);
	return 0;
}
