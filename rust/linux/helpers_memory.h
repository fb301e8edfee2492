/* SPDX-License-Identifier: GPL-2.0-only */
/* Functions between the C and the Rust half of guest memory; described in helpers_memory.c. */
#ifndef PACIFICA_HELPERS_MEMORY_H
#define PACIFICA_HELPERS_MEMORY_H

#include <linux/types.h>

struct mm_struct;
struct mmu_notifier_range;
struct page;
struct srcu_struct;

int pacifica_srcu_init(struct srcu_struct *srcu);
int pacifica_srcu_lock(struct srcu_struct *srcu);
void pacifica_srcu_unlock(struct srcu_struct *srcu, int index);
struct mm_struct *pacifica_current_mm(void);
bool pacifica_access_ok(unsigned long address, unsigned long bytes);
u64 pacifica_page_for_guest(struct page *page, bool write);
u64 pacifica_page_for_guest_ahead(struct page *page, bool write);
int pacifica_frame(struct mm_struct *mm, unsigned long address, bool write, u64 *entry,
		   bool *writable);
void pacifica_account_table(const void *table, int count);
void pacifica_report_poison(unsigned long address);
bool pacifica_only_write_goes(const struct mmu_notifier_range *range);
void pacifica_put_pages(struct page **pages, unsigned int count);
unsigned int pacifica_host_level(struct mm_struct *mm, unsigned long address);
unsigned int pacifica_host_paging_levels(void);
u64 pacifica_host_address_limit(void);
int pacifica_read_user(void *to, unsigned long from, unsigned long bytes, bool may_sleep);
int pacifica_write_user(unsigned long to, const void *from, unsigned long bytes, bool may_sleep);
int pacifica_write_page(unsigned long to, const void *page);
int pacifica_read_page(void *page, unsigned long from);
void *pacifica_copy_of_page(unsigned long from, int *error);
int pacifica_cmpxchg_user(unsigned long address, unsigned int bytes, u64 *old, u64 new,
			  bool may_sleep);

#endif
