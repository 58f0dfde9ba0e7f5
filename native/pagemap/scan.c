// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * PAGEMAP_SCAN (Linux 6.7) skips empty page tables quickly but names no frames;
 * /proc/PID/pagemap names frames but needs eight bytes for every hole.  So the
 * first finds the populated ranges and the second is read only there.
 */
#define _GNU_SOURCE
#include "scan.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "util.h"

/* Bits of a /proc/PID/pagemap entry: Documentation/admin-guide/mm/pagemap.rst */
#define PAGEMAP_PFN		((1ull << 55) - 1)
#define PAGEMAP_GUARD		(1ull << 58)	/* Linux 6.15 */
#define PAGEMAP_FILE_OR_SHARED	(1ull << 61)
#define PAGEMAP_SWAP		(1ull << 62)
#define PAGEMAP_PRESENT		(1ull << 63)
/* Bit of a /proc/kpageflags entry, same document. */
#define KPF_ZERO_PAGE		24

/* Debian 12's headers do not know PAGEMAP_SCAN: include/uapi/linux/fs.h */
struct page_range_found {
	uint64_t start;
	uint64_t end;
	uint64_t categories;
};

struct scan_arg {
	uint64_t size;
	uint64_t flags;
	uint64_t start;
	uint64_t end;
	uint64_t walk_end;
	uint64_t vec;
	uint64_t vec_len;
	uint64_t max_pages;
	uint64_t category_inverted;
	uint64_t category_mask;
	uint64_t category_anyof_mask;
	uint64_t return_mask;
};

#define SCAN_IOCTL	_IOWR('f', 16, struct scan_arg)
#define SCAN_FILE	(1u << 2)
#define SCAN_PRESENT	(1u << 3)
#define SCAN_SWAPPED	(1u << 4)
#define SCAN_PFNZERO	(1u << 5)

#define ENTRIES		65536	/* 256 MiB of address space in one read */
#define FOUND		4096
/* Reading this many absent entries costs less than another system call. */
#define GAP_PAGES	64
#define SETTLE_TRIES	5
#define SETTLE_US	2000

bool region_parse(struct region *region, const char *spec)
{
	const char *p = spec;

	memset(region, 0, sizeof(*region));
	if (!strcmp(spec, "none"))
		return true;
	for (;;) {
		uint64_t start, end;

		if (!parse_u64(p, &p, &start) || *p++ != ':' || !parse_u64(p, &p, &end))
			return false;
		if (start >= end || start % PM_PAGE_SIZE || end % PM_PAGE_SIZE)
			return false;
		region->ranges = xrealloc(region->ranges, region->n + 1, sizeof(*region->ranges));
		region->ranges[region->n++] = (struct pfn_range){
			start >> PM_PAGE_SHIFT, end >> PM_PAGE_SHIFT,
		};
		if (!*p)
			return true;
		if (*p++ != ',')
			return false;
	}
}

static bool region_has(const struct region *region, uint64_t pfn)
{
	size_t i;

	for (i = 0; i < region->n; i++)
		if (pfn >= region->ranges[i].first && pfn < region->ranges[i].end)
			return true;
	return false;
}

void run_list_add(struct run_list *list, uint64_t vaddr, uint64_t pfn, uint64_t npages,
		  uint32_t flags)
{
	struct pm_run *last = list->n ? &list->v[list->n - 1] : NULL;

	if (last && last->flags == flags && last->pfn + last->npages == pfn &&
	    last->vaddr + (uint64_t)last->npages * PM_PAGE_SIZE == vaddr &&
	    npages <= UINT32_MAX - last->npages) {
		last->npages += npages;
		return;
	}
	if (list->n == list->cap) {
		list->cap = list->cap ? 2 * list->cap : 256;
		list->v = xrealloc(list->v, list->cap, sizeof(*list->v));
	}
	list->v[list->n++] = (struct pm_run){ vaddr, pfn, (uint32_t)npages, flags };
}

/* -1 if there is no such process any more. */
static int open_pagemap(pid_t pid)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		if (errno == ENOENT || errno == ESRCH)
			return -1;
		die_errno("cannot open %s", path);
	}
	return fd;
}

