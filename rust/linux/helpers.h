/* SPDX-License-Identifier: GPL-2.0-only */
/* Functions between the C and the assembly half of the glue and its Rust half. */
#ifndef PACIFICA_HELPERS_H
#define PACIFICA_HELPERS_H

#include <linux/types.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

struct eventfd_ctx;
struct file;
struct file_operations;
struct hrtimer;
struct lock_class_key;
struct mutex;
struct rcuwait;
struct seq_file;
struct task_struct;
struct vm_area_struct;

/* Extended state that the guest may have otherwise than the host. vmrun.S and `Switch` in fpu.rs know its layout. */
struct pacifica_switch {
	u32 what;		/* A bit each: PKRU, XCR0, XSS. */
	u32 guest_pkru;		/* Before, and after. */
	u32 host_pkru;
	u64 guest_xcr0;
	u64 host_xcr0;
	u64 host_xss;		/* The guest's is 0. */
};

/* vmrun.S */
int pacifica_vmrun(u64 vmcb, u64 host_save, u64 *gpr);
int pacifica_vmrun_switching(u64 vmcb, u64 host_save, u64 *gpr, struct pacifica_switch *what);

/* host.rs: SVM on and off on the calling CPU. */
void pacifica_cpu_on(void *unused);
void pacifica_cpu_off(void *unused);

/* stats.rs: writes the counters of a VM. */
int pacifica_stats_show(struct seq_file *file, void *unused);

/* helpers.c; described there. */
void *pacifica_debugfs_dir(const char *name);
void *pacifica_debugfs_file(void *dir, const char *name, void *stats);
void pacifica_debugfs_remove(void *entry);
void pacifica_save_host(u64 page);
int pacifica_enter_guest(u64 vmcb, u64 host_save, u64 *gpr);
int pacifica_enter_guest_switching(u64 vmcb, u64 host_save, u64 *gpr,
				   struct pacifica_switch *what);
void pacifica_guest_timing_enter(void);
void pacifica_guest_timing_exit(void);
void pacifica_guest_was_here(void);
void pacifica_reduce_speculation(bool on);
void pacifica_flush_predictors(void);
void pacifica_irq_disable(void);
void pacifica_irq_enable(void);
unsigned int pacifica_cpu(void);
bool pacifica_work_pending(void);
int pacifica_handle_work(void);
bool pacifica_signal_pending(void);
void pacifica_yield(void);
u64 pacifica_run_delay(void);
bool pacifica_may_poll(void);
struct task_struct *pacifica_current(void);
bool pacifica_yield_to(struct task_struct *const *runner);
unsigned int pacifica_online_cpus(void);
void pacifica_kick_cpu(unsigned int cpu);
int pacifica_masks_alloc(void);
void pacifica_masks_free(void);
void *pacifica_mask_begin(void);
void pacifica_mask_add(void *mask, unsigned int cpu);
void pacifica_mask_interrupt(void *mask);
int pacifica_wait(struct rcuwait *wait, bool (*ready)(void *), void *arg);
int pacifica_pid(void);
int pacifica_sigmask_set(const sigset_t *set, sigset_t *old);
void pacifica_signal_set(u64 bits, sigset_t *set);
bool pacifica_may_report(void);
int pacifica_rdmsr(u32 msr, u64 *value);
int pacifica_wrmsr(u32 msr, u64 value);
u64 pacifica_rdtsc(void);
bool pacifica_real_at_tsc(u64 *tsc, u64 *real);
u32 pacifica_tsc_khz(void);
bool pacifica_tsc_stable(void);
bool pacifica_host_is_amd(void);
bool pacifica_host_has_svm(void);
bool pacifica_host_has_snp(void);
bool pacifica_host_has_ibpb(void);
u32 pacifica_host_mitigations(void);
void pacifica_cpuid(u32 leaf, u32 subleaf, u32 *regs);
void pacifica_machine_check(void);
void pacifica_debug_enter(const u64 *guest, u64 debugctl, u64 *host);
void pacifica_debug_exit(const u64 *host, u64 debugctl, bool dr6);
u32 pacifica_mxcsr_mask(void);
bool pacifica_host_xstate(u64 *xcr0, u64 *xss, bool *has_pku);
void pacifica_fpu_enter(const void *area, u64 components);
void pacifica_fpu_exit(void *area, u64 components);
void *pacifica_alloc_pages(unsigned int order);
void pacifica_free_pages(void *pages, unsigned int order);
u64 pacifica_phys(const void *address);
void pacifica_syscore_register(void);
void pacifica_syscore_unregister(void);
struct file *pacifica_anon_file(const char *name, const struct file_operations *fops, void *priv);
bool pacifica_is_err(const void *p);
int pacifica_map_pages(struct vm_area_struct *vma, void *const *pages,
		       unsigned long first, unsigned long count);
void pacifica_timer_setup(struct hrtimer *timer, enum hrtimer_restart (*call)(struct hrtimer *));
void pacifica_timer_start(struct hrtimer *timer, u64 ns);
void pacifica_timer_cancel(struct hrtimer *timer);
void pacifica_work_setup(struct work_struct *work, work_func_t call);
void pacifica_work_start(struct work_struct *work);
void pacifica_work_cancel(struct work_struct *work);
u64 pacifica_now(void);
u64 pacifica_boot_ns(void);
void pacifica_real_time(u64 *sec, u32 *nsec);
void pacifica_mutex_init(struct mutex *lock);
int pacifica_mutex_lock(struct mutex *lock);
bool pacifica_mutex_trylock_inside(struct mutex *lock, struct mutex *outer);
void pacifica_mutex_unlock(struct mutex *lock);
void pacifica_spin_init(raw_spinlock_t *lock, const char *name, struct lock_class_key *key);
unsigned long pacifica_spin_lock(raw_spinlock_t *lock);
void pacifica_spin_unlock(raw_spinlock_t *lock, unsigned long flags);
int pacifica_eventfd_wait(int fd, struct eventfd_ctx *ctx, wait_queue_entry_t *entry,
			  wait_queue_func_t call);
int pacifica_eventfd_take(struct eventfd_ctx *ctx, void *key);
void pacifica_eventfd_unwait(struct eventfd_ctx *ctx, wait_queue_entry_t *entry);
void pacifica_eventfd_signal(struct eventfd_ctx *ctx);
struct file *pacifica_file_get(int fd);
void pacifica_file_put(struct file *file);
bool pacifica_is_vfio(struct file *file);
bool pacifica_is_coherent(struct file *file);
void pacifica_wbinvd(void);

/* trace.c */
bool pacifica_tracing(void);
void pacifica_trace_exit(u32 vcpu, u64 exit_code, u64 exit_info1, u64 exit_info2, u64 rip);
void pacifica_trace_inject(u32 vcpu, u64 event_inj);

#endif
