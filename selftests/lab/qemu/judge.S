/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A program for the bare machine `strict`, without a kernel (multiboot): it does what a forgetful hypervisor does, and
 * says whether the CPU is as strict as it claims. One rule it breaks so that QEMU must complain: then the boot fails, and
 * that is what is tested (selftests/run, `planted-strict`).
 *
 * The host is in protected mode, its first GiB has identical pages of 2 MiB; nested tables have the same format, PAE (APM
 * vol. 2, 15.25.3). The guest is in real mode, at GUEST.
 */
	.set GUEST, 0x7000
	.set OTHER, 0x8000

	/* The VMCB (APM vol. 2, appendix B). */
	.set WORD3, 0x00c
	.set WORD4, 0x010
	.set ASID, 0x058
	.set TLB_CONTROL, 0x05c
	.set EXITCODE, 0x070
	.set EXITINFO1, 0x078
	.set NP_ENABLE, 0x090
	.set NCR3, 0x0b0
	.set CLEAN, 0x0c0
	.set NRIP, 0x0c8
	.set CS, 0x410
	.set EFER, 0x4d0
	.set CR0, 0x558
	.set DR7, 0x560
	.set DR6, 0x568
	.set RFLAGS, 0x570
	.set RIP, 0x578
	.set G_PAT, 0x668

	.set CPUID_INTERCEPT, 1 << 18
	.set HLT_INTERCEPT, 1 << 24
	.set EXIT_CPUID, 0x72
	.set EXIT_HLT, 0x78
	.set EXIT_NPF, 0x400

	.code32
	.section .text
	.balign 4
	.long 0x1badb002, 0, -0x1badb002

	.globl _start
_start:
	mov $stack, %esp
	cld
	/* Identical pages, and SVM. */
	mov $tables, %edi
	mov $0x87, %eax
1:	stosl
	movl $0, (%edi)
	add $4, %edi
	add $0x200000, %eax
	cmp $tables + 4096, %edi
	jb 1b
	movl $tables + 1, pointers
	mov $pointers, %eax
	mov %eax, %cr3
	mov $0x20, %eax			/* PAE */
	mov %eax, %cr4
	mov %cr0, %eax
	or $0x80000000, %eax
	mov %eax, %cr0
	mov $0xc0000080, %ecx		/* EFER.SVME */
	rdmsr
	or $0x1000, %eax
	wrmsr
	mov $0xc0010117, %ecx		/* VM_HSAVE_PA */
	mov $hsave, %eax
	xor %edx, %edx
	wrmsr
	/* Nested tables: the first 2 MiB in small pages. */
	mov $nested_pages, %edi
	mov $0x7, %eax
1:	stosl
	movl $0, (%edi)
	add $4, %edi
	add $0x1000, %eax
	cmp $nested_pages + 4096, %edi
	jb 1b
	movl $nested_pages + 7, nested_middle
	movl $nested_middle + 1, nested
	/* Two pages of code. */
	movl $0xf4a20f, GUEST		/* cpuid; hlt */
	movl $0xf4f4f4f4, OTHER		/* hlt */

	movl $CPUID_INTERCEPT | HLT_INTERCEPT, vmcb + WORD3
	movl $1, vmcb + WORD4		/* VMRUN */
	movl $1, vmcb + ASID
	movl $nested, vmcb + NCR3
	movl $0x009b0000 | GUEST >> 4, vmcb + CS
	movl $0xffff, vmcb + CS + 4
	movl $GUEST, vmcb + CS + 8
	movl $0x1000, vmcb + EFER
	movl $0x10, vmcb + CR0
	movl $0x400, vmcb + DR7
	movl $0xffff0ff0, vmcb + DR6
	movl $2, vmcb + RFLAGS
	movl $0x00070406, vmcb + G_PAT
	movl $0x00070406, vmcb + G_PAT + 4

/* rule NAME: what follows must find its conditions true; `is FIELD, VALUE` is one. */
	.macro rule name
	.pushsection .rodata
