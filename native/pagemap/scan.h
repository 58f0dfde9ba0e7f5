/* SPDX-License-Identifier: GPL-2.0-or-later */
/* From virtual ranges of a process to runs of physical pages. */
#ifndef REKERNEL_SCAN_H
#define REKERNEL_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "pagemap_format.h"

struct pfn_range {
	uint64_t first;
	uint64_t end;
};

/* The carry region: where pages may stay. */
struct region {
	struct pfn_range *ranges;
	size_t n;
};

/* "START:END[,START:END...]" in bytes, or "none"; false if malformed. */
bool region_parse(struct region *region, const char *spec);

struct run_list {
	struct pm_run *v;
	size_t n;
	size_t cap;
};

/* A piece of one mapping: the unit of work of a thread. */
struct slice {
	uint64_t start;
	uint64_t end;
	bool continues;		/* the slice before it is of the same mapping */
	struct run_list runs;
	uint64_t pages;		/* in the region */
	uint64_t stray_pages;	/* elsewhere: their runs have PM_RUN_STRAY */
	uint64_t swapped_pages;	/* in swap, or on their way to another frame */
};

/* What the kernel can do, found out once before the threads start. */
struct scanner {
	const struct region *region;
	bool has_pagemap_scan;
	uint64_t zero_pfn;
	int kpageflags;		/* fd or -1 */
	/*
	 * Nobody runs, so nobody may be gone, and pages that are being migrated will
	 * arrive.  Of running processes some end meanwhile: they have no pages then.
	 */
	bool frozen;
};

void scanner_init(struct scanner *sc, const struct region *region, bool frozen);

/* Working memory of one thread. */
struct scan_buffer {
	uint64_t *entries;
	struct page_range_found *found;
};

void scan_buffer_init(struct scan_buffer *buf);
void scan_buffer_free(struct scan_buffer *buf);

/*
 * Fills slice->runs and the counters; false, and no pages, if there is no such
 * process any more.  Ends the program with EXIT_NOT_PERMITTED.
 */
bool scan_slice(const struct scanner *sc, struct scan_buffer *buf, pid_t pid, struct slice *slice);

/* Adds to the last run if the page is its next one and of its kind. */
void run_list_add(struct run_list *list, uint64_t vaddr, uint64_t pfn, uint64_t npages,
		  uint32_t flags);

#endif
