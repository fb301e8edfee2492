// SPDX-License-Identifier: GPL-2.0-only
/*
 * What Rust cannot reach: inline functions, macros and functions that are missing from the
 * kernel's bindings. Nothing is decided here. `linux/mod.rs` declares and wraps all of it.
 */
#include <linux/anon_inodes.h>
#include <linux/cc_platform.h>
#include <linux/cpu.h>
#include <linux/cpuhotplug.h>
#include <linux/debugfs.h>
#include <linux/entry-virt.h>
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/gfp.h>
#include <linux/hrtimer.h>
#include <linux/hw_breakpoint.h>
#include <linux/kvm_host.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/rcuwait.h>
#include <linux/sched/signal.h>
#include <linux/sched/stat.h>
#include <linux/sched/task.h>
#include <linux/seq_file.h>
#include <linux/smp.h>
#include <linux/syscore_ops.h>
#include <linux/clocksource_ids.h>
#include <linux/timekeeping.h>
#include <linux/vfio.h>
#include <linux/wait.h>

#include <trace/events/ipi.h>

#include <asm/cpufeature.h>
#include <asm/cpuid/api.h>
#include <asm/debugreg.h>
#include <asm/fpu/api.h>
#include <asm/fpu/xcr.h>
#include <asm/mce.h>
#include <asm/msr.h>
#include <asm/nospec-branch.h>
#include <asm/processor.h>
#include <asm/tsc.h>

#include "helpers.h"

/* The macro `module!` knows no version. Kbuild takes it out of Cargo.toml. */
MODULE_VERSION(PACIFICA_VERSION);

#ifdef CONFIG_PREEMPT_RT
#error "Eventfds are signalled with interrupts off: PREEMPT_RT kernels are not supported."
#endif

/* ---- the world switch ---------------------------------------------------------------------- */

/*
 * Saves what VMLOAD brings back after each #VMEXIT: FS, GS, TR, LDTR, the system call MSRs. As long
 * as interrupts are off none of it changes, so once is enough for many entries. If SVM was taken
 * away, the entry is refused, too.
 */
void pacifica_save_host(u64 page)
{
	asm volatile("1: vmsave %0\n2:\n" _ASM_EXTABLE(1b, 2b) : : "a" (page) : "memory");
}

static __always_inline int enter_guest(u64 vmcb, u64 host_save, u64 *gpr,
				       struct pacifica_switch *what)
{
	int ret;

	instrumentation_begin();
	trace_hardirqs_on_prepare();
	lockdep_hardirqs_on_prepare();
	instrumentation_end();
	context_tracking_guest_enter();
	lockdep_hardirqs_on(CALLER_ADDR0);

	amd_clear_divider();
	if (what)
		ret = pacifica_vmrun_switching(vmcb, host_save, gpr, what);
	else
		ret = pacifica_vmrun(vmcb, host_save, gpr);

	lockdep_hardirqs_off(CALLER_ADDR0);
	context_tracking_guest_exit();
	instrumentation_begin();
	trace_hardirqs_off_finish();
	instrumentation_end();
	return ret;
}

noinstr int pacifica_enter_guest(u64 vmcb, u64 host_save, u64 *gpr)
{
	return enter_guest(vmcb, host_save, gpr, NULL);
}

/* The same for a guest whose extended state is not the host's in all that what names. */
noinstr int pacifica_enter_guest_switching(u64 vmcb, u64 host_save, u64 *gpr,
					   struct pacifica_switch *what)
{
	return enter_guest(vmcb, host_save, gpr, what);
}

/*
 * Around a window, which may enter the guest many times. What guest_state_enter_irqoff() does at
 * each entry is divided: RCU is told once that this CPU holds no references. The next tick ends
 * the window; a CPU without ticks has context tracking, which the entry above serves.
 */
void pacifica_guest_timing_enter(void)
{
	guest_timing_enter_irqoff();
	rcu_virt_note_context_switch();
}

void pacifica_guest_timing_exit(void)
{
	guest_timing_exit_irqoff();
}

/* Before the next return to user mode, flush the predictors that the guest could train. */
void pacifica_guest_was_here(void)
{
	if (cpu_feature_enabled(X86_FEATURE_IBPB_EXIT_TO_USER))
		this_cpu_write(x86_ibpb_exit_to_user, true);
}

