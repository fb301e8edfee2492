/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The world switch: APM vol. 2, 15.5 (VMRUN), 15.14 (VMLOAD, VMSAVE), 15.17 (GIF).
 *
 *   clgi ─ (1) ─ vmload guest ─ registers ─ VMRUN ─ vmsave guest ─ registers ─ vmload host ─ (2) ─ stgi
 *   └─────────────────── no interrupt, NMI, SMI or #MC can arrive ───────────────────────────────────┘
 *
 * (1), (2): XCR0, XSS and PKRU, if the guest's may differ from the host's. The handler of an NMI or
 * a machine check, which STGI lets in, has the host's: it may read the user's stack, which PKRU
 * judges.
 *
 * Between #VMEXIT and the host's VMLOAD the GS base is the guest's: no per-CPU access, no call.
 * Every SVM instruction has an exception-table entry: a panic or a reboot on another CPU may have
 * cleared EFER.SVME under us, and then they raise #UD.
 */
#include <linux/linkage.h>
#include <asm/asm.h>
#include <asm/asm-offsets.h>
#include <asm/cpufeatures.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>
#include <asm/segment.h>

/* Byte offset of a register in `GuestRegs` (x86/regs.rs): eight times its encoding. */
#define GPR(n) ((n) * 8)
#define GPR_RCX GPR(1)
#define GPR_RDX GPR(2)
#define GPR_RBX GPR(3)
#define GPR_RBP GPR(5)
#define GPR_RSI GPR(6)
#define GPR_RDI GPR(7)

/* `struct pacifica_switch` (helpers.h). */
#define SWITCH_WHAT 0
#define SWITCH_GUEST_PKRU 4
#define SWITCH_HOST_PKRU 8
#define SWITCH_GUEST_XCR0 16
#define SWITCH_HOST_XCR0 24
#define SWITCH_HOST_XSS 32
#define SWITCH_PKRU 1
#define SWITCH_XCR0 2
#define SWITCH_XSS 4

.section .noinstr.text, "ax"

/* RCX: what; keeps RDI, and RDX with 0(%rsp). */
.macro SWITCH_TO_GUEST
	mov	%rcx, %rbx
	testl	$SWITCH_XCR0, SWITCH_WHAT(%rbx)
	jz	8f
	xor	%ecx, %ecx
	mov	SWITCH_GUEST_XCR0(%rbx), %eax
	mov	SWITCH_GUEST_XCR0 + 4(%rbx), %edx
	xsetbv
8:	testl	$SWITCH_XSS, SWITCH_WHAT(%rbx)
	jz	9f
	/* The guest's is always 0. */
	mov	$MSR_IA32_XSS, %ecx
	xor	%eax, %eax
	xor	%edx, %edx
	wrmsr
9:	testl	$SWITCH_PKRU, SWITCH_WHAT(%rbx)
	jz	10f
	mov	SWITCH_GUEST_PKRU(%rbx), %eax
	cmp	SWITCH_HOST_PKRU(%rbx), %eax
	je	10f
	xor	%ecx, %ecx
	xor	%edx, %edx
	wrpkru
10:	mov	(%rsp), %rdx
.endm

/* 16(%rsp): what; EAX: the result, which is kept. If it is not 0, nothing of the guest ran. */
.macro SWITCH_TO_HOST
	mov	16(%rsp), %rbx
	mov	%eax, %ebp
	testl	$SWITCH_PKRU, SWITCH_WHAT(%rbx)
	jz	12f
	xor	%ecx, %ecx
	rdpkru				/* refused: any value, and the caller does not look */
	mov	%eax, SWITCH_GUEST_PKRU(%rbx)
	cmp	SWITCH_HOST_PKRU(%rbx), %eax
	je	12f
	mov	SWITCH_HOST_PKRU(%rbx), %eax
	xor	%edx, %edx
	wrpkru
12:	testl	$SWITCH_XSS, SWITCH_WHAT(%rbx)
	jz	13f
	mov	$MSR_IA32_XSS, %ecx
	mov	SWITCH_HOST_XSS(%rbx), %eax
	mov	SWITCH_HOST_XSS + 4(%rbx), %edx
	wrmsr
13:	testl	$SWITCH_XCR0, SWITCH_WHAT(%rbx)
	jz	14f
	xor	%ecx, %ecx
	mov	SWITCH_HOST_XCR0(%rbx), %eax
	mov	SWITCH_HOST_XCR0 + 4(%rbx), %edx
	xsetbv
14:	mov	%ebp, %eax
.endm

/*
 * int pacifica_vmrun(u64 vmcb, u64 host_save, u64 gpr[16])
 * int pacifica_vmrun_switching(u64 vmcb, u64 host_save, u64 gpr[16], struct pacifica_switch *)
 *
 * vmcb       RDI: physical address of the guest's VMCB; RAX and RSP of the guest are in it
 * host_save  RSI: physical address of the page with the host's VMSAVE state (pacifica_save_host)
 * gpr        RDX: the guest's general-purpose registers, all but RAX and RSP
 * switch     RCX: extended state that differs
 *
 * Interrupts are off. Returns 0 after a #VMEXIT, -EIO if the CPU refused an SVM instruction.
 */
