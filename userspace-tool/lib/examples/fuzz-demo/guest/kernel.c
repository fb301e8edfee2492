// SPDX-License-Identifier: GPL-2.0-only

/*
 * A kernel for one program, the parser: it makes pages that are not there fault, reports each
 * exception, and counts where the parser comes by.
 */
#include "guest.h"

#define PAGES		512 /* 2 MiB */
#define DIRECTORY	((u32 *)0x3000)
#define TABLE		((u32 *)0x4000)
#define PRESENT		1
#define WRITABLE	2
/* Steps of the parser; more hang. */
#define FUEL		20000

extern char text_end[];
extern u32 stubs[32];

static struct { u32 low, high; } gates[32];
static u32 previous, fuel = FUEL;

static inline void out(u16 port, u32 value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

/* Tells the fuzzer that the parser is broken. It does not come back. */
__attribute__((noreturn, used)) void crash(u32 vector, u32 where)
{
	u32 address;

	__asm__ volatile("mov %%cr2, %0" : "=r"(address));
	for (;;)
		__asm__ volatile("outl %0, %1" : : "a"(vector), "Nd"((u16)PORT_CRASH),
				 "b"(where), "c"(address) : "memory");
}

/* The compiler calls it wherever the parser takes a way. */
void __sanitizer_cov_trace_pc(void)
{
	u32 here = (u32)__builtin_return_address(0);
	u8 *count = (u8 *)COVERAGE + (here ^ previous << 3) % COVERAGE_SIZE;

	if (*count != 255)
		++*count;
	previous = here;
	if (--fuel == 0)
		crash(HANG, here);
}

/* One entry for each exception: all get an error code and the vector on the stack. */
__asm__(
	".macro stub vector\n"
	"stub_\\vector:\n"
	".if !(\\vector == 8 || (\\vector >= 10 && \\vector <= 14) || \\vector == 17)\n"
	"	push $0\n"
	".endif\n"
	"	pushl 4(%esp)\n"	/* where */
	"	pushl $\\vector\n"
	"	push $0\n"		/* where crash() would go back to */
	"	jmp crash\n"
	".endm\n"
	".altmacro\n"
	".set number, 0\n"
	".rept 32\n"
	"	stub %number\n"
	"	.set number, number + 1\n"
	".endr\n"
	".macro address vector\n"
	"	.long stub_\\vector\n"
	".endm\n"
	".section .rodata\n"
	"stubs:\n"
	".set number, 0\n"
	".rept 32\n"
	"	address %number\n"
	"	.set number, number + 1\n"
	".endr\n"
	".noaltmacro\n"
	".text\n");

/* Flat code (8) and data (16). */
static const u32 gdt[] = { 0, 0, 0xffff, 0x00cf9b00, 0xffff, 0x00cf9300 };

static void load_tables(void)
{
	struct { u16 size; u32 address; } __attribute__((packed))
	gdt_pointer = { sizeof(gdt) - 1, (u32)gdt }, idt_pointer = { sizeof(gates) - 1, (u32)gates };

	for (u32 vector = 0; vector < 32; vector++) {
		gates[vector].low = 8 << 16 | (stubs[vector] & 0xffff);
		gates[vector].high = (stubs[vector] & 0xffff0000) | 0x8e00;
	}
	__asm__ volatile("lgdt %0\n"
			 "lidt %1\n"
			 "ljmp $8, $1f\n"
			 "1:\n"
			 : : "m"(gdt_pointer), "m"(idt_pointer) : "memory");
}

/* Page 0 and the one below the stack are not there, and the code cannot be written. */
static void turn_paging_on(void)
{
	for (u32 page = 0; page < PAGES; page++) {
		u32 address = page << 12;
		int code = address >= 0x10000 && address + 0x1000 <= (u32)text_end;

		TABLE[page] = address | PRESENT | (code ? 0 : WRITABLE);
	}
	TABLE[0] = TABLE[(NAME + NAME_SIZE) >> 12] = 0;
	DIRECTORY[0] = (u32)TABLE | PRESENT | WRITABLE;
	__asm__ volatile("mov %0, %%cr3\n"
			 "mov %%cr0, %%eax\n"
			 "or $0x80010000, %%eax\n" /* PG, WP */
			 "mov %%eax, %%cr0\n"
			 : : "r"(DIRECTORY) : "eax", "memory");
}

__attribute__((noreturn, used)) void kernel(void)
{
	load_tables();
	turn_paging_on();
	out(PORT_READY, 0);
	/* All runs begin here. */
	out(PORT_DONE, parse((const u8 *)INPUT + 4, *(const volatile u32 *)INPUT));
	for (;;)
		;
}

__asm__(".section .entry, \"ax\"\n"
	".global _start\n"
	"_start:\n"
	"	mov $0x7200, %esp\n" /* STACK_TOP */
	"	call kernel\n"
	".text\n");
