/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The scan of many processes and what becomes of its result. */
#ifndef REKERNEL_RECORD_H
#define REKERNEL_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "output.h"
#include "pagemap_format.h"
#include "scan.h"
#include "vma.h"

struct space {
	pid_t pid;
	uint32_t tree;
	struct vma_list vmas;
	struct slice *slices;
	size_t n_slices;
	uint64_t n_runs;
	uint64_t pages;
	uint64_t stray_pages;
	uint64_t swapped_pages;
};

struct record {
	struct scanner scanner;
	struct space *spaces;
	size_t n_spaces;

	/* Work list over all spaces, made after their mappings are known. */
	struct work {
		struct space *space;
		struct slice *slice;
	} *work;
	size_t n_work;

	uint64_t n_runs;
	uint64_t pages;		/* in the region */
	uint64_t stray_pages;
	uint64_t swapped_pages;
};

/* Reads mappings and page maps of all spaces, in parallel. */
void record_scan(struct record *rec);

/*
 * Copies the stray pages to stray (open, large enough) and renames their frames
 * to those of the stray area, which begins at physical address base.
 */
void record_copy_strays(struct record *rec, struct output *stray, uint64_t base);

/* Bytes the page map takes. */
uint64_t record_map_bytes(const struct record *rec);
void record_write_map(const struct record *rec, void *data);

/*
 * Addresses of the 2 MiB chunks of a space that hold strays and are nearly full: such a chunk can
 * become one huge page elsewhere and the process grows little by it; JSON.
 */
void record_print_stray_chunks(const struct space *space, FILE *f);

/* Distinct frames of the region in use, all together and per block; JSON. */
void record_print_blocks(const struct record *rec, uint64_t block_bytes, FILE *f);

#endif