/* While guests may run on this CPU, on CPUs whose answer to SRSO this is (Zen 5). */
void pacifica_reduce_speculation(bool on)
{
	u64 cfg;

	if (!cpu_feature_enabled(X86_FEATURE_SRSO_BP_SPEC_REDUCE))
		return;
	if (rdmsrq_safe(MSR_ZEN4_BP_CFG, &cfg))
		return;
	if (on)
		cfg |= BIT_ULL(MSR_ZEN4_BP_CFG_BP_SPEC_REDUCE_BIT);
	else
		cfg &= ~BIT_ULL(MSR_ZEN4_BP_CFG_BP_SPEC_REDUCE_BIT);
	wrmsrq_safe(MSR_ZEN4_BP_CFG, cfg);
}

/* Between two guests on one CPU. */
void pacifica_flush_predictors(void)
{
	if (cpu_feature_enabled(X86_FEATURE_IBPB))
		native_wrmsrq(MSR_IA32_PRED_CMD, PRED_CMD_IBPB);
}

/* ---- interrupts, scheduling ---------------------------------------------------------------- */

void pacifica_irq_disable(void)
{
	local_irq_disable();
}

void pacifica_irq_enable(void)
{
	local_irq_enable();
}

unsigned int pacifica_cpu(void)
{
	return raw_smp_processor_id();
}

bool pacifica_work_pending(void)
{
	return __xfer_to_guest_mode_work_pending();
}

int pacifica_handle_work(void)
{
	return xfer_to_guest_mode_handle_work();
}

bool pacifica_signal_pending(void)
{
	return signal_pending(current);
}

void pacifica_yield(void)
{
	cond_resched();
	cpu_relax();
}

u64 pacifica_run_delay(void)
{
#ifdef CONFIG_SCHED_INFO
	return current->sched_info.run_delay;
#else
	return 0;
#endif
}

/* Whether this thread may go on looking for something: no other has work for this CPU. */
bool pacifica_may_poll(void)
{
	cpu_relax();
	return single_task_running() && !need_resched() && !signal_pending(current);
}

struct task_struct *pacifica_current(void)
{
	return current;
}

/*
 * Lets a thread have this CPU that could run and does not; whether it was so. The pointer is NULL
 * as soon as the thread does something else, so RCU keeps what it leads to.
 */
bool pacifica_yield_to(struct task_struct *const *runner)
{
	struct task_struct *task;
	bool yielded;

	rcu_read_lock();
	task = READ_ONCE(*runner);
	if (task && task != current && task_is_running(task) && !READ_ONCE(task->on_cpu))
		get_task_struct(task);
	else
		task = NULL;
	rcu_read_unlock();
	if (!task)
		return false;
	yielded = yield_to(task, true) > 0;
	put_task_struct(task);
	return yielded;
}

unsigned int pacifica_online_cpus(void)
{
	return num_online_cpus();
}

void pacifica_kick_cpu(unsigned int cpu)
{
	/* Who asks may have slept since it looked where the guest was, and that CPU may be gone. */
	preempt_disable();
	if (cpu_online(cpu))
		smp_send_reschedule(cpu);
	preempt_enable();
}

static void pacifica_nothing(void *unused)
{
}

/* For each CPU, those that it is about to interrupt. */
static DEFINE_PER_CPU(cpumask_var_t, pacifica_mask);

void pacifica_masks_free(void)
{
	unsigned int cpu;

	for_each_possible_cpu(cpu) {
		free_cpumask_var(per_cpu(pacifica_mask, cpu));
#ifdef CONFIG_CPUMASK_OFFSTACK
		per_cpu(pacifica_mask, cpu) = NULL;
#endif
	}
}

int pacifica_masks_alloc(void)
{
	unsigned int cpu;

	for_each_possible_cpu(cpu) {
		if (!zalloc_cpumask_var_node(&per_cpu(pacifica_mask, cpu), GFP_KERNEL,
					     cpu_to_node(cpu))) {
			pacifica_masks_free();
			return -ENOMEM;
		}
	}
	return 0;
}

/* This CPU's mask, empty. Preemption is off until pacifica_mask_interrupt(). */
void *pacifica_mask_begin(void)
{
	struct cpumask *mask;

	preempt_disable();
	mask = this_cpu_cpumask_var_ptr(pacifica_mask);
	cpumask_clear(mask);
	return mask;
}

void pacifica_mask_add(void *mask, unsigned int cpu)
{
	__cpumask_set_cpu(cpu, mask);
}

/*
 * Interrupts the CPUs in the mask, together; returns when their handlers have run, so that the
 * guests there were left. A guest of this CPU was left already.
 */
