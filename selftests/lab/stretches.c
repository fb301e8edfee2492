// SPDX-License-Identifier: GPL-2.0-only
/*
 * A QEMU plugin that finds the longest stretches of instructions which the host executes with interrupts off, of those in
 * which a module (there is one besides the emulated disk's and net's) has a part: -plugin stretches.so,out=FILE
 *
 *   begins                                            ends
 *   CLI, CLGI, SYSCALL, an interrupt or exception     STI with GIF set, STGI with IF set, its IRETQ, SYSRETQ
 *   the first instruction behind #VMEXIT              VMRUN: what is pending there ends the guest at once
 *
 * Waiting for another CPU does not count: what has a PAUSE, and the few blocks behind one, which look again. When QEMU
 * ends, the file has a line for each place where a module came in: instructions, how the stretch began (exit, code or
 * interrupt), that place, and where the stretch ended. Of an interrupt, whose handler may have done others' work before,
 * what counts is what came since the module did.
 */
#include "plugin.h"
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int qemu_plugin_version = PLUGIN_VERSION;

enum { CLI, STI, CLGI, STGI, VMRUN, VMSAVE, IRETQ, SYSCALL, SYSRETQ, ALL };

static const struct {
	uint8_t length, bytes[3];
} code[ALL] = {
	[CLI] = { 1, { 0xfa } },		[STI] = { 1, { 0xfb } },
	[CLGI] = { 3, { 0x0f, 0x01, 0xdd } },	[STGI] = { 3, { 0x0f, 0x01, 0xdc } },
	[VMRUN] = { 3, { 0x0f, 0x01, 0xd8 } },	[VMSAVE] = { 3, { 0x0f, 0x01, 0xdb } },
	[IRETQ] = { 2, { 0x48, 0xcf } },	[SYSCALL] = { 2, { 0x0f, 0x05 } },
	[SYSRETQ] = { 3, { 0x48, 0x0f, 0x07 } },
};

/* Where the kernel keeps modules (Documentation/arch/x86/x86_64/mm.rst). */
static const uint64_t modules = 0xffffffffc0000000, modules_end = 0xffffffffff000000;

/* A block of instructions. */
struct block {
	uint64_t address;
	unsigned int count;
	bool pauses;
};

/* So many blocks look whether the waiting is over. */
enum { LOOK = 3 };

/* How a stretch began: at #VMEXIT, by an instruction, by an interrupt, whose handler does others' work as well. */
enum { EXIT, CODE, INTERRUPT };
static const char *const names[] = { [EXIT] = "exit", [CODE] = "code", [INTERRUPT] = "interrupt" };

/* What a CPU is doing. */
static struct cpu {
	bool guest, interrupts_off, gif_off;
	int began;
	/* Exceptions with interrupts off that have not returned. */
	unsigned int nested;
	unsigned int waits;
	/* Instructions since the stretch began, if there is one; and where a module came in, if one did. */
	uint64_t count, module, last;
} cpus[64];

static struct {
	uint64_t count, module, end;
	int began;
} longest[64];
static char out[4096];

static bool is_off(const struct cpu *cpu)
{
	return !cpu->guest && (cpu->interrupts_off || cpu->gif_off);
}

/* A stretch begins, unless interrupts are off already. */
static void begin(struct cpu *cpu, int how)
{
	if (!is_off(cpu))
		cpu->began = how;
}

/* The stretch of this CPU ends, unless interrupts are off still. */
static void end(struct cpu *cpu)
{
	size_t i, least = 0;

	if (is_off(cpu))
		return;
	if (cpu->module) {
		for (i = 0; i < 64 && (longest[i].module != cpu->module || longest[i].began != cpu->began); i++)
			if (longest[i].count < longest[least].count)
				least = i;
		if (i == 64)
			i = least;
		if (cpu->count > longest[i].count) {
			longest[i].count = cpu->count;
			longest[i].module = cpu->module;
			longest[i].began = cpu->began;
			longest[i].end = cpu->last;
		}
	}
	cpu->count = cpu->module = 0;
}

static bool is_module(uint64_t address)
{
	return address >= modules && address < modules_end;
}

