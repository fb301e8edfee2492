// SPDX-License-Identifier: GPL-2.0-only
/*
 * What guest memory needs from the kernel and Rust cannot reach: inline functions and macros.
 */
#include <linux/instrumented.h>
#include <linux/mem_encrypt.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/pgtable.h>
#include <linux/sched.h>
#include <linux/srcu.h>
#include <linux/uaccess.h>
#include <linux/vmstat.h>
#include <asm/cpuid/api.h>

#include "helpers_memory.h"

int pacifica_srcu_init(struct srcu_struct *srcu)
{
	return init_srcu_struct(srcu);
}

int pacifica_srcu_lock(struct srcu_struct *srcu)
{
	return srcu_read_lock(srcu);
}

void pacifica_srcu_unlock(struct srcu_struct *srcu, int index)
{
	srcu_read_unlock(srcu, index);
}

struct mm_struct *pacifica_current_mm(void)
{
	return current->mm;
}

bool pacifica_access_ok(unsigned long address, unsigned long bytes)
{
	return access_ok((void __user *)address, bytes);
}

/* Physical address as a page-table entry wants it: with the encryption bit, where there is one. */
static u64 entry_address(struct page *page)
{
	return __sme_set(page_to_phys(page));
}

/*
 * The page is about to become reachable for the guest: returns its address. The guest's writes
 * leave no trace in the host's page tables, so a page that it may write to counts as dirty from now
 * on.
 *
 * The caller holds a reference and the memory's lock, and no invalidation has passed since the
 * page was looked up: then the page is mapped by the process, and its mapping cannot go away.
 */
u64 pacifica_page_for_guest(struct page *page, bool write)
{
	if (write) {
		struct folio *folio = page_folio(page);

		if (!folio_test_dirty(folio))
			folio_mark_dirty(folio);
	}
	return entry_address(page);
}

/*
 * The same for a page that the guest has not asked for: 0 if mapping it ahead would have a price,
 * which is to make a page dirty that the host could otherwise drop.
 */
u64 pacifica_page_for_guest_ahead(struct page *page, bool write)
{
	struct folio *folio = page_folio(page);

	if (write && !folio_test_dirty(folio)) {
		if (!folio_test_anon(folio) || !folio_test_swapbacked(folio))
			return 0;
		folio_mark_dirty(folio);
	}
	return entry_address(page);
}

/*
 * What get_user_pages() does not give: the address behind a mapping without struct page, a device's
 * memory for example. It stays true as long as no invalidation begins, for there is no reference.
 * May sleep. -EAGAIN if it was not there and may be now.
 */
int pacifica_frame(struct mm_struct *mm, unsigned long address, bool write, u64 *entry,
		   bool *writable)
{
	struct follow_pfnmap_args args = { .address = address };
	bool unlocked = false;
	int error = -EFAULT;

	mmap_read_lock(mm);
	args.vma = vma_lookup(mm, address);
	if (!args.vma || !(args.vma->vm_flags & (VM_IO | VM_PFNMAP)))
		goto out;
	error = follow_pfnmap_start(&args);
	if (!error) {
		*writable = args.writable;
		*entry = PFN_PHYS(args.pfn) | (pgprot_val(args.pgprot) & sme_me_mask);
		follow_pfnmap_end(&args);
	}
	if (error || (write && !*writable)) {
		error = fixup_user_fault(mm, address, write ? FAULT_FLAG_WRITE : 0, &unlocked);
		if (!error)
			error = -EAGAIN;
	}
out:
	mmap_read_unlock(mm);
	return error;
}

/* Tables count as such in /proc/meminfo (SecPageTables) and in the cgroup that pays for them. */
void pacifica_account_table(const void *table, int count)
{
	mod_lruvec_page_state(virt_to_page(table), NR_SECONDARY_PAGETABLE, count);
}

void pacifica_put_pages(struct page **pages, unsigned int count)
{
	while (count--)
		put_page(*pages++);
}

/*
 * Whether the host only takes the right to write to single pages away: fork(2) does, and the
 * writing back of shared files. Each page stays where it is, and readable; what becomes of it later
 * has an event of its own.
 */
bool pacifica_only_write_goes(const struct mmu_notifier_range *range)
{
	return range->event == MMU_NOTIFY_PROTECTION_PAGE;
}

/*
 * The calling thread has met poisoned memory at this address: it gets the SIGBUS that an access of
 * its own would bring, with the size of what is lost.
 */
void pacifica_report_poison(unsigned long address)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	short shift = PAGE_SHIFT;

	mmap_read_lock(mm);
	vma = find_vma(mm, address);
	if (vma && vma->vm_start <= address && vma->vm_ops && vma->vm_ops->pagesize)
		shift = ilog2(vma->vm_ops->pagesize(vma));
	mmap_read_unlock(mm);
	send_sig_mceerr(BUS_MCEERR_AR, (void __user *)address, shift, current);
}

/*
 * How large the page is that the process has at this address: 1 for 4 KiB, 2 for 2 MiB, 3 for
 * 1 GiB. Stays true while the memory's lock is held and no invalidation is under way.
 */