void pacifica_mask_interrupt(void *mask)
{
	smp_call_function_many(mask, pacifica_nothing, NULL, true);
	preempt_enable();
}

/* Sleeps until ready(arg); -EINTR if a signal came first. */
int pacifica_wait(struct rcuwait *wait, bool (*ready)(void *), void *arg)
{
	return rcuwait_wait_event(wait, ready(arg), TASK_INTERRUPTIBLE);
}

int pacifica_pid(void)
{
	return task_tgid_nr(current);
}

int pacifica_sigmask_set(const sigset_t *set, sigset_t *old)
{
	return sigprocmask(SIG_SETMASK, (sigset_t *)set, old);
}

/* A set of signals with the bits of user space's 64-bit word; SIGKILL and SIGSTOP stay allowed. */
void pacifica_signal_set(u64 bits, sigset_t *set)
{
	siginitset(set, 0);
	set->sig[0] = bits;
	sigdelsetmask(set, sigmask(SIGKILL) | sigmask(SIGSTOP));
}

/* Whether one more line in the log is in order. */
bool pacifica_may_report(void)
{
	static DEFINE_RATELIMIT_STATE(limit, 5 * HZ, 10);

	return __ratelimit(&limit);
}

/* ---- the CPU ------------------------------------------------------------------------------- */

int pacifica_rdmsr(u32 msr, u64 *value)
{
	return rdmsrq_safe(msr, value);
}

int pacifica_wrmsr(u32 msr, u64 value)
{
	return wrmsrq_safe(msr, value);
}

u64 pacifica_rdtsc(void)
{
	return rdtsc_ordered();
}

/* The TSC and real time in nanoseconds, of one instant; false if the clock is not the TSC. */
bool pacifica_real_at_tsc(u64 *tsc, u64 *real)
{
	struct system_time_snapshot now;

	ktime_get_snapshot_id(CLOCK_REALTIME, &now);
	*tsc = now.cycles;
	*real = ktime_to_ns(now.systime);
	return now.valid && now.cs_id == CSID_X86_TSC;
}

u32 pacifica_tsc_khz(void)
{
	return tsc_khz;
}

bool pacifica_tsc_stable(void)
{
	return !check_tsc_unstable();
}

bool pacifica_host_is_amd(void)
{
	return boot_cpu_data.x86_vendor == X86_VENDOR_AMD ||
	       boot_cpu_data.x86_vendor == X86_VENDOR_HYGON;
}

bool pacifica_host_has_svm(void)
{
	return boot_cpu_has(X86_FEATURE_SVM);
}

bool pacifica_host_has_snp(void)
{
	return cc_platform_has(CC_ATTR_HOST_SEV_SNP);
}

bool pacifica_host_has_ibpb(void)
{
	return boot_cpu_has(X86_FEATURE_IBPB);
}

/* What the kernel knows of its CPUs in the place of CPUID leaf 8000_0021, EAX: microcode brings more than CPUID tells. */
u32 pacifica_host_mitigations(void)
{
	return boot_cpu_data.x86_capability[CPUID_8000_0021_EAX];
}

void pacifica_cpuid(u32 leaf, u32 subleaf, u32 *regs)
{
	cpuid_count(leaf, subleaf, &regs[0], &regs[1], &regs[2], &regs[3]);
}

void pacifica_machine_check(void)
{
	struct pt_regs regs = {
		.cs = 3, /* As from user mode: the guest was hit, not the kernel. */
		.flags = X86_EFLAGS_IF,
	};

	do_machine_check(&regs);
}

/*
 * DR0 to DR3 are shared with the guest, and #VMEXIT turns all breakpoints off (APM vol. 2, 15.6).
 * So the host's, if it has any, are put aside here and brought back by pacifica_debug_exit().
 * guest: what the guest's breakpoints need, or NULL. host: DR0 to DR3 and DEBUGCTL.
 */
void pacifica_debug_enter(const u64 *guest, u64 debugctl, u64 *host)
{
	/* DEBUGCTL is not switched either, and its bus-lock trap would hit the guest. */
	host[4] = get_debugctlmsr();
	if (host[4] != debugctl)
		update_debugctlmsr(debugctl);
	if (hw_breakpoint_active()) {
		get_debugreg(host[0], 0);
		get_debugreg(host[1], 1);
		get_debugreg(host[2], 2);
		get_debugreg(host[3], 3);
		set_debugreg(DR7_FIXED_1, 7);
	}
	if (guest) {
		set_debugreg(guest[0], 0);
		set_debugreg(guest[1], 1);
		set_debugreg(guest[2], 2);
		set_debugreg(guest[3], 3);
	}
}

