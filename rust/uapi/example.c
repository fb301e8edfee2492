// SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note

/*
 * How a program in C uses snapshots: a tiny guest adds up numbers, and begins anew each time; then
 * it has children.
 *
 *   cc -Wall -o example example.c && ./example
 *
 * docs/abi.md says what each ioctl does.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/kvm.h>

#include "pacifica.h"

#define SIZE	(1 << 20)
#define CODE	0x1000
#define INPUT	0x2000
#define SUM	0x3000

/* In real mode: mov ax, [INPUT]; add [SUM], ax; hlt; and again. */
static const unsigned char guest[] = {
	0xa1, 0x00, 0x20, 0x01, 0x06, 0x00, 0x30, 0xf4, 0xeb, 0xf6,
};

static int check(int answer, const char *what)
{
	if (answer < 0) {
		perror(what);
		exit(EXIT_FAILURE);
	}
	return answer;
}

#define CALL(fd, request, argument) check(ioctl(fd, request, argument), #request)

/* Memory is the guest's and ours. */
static unsigned char *memory;

static unsigned int read16(unsigned int address)
{
	return memory[address] | memory[address + 1] << 8;
}

/* What is written into guest memory is announced before: only then a reset takes it back. */
static void write16(int snapshot, unsigned int address, unsigned int value)
{
	struct pacifica_keep_pages keep = { .gpa = address & ~4095u, .size = 4096 };

	CALL(snapshot, PACIFICA_KEEP_PAGES, &keep);
	memory[address] = value;
	memory[address + 1] = value >> 8;
}

/* Runs the guest until it halts. */
static void run(int vcpu, const struct kvm_run *shared)
{
	CALL(vcpu, KVM_RUN, 0);
	if (shared->exit_reason != KVM_EXIT_HLT) {
		fprintf(stderr, "KVM_RUN: exit %u\n", shared->exit_reason);
		exit(EXIT_FAILURE);
	}
}

/* What the kernel and we share of a virtual CPU. */
static struct kvm_run *map_vcpu(int device, int vcpu)
{
	int size = CALL(device, KVM_GET_VCPU_MMAP_SIZE, 0);
	void *shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);

	check(shared == MAP_FAILED ? -1 : 0, "mmap of the vCPU");
	return shared;
}

/* A virtual CPU at the guest's first instruction. */
static int make_vcpu(int vm)
{
	struct kvm_regs regs = { .rip = CODE, .rflags = 2 };
	struct kvm_sregs sregs;
	int vcpu = CALL(vm, KVM_CREATE_VCPU, 0);

	CALL(vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs.base = sregs.cs.selector = 0;
	CALL(vcpu, KVM_SET_SREGS, &sregs);
	CALL(vcpu, KVM_SET_REGS, &regs);
	return vcpu;
}

/* A child has a VM of its own, which goes on where the parent's was. Answers the sum it comes to. */
static unsigned int child(int device, int state, unsigned int input)
{
	struct pacifica_fork fork = { .flags = 0 };
	int vm = CALL(state, PACIFICA_FORK, &fork);
	/* Registers and all else are there. */
	int vcpu = CALL(vm, KVM_CREATE_VCPU, 0);
	struct kvm_run *shared = map_vcpu(device, vcpu);

	memory[INPUT] = input;
	run(vcpu, shared);
	return read16(SUM);
}

/* Makes three children, and goes on. */
static int fork_machine(int device, int vm, int vcpu, const struct kvm_run *shared)
{
	struct pacifica_create_snapshot create = { .flags = PACIFICA_SNAPSHOT_STATE };
	int failed = 0, state, status;

	memory[INPUT] = 1;
	run(vcpu, shared);
	/* Until the last fork(2) neither guest nor VMM writes to memory. */
	state = CALL(vm, PACIFICA_CREATE_SNAPSHOT, &create);
	fflush(stdout);
	for (unsigned int input = 10; input <= 30; input += 10) {
		pid_t pid = check(fork(), "fork");

		if (pid == 0) {
			/* The parent's VM is of no use here, but held by these. */
			close(vm);
			close(vcpu);
			_exit(child(device, state, input) != 1 + input);
		}
	}
	close(state);
	run(vcpu, shared);
	failed |= read16(SUM) != 2;
	while (wait(&status) > 0)
		failed |= status != 0;
	printf("the parent has come to %u, and its children to other sums\n", read16(SUM));
	return failed;
}

int main(void)
{
	const char *node = getenv("DEVICE") ? getenv("DEVICE") : "/dev/pacifica";
	struct pacifica_create_snapshot create = { .limit = SIZE };
	struct kvm_userspace_memory_region slot = { .memory_size = SIZE };
	int device, vm, vcpu, snapshot, failed = 0;
	struct kvm_run *shared;

	device = check(open(node, O_RDWR | O_CLOEXEC), node);
	if (ioctl(device, PACIFICA_CHECK_FEATURE, PACIFICA_FEATURE_SNAPSHOT) <= 0) {
		fprintf(stderr, "%s has no snapshots\n", node);
		return EXIT_FAILURE;
	}
	vm = CALL(device, KVM_CREATE_VM, 0);
	memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(memory == MAP_FAILED ? -1 : 0, "mmap");
	memcpy(memory + CODE, guest, sizeof(guest));
	slot.userspace_addr = (unsigned long)memory;
	CALL(vm, KVM_SET_USER_MEMORY_REGION, &slot);
	vcpu = make_vcpu(vm);
	shared = map_vcpu(device, vcpu);

	/* The instant: the sum is 0, the guest is at its first instruction. */
	snapshot = CALL(vm, PACIFICA_CREATE_SNAPSHOT, &create);
	for (unsigned int input = 1; input <= 5; input++) {
		struct pacifica_reset reset = { .flags = PACIFICA_RESET_TIME };

		write16(snapshot, INPUT, input);
		for (unsigned int times = 0; times < 3; times++)
			run(vcpu, shared);
		failed |= read16(SUM) != 3 * input;
		printf("3 times %u is %u", input, read16(SUM));
		CALL(snapshot, PACIFICA_RESET, &reset);
		failed |= read16(SUM) != 0 || read16(INPUT) != 0;
		printf(", and after the reset %u again; %llu pages put back\n", read16(SUM),
		       (unsigned long long)reset.pages);
	}
	close(snapshot);
	failed |= fork_machine(device, vm, vcpu, shared);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