unsigned int pacifica_host_level(struct mm_struct *mm, unsigned long address)
{
	unsigned int level = 1;
	unsigned long flags;
	pgd_t *pgd;
	p4d_t *p4d;
	pud_t *pud, pud_entry;
	pmd_t pmd_entry;

	/* Interrupts off keep the tables of the process from being freed under our eyes. */
	local_irq_save(flags);
	pgd = pgd_offset(mm, address);
	if (!pgd_present(READ_ONCE(*pgd)))
		goto out;
	p4d = p4d_offset(pgd, address);
	if (!p4d_present(READ_ONCE(*p4d)))
		goto out;
	pud = pud_offset(p4d, address);
	pud_entry = READ_ONCE(*pud);
	if (!pud_present(pud_entry))
		goto out;
	if (pud_leaf(pud_entry)) {
		level = 3;
		goto out;
	}
	pmd_entry = READ_ONCE(*pmd_offset(&pud_entry, address));
	if (pmd_present(pmd_entry) && pmd_leaf(pmd_entry))
		level = 2;
out:
	local_irq_restore(flags);
	return level;
}

/* Nested tables have as many levels as the host's own. */
unsigned int pacifica_host_paging_levels(void)
{
	return pgtable_l5_enabled() ? 5 : 4;
}

/* The first physical address that this CPU cannot have. */
u64 pacifica_host_address_limit(void)
{
	unsigned int bits = cpuid_eax(0x80000008) & 0xff;

	return 1ull << clamp(bits, 32u, 52u);
}

#define READ_ALL(type) \
	for (; bytes >= sizeof(type); bytes -= sizeof(type)) {				\
		unsafe_get_user(*(type *)to, (const type __user *)user, failed);	\
		to += sizeof(type);							\
		user += sizeof(type);							\
	}

/* What copy_from_user_nofault() does, without its checks of kernel objects: the length is ours. */
static int read_present(void *to, const void __user *user, unsigned long bytes)
{
	pagefault_disable();
	if (!user_access_begin(user, bytes))
		goto out;
	READ_ALL(u64);
	READ_ALL(u16);
	READ_ALL(u8);
	user_access_end();
	pagefault_enable();
	return 0;
failed:
	user_access_end();
out:
	pagefault_enable();
	return -EFAULT;
}

int pacifica_read_user(void *to, unsigned long from, unsigned long bytes, bool may_sleep)
{
	const void __user *user = (const void __user *)from;

	if (may_sleep)
		return copy_from_user(to, user, bytes) ? -EFAULT : 0;
	return read_present(to, user, bytes);
}

int pacifica_write_user(unsigned long to, const void *from, unsigned long bytes, bool may_sleep)
{
	void __user *user = (void __user *)to;

	if (may_sleep)
		return copy_to_user(user, from, bytes) ? -EFAULT : 0;
	return copy_to_user_nofault(user, from, bytes) ? -EFAULT : 0;
}

/*
 * A page of the kernel's own for one of the current process. Without the checks of copy_to_user(), which
 * find out what the kernel's memory belongs to: that costs as much as a quarter of the copy.
 */
int pacifica_write_page(unsigned long to, const void *page)
{
	void __user *user = (void __user *)to;

	might_fault();
	if (!access_ok(user, PAGE_SIZE))
		return -EFAULT;
	instrument_copy_to_user(user, page, PAGE_SIZE);
	return raw_copy_to_user(user, page, PAGE_SIZE) ? -EFAULT : 0;
}

/* The other way. */
int pacifica_read_page(void *page, unsigned long from)
{
	const void __user *user = (const void __user *)from;
	unsigned long left;

	might_fault();
	if (!access_ok(user, PAGE_SIZE))
		return -EFAULT;
	barrier_nospec();
	instrument_copy_from_user_before(page, user, PAGE_SIZE);
	left = raw_copy_from_user(page, user, PAGE_SIZE);
	instrument_copy_from_user_after(page, user, PAGE_SIZE, left);
	return left ? -EFAULT : 0;
}

/* A page with the content of one of the current process, or NULL, with *error: so it need not be cleared. */
void *pacifica_copy_of_page(unsigned long from, int *error)
{
	void *page = (void *)__get_free_page(GFP_KERNEL_ACCOUNT);

	*error = page ? pacifica_read_page(page, from) : -ENOMEM;
	if (!*error)
		return page;
	free_page((unsigned long)page);
	return NULL;
}

#define CMPXCHG_USER(type) ({						\
	type __was = *old;						\
	int __error = __try_cmpxchg_user((type __user *)address, &__was,\
					 (type)new, fault_##type);	\
	*old = __was;							\
	__error;							\
})

/* 0 if memory was *old and is new now; 1 if it was not, and *old is what it was; -EFAULT. */
int pacifica_cmpxchg_user(unsigned long address, unsigned int bytes, u64 *old, u64 new,
			  bool may_sleep)
{
	int error = -EINVAL;

	if (!access_ok((void __user *)address, bytes))
		return -EFAULT;
	if (!may_sleep)
		pagefault_disable();
	switch (bytes) {
	case 1:
		error = CMPXCHG_USER(u8);
		break;
	case 2:
		error = CMPXCHG_USER(u16);
		break;
	case 4:
		error = CMPXCHG_USER(u32);
		break;
	case 8:
		error = CMPXCHG_USER(u64);
		break;
	}
	if (!may_sleep)
		pagefault_enable();
	return error;
}