/*
 * debugctl: as it was entered; a #DB may have cleared a bit. dr6: the guest has left something
 * there, which a #DB of the host's tasks would take for its own cause.
 */
void pacifica_debug_exit(const u64 *host, u64 debugctl, bool dr6)
{
	if (host[4] || debugctl)
		update_debugctlmsr(host[4]);
	if (dr6)
		set_debugreg(DR6_RESERVED, 6);
	if (!hw_breakpoint_active())
		return;
	set_debugreg(host[0], 0);
	set_debugreg(host[1], 1);
	set_debugreg(host[2], 2);
	set_debugreg(host[3], 3);
	set_debugreg(DR6_RESERVED, 6);
	set_debugreg(this_cpu_read(cpu_dr7), 7);
}

/* MXCSR bits that this CPU has (APM vol. 2, 11.4.4); loading any other faults. */
u32 pacifica_mxcsr_mask(void)
{
	u32 image[512 / sizeof(u32)] __aligned(16) = {};

	kernel_fpu_begin();
	asm volatile("fxsaveq %0" : "=m" (image));
	kernel_fpu_end();
	return image[28 / sizeof(u32)] ?: 0xffbf;
}

/* XCR0, or 0 if the kernel does not use XSAVE; XSS, if true is returned. They never change. */
bool pacifica_host_xstate(u64 *xcr0, u64 *xss, bool *has_pku)
{
	*xcr0 = cpu_feature_enabled(X86_FEATURE_XSAVE) ? xgetbv(XCR_XFEATURE_ENABLED_MASK) : 0;
	*has_pku = cpu_feature_enabled(X86_FEATURE_OSPKE);
	return cpu_feature_enabled(X86_FEATURE_XSAVES) && !rdmsrq_safe(MSR_IA32_XSS, xss);
}

/*
 * The guest's extended registers in place of the task's. area: an XSAVE image that was checked,
 * without components an FXSAVE image.
 */
void pacifica_fpu_enter(const void *area, u64 components)
{
	kernel_fpu_begin_mask(0);
	if (static_cpu_has_bug(X86_BUG_FXSAVE_LEAK))
		asm volatile("fnclex; emms; fildl %0" : : "m" (*(const u32 *)area));
	if (components)
		asm volatile("xrstor64 (%0)"
			     : : "r" (area), "a" ((u32)components), "d" ((u32)(components >> 32))
			     : "memory");
	else
		asm volatile("fxrstorq %0" : : "m" (*(const char (*)[512])area));
}

void pacifica_fpu_exit(void *area, u64 components)
{
	if (components)
		asm volatile("xsave64 (%0)"
			     : : "r" (area), "a" ((u32)components), "d" ((u32)(components >> 32))
			     : "memory");
	else
		asm volatile("fxsaveq %0" : "=m" (*(char (*)[512])area));
	kernel_fpu_end();
}

/* ---- memory of the kernel ------------------------------------------------------------------ */

/*
 * Zeroed, physically contiguous pages; NULL if there are none.
 *
 * On hosts with SEV-SNP the CPU marks the pages of VMRUN (VMCB, VM_HSAVE_PA) as in use, and one
 * that begins 2 MiB then makes other writes to these 2 MiB fault: an erratum, for which a single
 * page is never such a one. Of any two pages side by side at most the first can be.
 */
void *pacifica_alloc_pages(unsigned int order)
{
	bool choose = order == 0 && pacifica_host_has_snp();
	unsigned long pages = __get_free_pages(GFP_KERNEL_ACCOUNT | __GFP_ZERO, choose ? 1 : order);

	if (choose && pages) {
		split_page(virt_to_page((void *)pages), 1);
		free_page(pages);
		pages += PAGE_SIZE;
	}
	return (void *)pages;
}

void pacifica_free_pages(void *pages, unsigned int order)
{
	free_pages((unsigned long)pages, order);
}

u64 pacifica_phys(const void *address)
{
	return __sme_set(__pa(address));
}

/* ---- hooks --------------------------------------------------------------------------------- */

static int pacifica_syscore_suspend(void *data)
{
	pacifica_cpu_off(NULL);
	return 0;
}

static void pacifica_syscore_resume(void *data)
{
	pacifica_cpu_on(NULL);
}

static void pacifica_syscore_shutdown(void *data)
{
	on_each_cpu(pacifica_cpu_off, NULL, 1);
}

