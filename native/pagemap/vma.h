/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The mappings of a process whose pages the page map has to name. */
#ifndef REKERNEL_VMA_H
#define REKERNEL_VMA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct vma {
	uint64_t start;
	uint64_t end;
};

struct vma_list {
	struct vma *v;
	size_t n;
	size_t cap;
	pid_t nspid;		/* the PID in its own namespace, from NSpid: */
};

/*
 * Private anonymous mappings of pid, sorted by address, without those that CRIU
 * does not treat as lazy: locked and huge-TLB memory, the vdso and its data.
 *
 * populated_only says that reading the page map of a huge empty mapping is slow
 * on this kernel: if there is one, ask smaps which mappings have pages at all.
 *
 * False if there is no such process any more; the list is empty then.  So is that
 * of a process without memory (zombie, kernel thread).
 */
bool vma_list_read(struct vma_list *list, pid_t pid, bool populated_only);
void vma_list_free(struct vma_list *list);

/* One mapping line of maps or smaps; false if it is none or does not qualify. */
bool vma_parse_line(const char *line, struct vma *vma, bool *qualifies);

#endif
