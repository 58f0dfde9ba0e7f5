/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What one restored address space still has to get, and where it has to go.
 *
 * The image is the list of runs of the page map; it never changes and is shared
 * by a process and its later children.  A page is named by its ordinal: the
 * number of image pages at lower addresses.  The model adds
 *
 *   - one bit per page: done, because it is home or because the process has
 *     given it up (munmap, MADV_DONTNEED).  A fault on a page that is done wants
 *     zeros: it can only be there after its owner gave the page up;
 *   - the moves (mremap): segments that say which image address stands behind an
 *     address of today.  Without moves there is one segment, the identity.
 *
 * Both outlive the process that uses them (kept.h): marking and cutting may be done
 * twice, and a move takes effect in one store.
 *
 * Every page that is not done lies in exactly one segment.  Lookups allocate
 * nothing.  Done bits are atomic, so drain threads may mark pages side by side;
 * cut, move and fork need the caller to exclude everybody else.
 */
#ifndef REKERNEL_MODEL_H
#define REKERNEL_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kept.h"
#include "pagemap_format.h"

struct image {
	const struct pm_run *runs;
	size_t n_runs;
	const uint64_t *first;	/* ordinal of each run's first page */
	uint64_t pages;
};

struct model {
	const struct image *image;
	struct kept kept;
	const struct segment_table *table;	/* sorted by start; in kept */
	uint64_t *done;		/* bitmap by ordinal; in kept */
	uint64_t left;		/* pages not done; atomic */
};

/* Consecutive pages of today's address space that want the same treatment. */
struct extent {
	bool zero;		/* nothing to copy: these pages are zeros */
	uint64_t vaddr;
	uint64_t npages;
	uint64_t ordinal;	/* of the first page, unless zero */
};

void model_init(struct model *m, const struct image *image);
/* child becomes what a forked process inherits: the same pages still missing. */
void model_fork(struct model *child, const struct model *parent);
/* What a worker before had of this image. */
void model_take_over(struct model *m, const struct image *image, const struct kept *kept);
void model_free(struct model *m);

/* The extent at vaddr, 1 to max pages of it. */
struct extent model_at(const struct model *m, uint64_t vaddr, uint64_t max);

/*
 * The first extent of missing pages with an ordinal in [from, to), at most max
 * pages; false if there is none.
 */
bool model_next(const struct model *m, uint64_t from, uint64_t to, uint64_t max,
		struct extent *ext);

/* Frame of an image page; *npages, if not NULL, becomes how many follow it in its run. */
uint64_t model_frame(const struct model *m, uint64_t ordinal, uint64_t *npages);

/* Marks pages done; returns how many were not before. */
uint64_t model_done(struct model *m, uint64_t ordinal, uint64_t npages);
/* The owner gave up [start, end); returns how many missing pages that drops. */
uint64_t model_cut(struct model *m, uint64_t start, uint64_t end);
/*
 * mremap; returns how many missing pages were overwritten at the target.  event
 * is its number, see state.h: what has been moved is not moved again.
 */
uint64_t model_move(struct model *m, uint64_t from, uint64_t to, uint64_t len, uint64_t event);

static inline uint64_t model_left(const struct model *m)
{
	return __atomic_load_n(&m->left, __ATOMIC_ACQUIRE);
}

static inline bool model_is_done(const struct model *m, uint64_t ordinal)
{
	return __atomic_load_n(&m->done[ordinal / 64], __ATOMIC_RELAXED) >> ordinal % 64 & 1;
}

#endif
