/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * What /dev/pacifica has besides the interface of KVM: snapshots of a VM, going back to them, and
 * VMs that are made from them. docs/abi.md says what each ioctl does, which errors it gives, and
 * what the limits are.
 *
 * All structures have the same layout in programs of 32 and 64 bits.
 */
#ifndef PACIFICA_UAPI_H
#define PACIFICA_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* The type of these ioctls; KVM's is 0xAE. */
#define PACIFICA_IOCTL			0xBE

/*
 * On the node and on a VM: whether the feature that the argument names is there. Answers its
 * version, or 0. KVM itself, and a module that is older than this, answers ENOTTY.
 */
#define PACIFICA_CHECK_FEATURE		_IO(PACIFICA_IOCTL, 0x00)
#define PACIFICA_FEATURE_SNAPSHOT	1	/* 2: a stack of them, PACIFICA_KEEP_ONCE */
#define PACIFICA_FEATURE_FORK		2

/* On a VM: takes a snapshot, and answers its descriptor. */
#define PACIFICA_CREATE_SNAPSHOT	_IOW(PACIFICA_IOCTL, 0x01, struct pacifica_create_snapshot)

/*
 * The state alone, for PACIFICA_FORK: no memory is kept, the limit is zero, and nothing of the VM
 * is restricted. There may be any number.
 */
#define PACIFICA_SNAPSHOT_STATE		(1ULL << 0)

struct pacifica_create_snapshot {
	/* PACIFICA_SNAPSHOT_* */
	__u64 flags;
	/* How many bytes of old memory contents the kernel may keep. */
	__u64 limit;
	/* Zeros. */
	__u64 reserved[6];
};

/*
 * On a snapshot: the VM is as it was when the snapshot was taken. Snapshots of its that were taken
 * later are none any more (ENXIO).
 */
#define PACIFICA_RESET			_IOWR(PACIFICA_IOCTL, 0x02, struct pacifica_reset)

/* The guest's time goes back, too. */
#define PACIFICA_RESET_TIME		(1ULL << 0)

struct pacifica_reset {
	/* PACIFICA_RESET_* */
	__u64 flags;
	/* Out: how many pages of 4 KiB were put back. */
	__u64 pages;
	/* Zeros. */
	__u64 reserved[2];
};

/*
 * On a snapshot: the VMM is about to write this guest memory. What is there now is kept, and each
 * reset puts it back, so that further writes of it need not be announced. What is left to be done
 * is written back.
 */
#define PACIFICA_KEEP_PAGES		_IOWR(PACIFICA_IOCTL, 0x03, struct pacifica_keep_pages)

/* Only the next reset puts it back: writes after that are to be announced again. */
#define PACIFICA_KEEP_ONCE		(1ULL << 0)

struct pacifica_keep_pages {
	/* Guest-physical address, a multiple of 4096. */
	__u64 gpa;
	/* Bytes, a multiple of 4096. */
	__u64 size;
	/* PACIFICA_KEEP_* */
	__u64 flags;
};

/* On a snapshot: another limit, in bytes. */
#define PACIFICA_SET_KEEP_LIMIT		_IOW(PACIFICA_IOCTL, 0x04, __u64)

/* On a snapshot: how many bytes of old memory contents are kept. */
#define PACIFICA_GET_KEPT		_IOR(PACIFICA_IOCTL, 0x05, __u64)

/*
 * On a snapshot, in any process, which is to be a child that fork(2) has made since: makes a VM
 * with the state of the snapshot and the same slots, of the memory that the caller has at the same
 * addresses, and answers its descriptor. KVM_CREATE_VCPU there answers the descriptors of the
 * vCPUs, which have their state already.
 */
#define PACIFICA_FORK			_IOW(PACIFICA_IOCTL, 0x06, struct pacifica_fork)

/* The guest's time goes on from the instant of the snapshot, as if none had passed since. */
#define PACIFICA_FORK_TIME		(1ULL << 0)

struct pacifica_fork {
	/* PACIFICA_FORK_* */
	__u64 flags;
	/* Zeros. */
	__u64 reserved[3];
};

#endif