.macro VMRUN_FUNCTION name, switching
SYM_FUNC_START(\name)
	push	%rbp
	push	%r15
	push	%r14
	push	%r13
	push	%r12
	push	%rbx
	push	%rcx			/* 16(%rsp): extended state, if it is switched */
	push	%rsi			/* 8(%rsp): the host's save page */
	push	%rdx			/* 0(%rsp): the registers */

1:	clgi
	/*
	 * With GIF clear nothing arrives yet; IF must be set, or a physical interrupt would not
	 * end the guest (APM vol. 2, 15.21.1).
	 */
	sti

	.if \switching
	SWITCH_TO_GUEST
	.endif
	mov	%rdi, %rax
2:	vmload	%rax

	mov	GPR_RCX(%rdx), %rcx
	mov	GPR_RBX(%rdx), %rbx
	mov	GPR_RBP(%rdx), %rbp
	mov	GPR_RSI(%rdx), %rsi
	mov	GPR_RDI(%rdx), %rdi
	mov	GPR(8)(%rdx), %r8
	mov	GPR(9)(%rdx), %r9
	mov	GPR(10)(%rdx), %r10
	mov	GPR(11)(%rdx), %r11
	mov	GPR(12)(%rdx), %r12
	mov	GPR(13)(%rdx), %r13
	mov	GPR(14)(%rdx), %r14
	mov	GPR(15)(%rdx), %r15
	mov	GPR_RDX(%rdx), %rdx

	/* Nothing of the host may stay in the CPU's buffers (TSA). Clobbers ZF. */
	ALTERNATIVE "", "verw pacifica_verw_selector(%rip)", X86_FEATURE_CLEAR_CPU_BUF_VM

3:	vmrun	%rax
	/* #VMEXIT gives back RAX, RSP and RIP of the host (APM vol. 2, 15.6). */
4:	vmsave	%rax

	mov	(%rsp), %rax
	mov	%rcx, GPR_RCX(%rax)
	mov	%rdx, GPR_RDX(%rax)
	mov	%rbx, GPR_RBX(%rax)
	mov	%rbp, GPR_RBP(%rax)
	mov	%rsi, GPR_RSI(%rax)
	mov	%rdi, GPR_RDI(%rax)
	mov	%r8, GPR(8)(%rax)
	mov	%r9, GPR(9)(%rax)
	mov	%r10, GPR(10)(%rax)
	mov	%r11, GPR(11)(%rax)
	mov	%r12, GPR(12)(%rax)
	mov	%r13, GPR(13)(%rax)
	mov	%r14, GPR(14)(%rax)
	mov	%r15, GPR(15)(%rax)

	mov	8(%rsp), %rax
5:	vmload	%rax

	/* No return before the return predictors are the host's again. */
	FILL_RETURN_BUFFER %rax, RSB_CLEAR_LOOPS, X86_FEATURE_RSB_VMEXIT
	VALIDATE_UNRET_END
	CALL_UNTRAIN_RET
	ALTERNATIVE "jmp .Lno_ibpb\@", "", X86_FEATURE_IBPB_ON_VMEXIT
	mov	$MSR_IA32_PRED_CMD, %ecx
	mov	$PRED_CMD_IBPB, %eax
	xor	%edx, %edx
	wrmsr
	/* There the stack was not filled above, and some CPUs keep it. */
	FILL_RETURN_BUFFER %rax, RSB_CLEAR_LOOPS, X86_BUG_IBPB_NO_RET
.Lno_ibpb\@:
	xor	%eax, %eax

.Lout\@:
	.if \switching
	SWITCH_TO_HOST
	.endif
	/* The guest's values must not reach speculation in the host. */
	xor	%ecx, %ecx
	xor	%edx, %edx
	xor	%ebx, %ebx
	xor	%ebp, %ebp
	xor	%esi, %esi
	xor	%edi, %edi
	xor	%r8d, %r8d
	xor	%r9d, %r9d
	xor	%r10d, %r10d
	xor	%r11d, %r11d
	xor	%r12d, %r12d
	xor	%r13d, %r13d
	xor	%r14d, %r14d
	xor	%r15d, %r15d
	cli
6:	stgi
7:
	add	$24, %rsp
	pop	%rbx
	pop	%r12
	pop	%r13
	pop	%r14
	pop	%r15
	pop	%rbp
	RET

	/*
	 * SVM was taken away. That happens by an interrupt or an NMI on this CPU, so before CLGI
	 * and never behind it: in practice only the first instruction gets here, with nothing
	 * changed and GIF set.
	 */
.Lrefused\@:
	mov	$-5, %eax
	jmp	.Lout\@

	_ASM_EXTABLE(1b, .Lrefused\@)
	_ASM_EXTABLE(2b, .Lrefused\@)
	_ASM_EXTABLE(3b, .Lrefused\@)
	_ASM_EXTABLE(4b, .Lrefused\@)
	_ASM_EXTABLE(5b, .Lrefused\@)
	_ASM_EXTABLE(6b, 7b)
SYM_FUNC_END(\name)
.endm

VMRUN_FUNCTION pacifica_vmrun, 0
VMRUN_FUNCTION pacifica_vmrun_switching, 1

.section .rodata
SYM_DATA_LOCAL(pacifica_verw_selector, .word __KERNEL_DS)