static const struct syscore_ops pacifica_syscore_ops = {
	.suspend = pacifica_syscore_suspend,
	.resume = pacifica_syscore_resume,
	.shutdown = pacifica_syscore_shutdown,
};

static struct syscore pacifica_syscore = {
	.ops = &pacifica_syscore_ops,
};

void pacifica_syscore_register(void)
{
	register_syscore(&pacifica_syscore);
}

void pacifica_syscore_unregister(void)
{
	unregister_syscore(&pacifica_syscore);
}

/* ---- files --------------------------------------------------------------------------------- */

struct file *pacifica_anon_file(const char *name, const struct file_operations *fops, void *priv)
{
	struct file *file = anon_inode_getfile(name, fops, priv, O_RDWR | O_CLOEXEC);

	/* Statistics are read at an offset. */
	if (!IS_ERR(file))
		file->f_mode |= FMODE_PREAD;
	return file;
}

bool pacifica_is_err(const void *p)
{
	return IS_ERR(p);
}

/*
 * Maps `count` pages from the start of the area on; the area may be smaller, never larger. Each
 * mapping holds a reference to its page. The first of them is at page `first` of the file; what is
 * not at its start can only be shared, and not executed.
 */
int pacifica_map_pages(struct vm_area_struct *vma, void *const *pages, unsigned long first,
		       unsigned long count)
{
	unsigned long i, wanted = vma_pages(vma), from = vma->vm_pgoff - first;

	if (from >= count || wanted > count - from)
		return -EINVAL;
	if (first && (!(vma->vm_flags & VM_SHARED) || (vma->vm_flags & VM_EXEC)))
		return -EINVAL;
	vm_flags_set(vma, VM_DONTEXPAND);
	for (i = 0; i < wanted; i++) {
		int ret = vm_insert_page(vma, vma->vm_start + i * PAGE_SIZE,
					 virt_to_page(pages[from + i]));

		if (ret)
			return ret;
	}
	return 0;
}

/* ---- timers -------------------------------------------------------------------------------- */

void pacifica_timer_setup(struct hrtimer *timer, enum hrtimer_restart (*call)(struct hrtimer *))
{
	hrtimer_setup(timer, call, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_HARD);
}

void pacifica_timer_start(struct hrtimer *timer, u64 ns)
{
	hrtimer_start(timer, ns_to_ktime(ns), HRTIMER_MODE_ABS_HARD);
}

void pacifica_timer_cancel(struct hrtimer *timer)
{
	hrtimer_cancel(timer);
}

/* ---- work that a thread of the kernel does ---------------------------------------------------- */

void pacifica_work_setup(struct work_struct *work, work_func_t call)
{
	INIT_WORK(work, call);
}

void pacifica_work_start(struct work_struct *work)
{
	/* On any CPU: it may be long. */
	queue_work(system_dfl_wq, work);
}

void pacifica_work_cancel(struct work_struct *work)
{
	cancel_work_sync(work);
}

u64 pacifica_now(void)
{
	return ktime_get_ns();
}

u64 pacifica_boot_ns(void)
{
	return ktime_get_boottime_ns();
}

void pacifica_real_time(u64 *sec, u32 *nsec)
{
	struct timespec64 t;

	ktime_get_real_ts64(&t);
	*sec = t.tv_sec;
	*nsec = t.tv_nsec;
}

/* ---- locks -------------------------------------------------------------------------------------- */

void pacifica_mutex_init(struct mutex *lock)
{
	mutex_init(lock);
}

/* -EINTR if the thread is to die. */
int pacifica_mutex_lock(struct mutex *lock)
{
	return mutex_lock_killable(lock);
}

/* Does not wait. While `outer` is held any number of the same kind may be. */
bool pacifica_mutex_trylock_inside(struct mutex *lock, struct mutex *outer)
{
	return mutex_trylock_nest_lock(lock, outer);
}

void pacifica_mutex_unlock(struct mutex *lock)
{
	mutex_unlock(lock);
}

void pacifica_spin_init(raw_spinlock_t *lock, const char *name, struct lock_class_key *key)
{
	raw_spin_lock_init(lock);
	lockdep_set_class_and_name(lock, key, name);
}

unsigned long pacifica_spin_lock(raw_spinlock_t *lock)
{
	unsigned long flags;

	raw_spin_lock_irqsave(lock, flags);
	return flags;
}

void pacifica_spin_unlock(raw_spinlock_t *lock, unsigned long flags)
{
	raw_spin_unlock_irqrestore(lock, flags);
}