/* A private page that was only ever read is the kernel's shared page of zeros. */
static uint64_t find_zero_pfn(int pagemap)
{
	uint64_t entry = 0;
	volatile char *page;

	page = mmap(NULL, PM_PAGE_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		die_errno("cannot map a page");
	(void)*page;
	if (pread(pagemap, &entry, sizeof(entry), (off_t)((uintptr_t)page / PM_PAGE_SIZE * 8)) !=
	    sizeof(entry))
		die_errno("cannot read /proc/self/pagemap");
	munmap((void *)page, PM_PAGE_SIZE);
	if (!(entry & PAGEMAP_PRESENT) || !(entry & PAGEMAP_PFN))
		die(EXIT_NOT_PERMITTED,
		    "the kernel hides page frame numbers: CAP_SYS_ADMIN is needed");
	return entry & PAGEMAP_PFN;
}

void scanner_init(struct scanner *sc, const struct region *region, bool frozen)
{
	int pagemap = open_pagemap(getpid());
	struct page_range_found found;
	struct scan_arg arg = {
		.size = sizeof(arg),
		.start = (uintptr_t)&found & ~(PM_PAGE_SIZE - 1ull),
		.vec = (uintptr_t)&found,
		.vec_len = 1,
		.category_anyof_mask = SCAN_PRESENT,
		.return_mask = SCAN_PRESENT,
	};

	arg.end = arg.start + PM_PAGE_SIZE;
	sc->region = region;
	sc->frozen = frozen;
	sc->has_pagemap_scan = !getenv("REKERNEL_NO_PAGEMAP_SCAN") &&
			       ioctl(pagemap, SCAN_IOCTL, &arg) >= 0;
	sc->zero_pfn = find_zero_pfn(pagemap);
	sc->kpageflags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	close(pagemap);
}

void scan_buffer_init(struct scan_buffer *buf)
{
	buf->entries = xcalloc(ENTRIES, sizeof(*buf->entries));
	buf->found = xcalloc(FOUND, sizeof(*buf->found));
}

void scan_buffer_free(struct scan_buffer *buf)
{
	free(buf->entries);
	free(buf->found);
}

static void add_entry(const struct scanner *sc, struct slice *slice, uint64_t vaddr, uint64_t entry)
{
	uint64_t pfn = entry & PAGEMAP_PFN;

	if (entry & PAGEMAP_SWAP) {
		/* A guard marker is no page, but is stored the way a swap entry is. */
		slice->swapped_pages += !(entry & PAGEMAP_GUARD);
		return;
	}
	if (!(entry & PAGEMAP_PRESENT) || entry & PAGEMAP_FILE_OR_SHARED || pfn == sc->zero_pfn)
		return;
	if (!pfn)
		die(EXIT_NOT_PERMITTED,
		    "the kernel hides page frame numbers: CAP_SYS_ADMIN is needed");
	if (region_has(sc->region, pfn)) {
		slice->pages++;
		run_list_add(&slice->runs, vaddr, pfn, 1, 0);
	} else {
		slice->stray_pages++;
		run_list_add(&slice->runs, vaddr, pfn, 1, PM_RUN_STRAY);
	}
}

static void read_range(const struct scanner *sc, struct scan_buffer *buf, int pagemap, pid_t pid,
		       struct slice *slice, uint64_t start, uint64_t end)
{
	while (start < end) {
		uint64_t want = min_u64((end - start) / PM_PAGE_SIZE, ENTRIES);
		ssize_t i, n;

		n = pread(pagemap, buf->entries, want * 8, (off_t)(start / PM_PAGE_SIZE * 8));
		if (n < 0)
			die_errno("cannot read /proc/%d/pagemap", pid);
		if (!n)
			return;	/* a zombie, or beyond the address space */
		n /= 8;
		for (i = 0; i < n; i++)
			if (buf->entries[i] & (PAGEMAP_PRESENT | PAGEMAP_SWAP))
				add_entry(sc, slice, start + i * PM_PAGE_SIZE, buf->entries[i]);
		start += n * PM_PAGE_SIZE;
	}
}

static void scan_populated(const struct scanner *sc, struct scan_buffer *buf, int pagemap,
			   pid_t pid, struct slice *slice)
{
	uint64_t from = 0, to = 0;
	struct scan_arg arg = {
		.size = sizeof(arg),
		.start = slice->start,
		.end = slice->end,
		.vec = (uintptr_t)buf->found,
		.vec_len = FOUND,
		.category_inverted = SCAN_FILE | SCAN_PFNZERO,
		.category_mask = SCAN_FILE | SCAN_PFNZERO,
		.category_anyof_mask = SCAN_PRESENT | SCAN_SWAPPED,
		.return_mask = SCAN_PRESENT,
	};

	while (arg.start < arg.end) {
		uint64_t next;
		int i, n;

		arg.walk_end = 0;
		n = ioctl(pagemap, SCAN_IOCTL, &arg);
		if (n < 0) {
			/* The memory is gone with a process that has exited. */
			if (errno == ESRCH || errno == EFAULT)
				break;
			die_errno("cannot scan /proc/%d/pagemap", pid);
		}
		for (i = 0; i < n; i++) {
			const struct page_range_found *f = &buf->found[i];

			if (to && f->start - to <= GAP_PAGES * PM_PAGE_SIZE) {
				to = f->end;
				continue;
			}
			read_range(sc, buf, pagemap, pid, slice, from, to);
			from = f->start;
			to = f->end;
		}
		/*
		 * After more than 512 ranges walk_end is that of an earlier
		 * round inside the kernel (seen on 6.18), so ranges that were
		 * reported already would come again.
		 */
		next = max_u64(arg.walk_end, n ? buf->found[n - 1].end : 0);
		if (next <= arg.start)
			break;
		arg.start = next;
	}
	read_range(sc, buf, pagemap, pid, slice, from, to);
}

/*
 * The huge page of zeros is not zero_pfn, and PAGEMAP_SCAN does not call it
 * PFNZERO on every kernel.  It is never movable, hence never in the region, so
 * only strays need the look into kpageflags.
 */
static void drop_zero_pages(const struct scanner *sc, struct scan_buffer *buf, struct slice *slice)
{
	struct run_list kept = { 0 };
	size_t i;

	if (sc->kpageflags < 0 || !slice->stray_pages)
		return;
	for (i = 0; i < slice->runs.n; i++) {
		const struct pm_run *run = &slice->runs.v[i];
		uint32_t done = 0;

		if (!(run->flags & PM_RUN_STRAY)) {
			run_list_add(&kept, run->vaddr, run->pfn, run->npages, run->flags);
			continue;
		}
		while (done < run->npages) {
			uint64_t want = min_u64(run->npages - done, ENTRIES);
			ssize_t k, n;

			n = pread(sc->kpageflags, buf->entries, want * 8,
				  (off_t)((run->pfn + done) * 8));
			/* Copying a page of zeros by mistake is harmless. */
			if (n < 0)
				n = 0;
			memset((char *)buf->entries + n, 0, want * 8 - n);
			for (k = 0; k < (ssize_t)want; k++) {
				if (buf->entries[k] >> KPF_ZERO_PAGE & 1)
					slice->stray_pages--;
				else
					run_list_add(&kept, run->vaddr + (done + k) * PM_PAGE_SIZE,
						     run->pfn + done + k, 1, run->flags);
			}
			done += want;
		}
	}
	free(slice->runs.v);
	slice->runs = kept;
}

bool scan_slice(const struct scanner *sc, struct scan_buffer *buf, pid_t pid, struct slice *slice)
{
	int pagemap = open_pagemap(pid);
	int tries = 0;

	if (pagemap < 0)
		return false;
	for (;;) {
		slice->runs.n = 0;
		slice->pages = 0;
		slice->stray_pages = 0;
		slice->swapped_pages = 0;
		if (sc->has_pagemap_scan)
			scan_populated(sc, buf, pagemap, pid, slice);
		else
			read_range(sc, buf, pagemap, pid, slice, slice->start, slice->end);
		/* A migration in progress looks like swap and is over soon. */
		if (!sc->frozen || !slice->swapped_pages || ++tries == SETTLE_TRIES)
			break;
		usleep(SETTLE_US);
	}
	close(pagemap);
	drop_zero_pages(sc, buf, slice);
	return true;
}