static void executed(unsigned int index, void *data)
{
	const struct block *block = data;
	struct cpu *cpu = &cpus[index % 64];

	if (!is_off(cpu))
		return;
	if (block->address >> 63 == 0) {
		/* User mode has interrupts on: an end was missed. */
		cpu->interrupts_off = cpu->gif_off = false;
		cpu->count = cpu->module = cpu->nested = 0;
		return;
	}
	if (block->pauses)
		cpu->waits = LOOK;
	else if (cpu->waits)
		cpu->waits--;
	else
		cpu->count += block->count;
	cpu->last = block->address;
	if (!cpu->module && is_module(block->address)) {
		cpu->module = block->address;
		if (cpu->began == INTERRUPT)
			cpu->count = block->count;
	}
}

static void special(unsigned int index, void *kind)
{
	struct cpu *cpu = &cpus[index % 64];

	if (cpu->guest && (uintptr_t)kind != VMSAVE)
		return;
	switch ((uintptr_t)kind) {
	case CLI:
	case SYSCALL:
		begin(cpu, CODE);
		cpu->interrupts_off = true;
		break;
	case CLGI:
		begin(cpu, CODE);
		cpu->gif_off = true;
		break;
	case IRETQ:
		if (cpu->nested) {
			cpu->nested--;
			break;
		}
		/* fallthrough */
	case STI:
	case SYSRETQ:
		cpu->interrupts_off = false;
		end(cpu);
		break;
	case STGI:
		cpu->gif_off = false;
		end(cpu);
		break;
	case VMRUN:
		cpu->guest = true;
		end(cpu);
		break;
	case VMSAVE:
		if (!cpu->guest)
			break;
		/* The host's first behind #VMEXIT, which clears GIF. */
		cpu->guest = cpu->interrupts_off = cpu->gif_off = false;
		begin(cpu, EXIT);
		cpu->gif_off = true;
		break;
	}
}

static void interrupted(unsigned int index, int type, uint64_t from, uint64_t to, void *unused)
{
	struct cpu *cpu = &cpus[index % 64];

	if (cpu->guest)
		return;
	if (cpu->interrupts_off) {
		cpu->nested++;
		return;
	}
	begin(cpu, INTERRUPT);
	cpu->interrupts_off = true;
}

static void translated(TRANSLATED(tb))
{
	/* For ever: the block may be executed until QEMU ends. */
	struct block *block = malloc(sizeof(*block));

	if (!block)
		abort();
	*block = (struct block){ qemu_plugin_tb_vaddr(tb), qemu_plugin_tb_n_insns(tb), false };
	for (size_t i = 0; i < block->count; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		uint8_t bytes[16];
		size_t length = qemu_plugin_insn_data(insn, bytes, sizeof(bytes));

		for (size_t kind = 0; kind < ALL; kind++)
			/* A guest may have a VMSAVE, too. */
			if (length == code[kind].length && !memcmp(bytes, code[kind].bytes, length) &&
			    (kind != VMSAVE || is_module(block->address)))
				qemu_plugin_register_vcpu_insn_exec_cb(insn, special, 0, (void *)kind);
		block->pauses |= length == 2 && bytes[0] == 0xf3 && bytes[1] == 0x90;
	}
	qemu_plugin_register_vcpu_tb_exec_cb(tb, executed, 0, block);
}

static void ended(ENDED)
{
	FILE *file = fopen(out, "w");

	if (!file)
		return;
	for (size_t i = 0; i < 64; i++)
		if (longest[i].count)
			fprintf(file, "%llu %s %#llx %#llx\n", (unsigned long long)longest[i].count,
				names[longest[i].began], (unsigned long long)longest[i].module,
				(unsigned long long)longest[i].end);
	fclose(file);
}

int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
	if (argc != 1 || strncmp(argv[0], "out=", 4) || strlen(argv[0]) - 4 >= sizeof(out))
		return -1;
	if (!qemu_plugin_register_vcpu_discon_cb)
		return -1;
	strcpy(out, argv[0] + 4);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated, NULL);
	qemu_plugin_register_vcpu_discon_cb(id, DISCON_INTERRUPT | DISCON_EXCEPTION, interrupted, NULL);
	qemu_plugin_register_atexit_cb(id, ended, NULL);
	return 0;
}
