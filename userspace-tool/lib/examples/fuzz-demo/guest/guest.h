/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the kernel, the parser and the fuzzer (machine.rs) agree on. All addresses are physical, and
 * the kernel's page table maps them to themselves.
 */
#ifndef GUEST_H
#define GUEST_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

/* Four bytes of length, then the input. */
#define INPUT		0x9000
#define INPUT_MOST	(4096 - 4)
/* One byte for each place, which counts how often the parser has come by. */
#define COVERAGE	0x8000
#define COVERAGE_SIZE	4096
/* The stack is small; the page below it is not there. */
#define STACK_TOP	0x7200
/* The last bytes before that page. */
#define NAME		0x5ff0
#define NAME_SIZE	16

/* Ports that the guest writes a double word to. */
#define PORT_READY	0xd0 /* a run may begin here: the snapshot */
#define PORT_DONE	0xd1 /* it has ended */
#define PORT_CRASH	0xd2 /* EAX: the exception's vector, or HANG; EBX: where; ECX: CR2 */
#define HANG		0x100

/* parser.c; how many records were good. */
int parse(const u8 *input, u32 size);

#endif