9:	.asciz "\name"
	.popsection
	movl $9b, name
	.endm
	.macro is field, value
	cmpl $\value, vmcb + \field
	call note
	.endm
	.macro run
	movl $0, vmcb + RIP
	call enter
	.endm

	rule "a guest exits by CPUID"
	run
	is EXITCODE, EXIT_CPUID

	rule "next-RIP is that of the next instruction"
	is NRIP, 2

	rule "EXITINFO1 of an exit that has none is rubbish"
	cmpl $0, vmcb + EXITINFO1
	call note_not

	rule "a clean bit that is set: the CPU uses its copy, and says so"
	movl $HLT_INTERCEPT, vmcb + WORD3
	movl $1, vmcb + CLEAN
	run
	is EXITCODE, EXIT_CPUID
	rule "without the bit the CPU sees the change"
	movl $0, vmcb + CLEAN
	run
	is EXITCODE, EXIT_HLT
	movl $CPUID_INTERCEPT | HLT_INTERCEPT, vmcb + WORD3

	rule "nested paging"
	movl $1, vmcb + NP_ENABLE
	movl $3, vmcb + TLB_CONTROL
	run
	is EXITCODE, EXIT_CPUID
	movl $0, vmcb + TLB_CONTROL
	rule "a page that is another one without a flush is the old one still"
	movl $OTHER + 7, nested_pages + 8 * (GUEST >> 12)
	run
	is EXITCODE, EXIT_CPUID
	rule "another ASID does not have it"
	movl $2, vmcb + ASID
	run
	is EXITCODE, EXIT_HLT
	rule "and the first one keeps it"
	movl $1, vmcb + ASID
	run
	is EXITCODE, EXIT_CPUID
	rule "a flush of that ASID takes it away"
	movl $3, vmcb + TLB_CONTROL
	run
	is EXITCODE, EXIT_HLT
	movl $0, vmcb + TLB_CONTROL

	rule "next-RIP of an exit that is of no instruction is zero"
	movl $0, nested_pages + 8 * (GUEST >> 12)
	movl $3, vmcb + TLB_CONTROL
	run
	is EXITCODE, EXIT_NPF
	is NRIP, 0

	rule "VMEXIT_INVALID leaves the save area as it is"
	movl $0, vmcb + ASID
	movl $0x1234, vmcb + RIP
	call enter
	is EXITCODE, -1
	is RIP, 0x1234

	/* The last word, as selftests/lab/boot wants it of a host. */
	mov $last, %esi
	call say
	mov failures, %al
	add $'0', %al
	call put
	mov $end, %esi
	call say
	mov $6, %al			/* reset */
	mov $0xcf9, %dx
	out %al, %dx
1:	hlt
	jmp 1b

enter:
	mov $vmcb, %eax
	clgi
	vmrun %eax
	stgi
	ret

/* Says that the rule holds if ZF is set, or is broken; `note_not` the other way round. */
note_not:
	setz %bl
	jmp 1f
note:
	setnz %bl
1:	mov $good, %esi
	test %bl, %bl
	jz 1f
	incb failures
	mov $bad, %esi
1:	call say
	mov name, %esi
	call say
	mov $end, %esi
	jmp say

/* The string at ESI, and a character, to the first serial port. */
say:
	lodsb
	test %al, %al
	jz 1f
	call put
	jmp say
1:	ret
put:
	mov $0x3f8, %dx
	out %al, %dx
	ret

	.section .rodata
good:	.asciz "[    0.000000] judge: ok "
bad:	.asciz "[    0.000000] judge: not ok "
last:	.asciz "[    0.000000] lab: the command ended with status "
end:	.asciz "\r\n"

	.bss
	.balign 4096
vmcb:	.skip 4096
hsave:	.skip 4096
tables:	.skip 4096
pointers: .skip 4096
nested:	.skip 4096
nested_middle: .skip 4096
nested_pages: .skip 4096
	.skip 4096
stack:
name:	.skip 4
failures: .skip 4