/* ---- debugfs ----------------------------------------------------------------------------------- */

/*
 * Not with the kernel crate's debugfs: its files do not hold the module, so one that is open could
 * outlive it.
 */
static int pacifica_stats_open(struct inode *inode, struct file *file)
{
	return single_open(file, pacifica_stats_show, inode->i_private);
}

static const struct file_operations pacifica_stats_fops = {
	.owner = THIS_MODULE,
	.open = pacifica_stats_open,
	.read = seq_read,
	.llseek = seq_lseek,
	.release = single_release,
};

void *pacifica_debugfs_dir(const char *name)
{
	return debugfs_create_dir(name, NULL);
}

void *pacifica_debugfs_file(void *dir, const char *name, void *stats)
{
	return debugfs_create_file(name, 0400, dir, stats, &pacifica_stats_fops);
}

/* Returns when its readers are done. */
void pacifica_debugfs_remove(void *entry)
{
	debugfs_remove(entry);
}

/* ---- event descriptors ----------------------------------------------------------------------- */

struct pacifica_poll {
	poll_table table;
	wait_queue_entry_t *entry;
	int error;
};

static void pacifica_poll_queue(struct file *file, wait_queue_head_t *queue, poll_table *table)
{
	struct pacifica_poll *poll = container_of(table, struct pacifica_poll, table);

	poll->error = add_wait_queue_priority_exclusive(queue, poll->entry);
}

/*
 * Has `call` called, with interrupts off, whenever the eventfd of this descriptor is written;
 * 1 if it was written already. -EBADF if the descriptor has become another file meanwhile;
 * -EBUSY if another waiter, be it another VM, has the eventfd for an interrupt line.
 */
int pacifica_eventfd_wait(int fd, struct eventfd_ctx *ctx, wait_queue_entry_t *entry,
			  wait_queue_func_t call)
{
	struct pacifica_poll poll = { .entry = entry };
	struct eventfd_ctx *now;
	struct file *file = eventfd_fget(fd);
	__poll_t events;

	if (IS_ERR(file))
		return PTR_ERR(file);
	now = eventfd_ctx_fileget(file);
	if (now != ctx) {
		if (!IS_ERR(now))
			eventfd_ctx_put(now);
		fput(file);
		return -EBADF;
	}
	eventfd_ctx_put(now);
	init_waitqueue_func_entry(entry, call);
	init_poll_funcptr(&poll.table, pacifica_poll_queue);
	events = vfs_poll(file, &poll.table);
	fput(file);
	return poll.error ?: !!(events & EPOLLIN);
}

/* In the call: 1 if there was something to read, which is read now; 2 if the eventfd is closed. */
int pacifica_eventfd_take(struct eventfd_ctx *ctx, void *key)
{
	u64 count;

	if (key_to_poll(key) & EPOLLIN) {
		eventfd_ctx_do_read(ctx, &count);
		return 1;
	}
	return key_to_poll(key) & EPOLLHUP ? 2 : 0;
}

/* Returns when `call` will not be called any more. */
void pacifica_eventfd_unwait(struct eventfd_ctx *ctx, wait_queue_entry_t *entry)
{
	u64 count;

	eventfd_ctx_remove_wait_queue(ctx, entry, &count);
}

void pacifica_eventfd_signal(struct eventfd_ctx *ctx)
{
	eventfd_signal(ctx);
}

/* ---- devices of VFIO ------------------------------------------------------------------------ */

/* Asks VFIO about a file; "no" if VFIO is not loaded, and so has no files. */
#define ASK_VFIO(question, file) ({			\
	typeof(&question) ask = symbol_get(question);	\
	bool answer = ask && ask(file);			\
							\
	if (ask)					\
		symbol_put(question);			\
	answer;						\
})

/* The file behind a descriptor, with a reference; NULL if there is none. */
struct file *pacifica_file_get(int fd)
{
	return fget(fd);
}

void pacifica_file_put(struct file *file)
{
	fput(file);
}

bool pacifica_is_vfio(struct file *file)
{
	return ASK_VFIO(vfio_file_is_valid, file);
}

/* Whether the devices behind the file see what the CPUs have in their caches, always. */
bool pacifica_is_coherent(struct file *file)
{
	return ASK_VFIO(vfio_file_enforced_coherent, file);
}

/* Writes back and empties the caches of all CPUs. */
void pacifica_wbinvd(void)
{
	wbinvd_on_all_cpus();
}
