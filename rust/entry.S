/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The world switch: APM vol. 2, 15.5 (VMRUN), 15.14 (VMLOAD, VMSAVE), 15.17 (GIF).
 *
 *   clgi ─ vmload guest ─ registers ─ VMRUN ─ vmsave guest ─ registers ─ vmload host ─ stgi
 *   └─────────────── no interrupt, NMI, SMI or #MC can arrive ───────────────────────────┘
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

.section .noinstr.text, "ax"

/*
 * int pacifica_vmrun(u64 vmcb, u64 host_save, u64 gpr[16])
 *
 * vmcb       RDI: physical address of the guest's VMCB; RAX and RSP of the guest are in it
 * host_save  RSI: physical address of the page with the host's VMSAVE state (pacifica_save_host)
 * gpr        RDX: the guest's general-purpose registers, all but RAX and RSP
 *
 * Interrupts are off. Returns 0 after a #VMEXIT, -EIO if the CPU refused an SVM instruction.
 */
SYM_FUNC_START(pacifica_vmrun)
	push	%rbp
	push	%r15
	push	%r14
	push	%r13
	push	%r12
	push	%rbx
	push	%rsi			/* 8(%rsp): the host's save page */
	push	%rdx			/* 0(%rsp): the registers */

1:	clgi
	/*
	 * With GIF clear nothing arrives yet; IF must be set, or a physical interrupt would not
	 * end the guest (APM vol. 2, 15.21.1).
	 */
	sti

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
	ALTERNATIVE "jmp .Lno_ibpb", "", X86_FEATURE_IBPB_ON_VMEXIT
	mov	$MSR_IA32_PRED_CMD, %ecx
	mov	$PRED_CMD_IBPB, %eax
	xor	%edx, %edx
	wrmsr
	/* There the stack was not filled above, and some CPUs keep it. */
	FILL_RETURN_BUFFER %rax, RSB_CLEAR_LOOPS, X86_BUG_IBPB_NO_RET
.Lno_ibpb:
	xor	%eax, %eax

.Lout:
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
	add	$16, %rsp
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
.Lrefused:
	mov	$-5, %eax
	jmp	.Lout

	_ASM_EXTABLE(1b, .Lrefused)
	_ASM_EXTABLE(2b, .Lrefused)
	_ASM_EXTABLE(3b, .Lrefused)
	_ASM_EXTABLE(4b, .Lrefused)
	_ASM_EXTABLE(5b, .Lrefused)
	_ASM_EXTABLE(6b, 7b)
SYM_FUNC_END(pacifica_vmrun)

.section .rodata
SYM_DATA_LOCAL(pacifica_verw_selector, .word __KERNEL_DS)
