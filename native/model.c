// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "model.h"

#include <stdlib.h>
#include <string.h>

#include "util.h"

/* Above every address a process can have, below any overflow. */
#define ADDRESS_END (1ull << 62)

static uint64_t run_end(const struct pm_run *run)
{
	return run->vaddr + ((uint64_t)run->npages << PM_PAGE_SHIFT);
}

/* Index of the first run that ends above an image address. */
static size_t run_above(const struct image *img, uint64_t addr)
{
	size_t lo = 0, hi = img->n_runs;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (run_end(&img->runs[mid]) > addr)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

static size_t run_of_ordinal(const struct image *img, uint64_t ordinal)
{
	size_t lo = 0, hi = img->n_runs;

	while (hi - lo > 1) {
		size_t mid = lo + (hi - lo) / 2;

		if (img->first[mid] <= ordinal)
			lo = mid;
		else
			hi = mid;
	}
	return lo;
}

/* Index of the first segment that ends above an address of today. */
static size_t seg_above(const struct model *m, uint64_t addr)
{
	size_t lo = 0, hi = m->n_segs;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (m->segs[mid].end > addr)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

static void seg_insert(struct model *m, size_t at, struct segment seg)
{
	if (m->n_segs == m->cap_segs) {
		m->cap_segs = m->cap_segs ? 2 * m->cap_segs : 8;
		m->segs = xrealloc(m->segs, m->cap_segs, sizeof(*m->segs));
	}
	memmove(&m->segs[at + 1], &m->segs[at], (m->n_segs - at) * sizeof(*m->segs));
	m->segs[at] = seg;
	m->n_segs++;
}

static void seg_remove(struct model *m, size_t at)
{
	memmove(&m->segs[at], &m->segs[at + 1], (m->n_segs - at - 1) * sizeof(*m->segs));
	m->n_segs--;
}

/* Makes addr a border between segments, if it lies inside one. */
static void seg_split(struct model *m, uint64_t addr)
{
	size_t i = seg_above(m, addr);
	struct segment tail;

	if (i == m->n_segs || m->segs[i].start >= addr)
		return;
	tail = m->segs[i];
	tail.image += addr - tail.start;
	tail.start = addr;
	m->segs[i].end = addr;
	seg_insert(m, i + 1, tail);
}

void model_init(struct model *m, const struct image *image)
{
	memset(m, 0, sizeof(*m));
	m->image = image;
	m->left = image->pages;
	m->done = xcalloc(image->pages / 64 + 1, sizeof(*m->done));
	seg_insert(m, 0, (struct segment){ 0, ADDRESS_END, 0 });
}

void model_fork(struct model *child, const struct model *parent)
{
	size_t words = parent->image->pages / 64 + 1;

	memset(child, 0, sizeof(*child));
	child->image = parent->image;
	child->left = model_left(parent);
	child->done = xcalloc(words, sizeof(*child->done));
	memcpy(child->done, parent->done, words * sizeof(*child->done));
	child->n_segs = parent->n_segs;
	child->cap_segs = parent->n_segs + 1;
	child->segs = xcalloc(child->cap_segs, sizeof(*child->segs));
	if (parent->n_segs)
		memcpy(child->segs, parent->segs, parent->n_segs * sizeof(*child->segs));
}

void model_free(struct model *m)
{
	free(m->segs);
	free(m->done);
	memset(m, 0, sizeof(*m));
}

uint64_t model_frame(const struct model *m, uint64_t ordinal, uint64_t *npages)
{
	const struct image *img = m->image;
	size_t i = run_of_ordinal(img, ordinal);
	uint64_t skip = ordinal - img->first[i];

	if (npages)
		*npages = img->runs[i].npages - skip;
	return img->runs[i].pfn + skip;
}

/*
 * The first image address in [addr, end) whose page is missing, or end.  *run is
 * the run above addr and moves on.
 */
static uint64_t next_missing(const struct model *m, uint64_t addr, uint64_t end, size_t *run)
{
	const struct image *img = m->image;

	for (; *run < img->n_runs; ++*run) {
		const struct pm_run *r = &img->runs[*run];

		addr = max_u64(addr, r->vaddr);
		for (; addr < end && addr < run_end(r); addr += PM_PAGE_SIZE)
			if (!model_is_done(m, img->first[*run] +
						      ((addr - r->vaddr) >> PM_PAGE_SHIFT)))
				return addr;
		if (addr >= end)
			break;
	}
	return end;
}

/* How many pages from ordinal on are missing and at consecutive image addresses. */
static uint64_t count_missing(const struct model *m, uint64_t ordinal, size_t run, uint64_t max)
{
	const struct image *img = m->image;
	uint64_t n = 0;

	while (n < max && !model_is_done(m, ordinal + n)) {
		n++;
		if (ordinal + n < img->first[run] + img->runs[run].npages)
			continue;
		if (run + 1 == img->n_runs || img->runs[run + 1].vaddr != run_end(&img->runs[run]))
			break;
		run++;
	}
	return n;
}

struct extent model_at(const struct model *m, uint64_t vaddr, uint64_t max)
{
	struct extent ext = { .zero = true, .vaddr = vaddr };
	size_t s = seg_above(m, vaddr), run;
	const struct pm_run *r;
	uint64_t addr, end;

	if (s == m->n_segs || m->segs[s].start > vaddr) {
		/* No image behind it; the next segment may have one. */
		end = s == m->n_segs ? ADDRESS_END : m->segs[s].start;
		ext.npages = min_u64(max, (end - vaddr) >> PM_PAGE_SHIFT);
		return ext;
	}
	addr = m->segs[s].image + (vaddr - m->segs[s].start);
	end = addr + min_u64(max << PM_PAGE_SHIFT, m->segs[s].end - vaddr);
	run = run_above(m->image, addr);
	r = &m->image->runs[run];
	if (run < m->image->n_runs && r->vaddr <= addr) {
		ext.ordinal = m->image->first[run] + ((addr - r->vaddr) >> PM_PAGE_SHIFT);
		if (!model_is_done(m, ext.ordinal)) {
			ext.zero = false;
			ext.npages = count_missing(m, ext.ordinal, run,
						   (end - addr) >> PM_PAGE_SHIFT);
			/* Somebody may have finished it between the two looks. */
			if (!ext.npages)
				ext.npages = 1;
			return ext;
		}
	}
	end = next_missing(m, addr, end, &run);
	ext.npages = max_u64((end - addr) >> PM_PAGE_SHIFT, 1);
	return ext;
}

static uint64_t next_not_done(const struct model *m, uint64_t from, uint64_t to)
{
	while (from < to) {
		uint64_t word = ~__atomic_load_n(&m->done[from / 64], __ATOMIC_RELAXED);

		word >>= from % 64;
		if (word)
			return min_u64(to, from + __builtin_ctzll(word));
		from = (from / 64 + 1) * 64;
	}
	return to;
}

bool model_next(const struct model *m, uint64_t from, uint64_t to, uint64_t max,
		struct extent *ext)
{
	const struct image *img = m->image;
	uint64_t addr;
	size_t run, s;

	to = min_u64(to, img->pages);
	from = next_not_done(m, from, to);
	if (from >= to)
		return false;
	run = run_of_ordinal(img, from);
	addr = img->runs[run].vaddr + ((from - img->first[run]) << PM_PAGE_SHIFT);
	/* Few segments exist, and they are not sorted by image address. */
	for (s = 0; s < m->n_segs; s++) {
		const struct segment *seg = &m->segs[s];

		if (addr < seg->image || addr - seg->image >= seg->end - seg->start)
			continue;
		ext->zero = false;
		ext->vaddr = seg->start + (addr - seg->image);
		ext->ordinal = from;
		max = min_u64(max, to - from);
		max = min_u64(max, (seg->end - ext->vaddr) >> PM_PAGE_SHIFT);
		ext->npages = max_u64(count_missing(m, from, run, max), 1);
		return true;
	}
	return false;
}

uint64_t model_done(struct model *m, uint64_t ordinal, uint64_t npages)
{
	uint64_t end = ordinal + npages, fresh = 0;

	while (ordinal < end) {
		uint64_t n = min_u64(64 - ordinal % 64, end - ordinal);
		uint64_t mask = (n == 64 ? ~0ull : (1ull << n) - 1) << ordinal % 64;
		uint64_t old = __atomic_fetch_or(&m->done[ordinal / 64], mask, __ATOMIC_RELAXED);

		fresh += __builtin_popcountll(mask & ~old);
		ordinal += n;
	}
	if (fresh)
		__atomic_fetch_sub(&m->left, fresh, __ATOMIC_ACQ_REL);
	return fresh;
}

/* Marks all pages of an image range done. */
static uint64_t drop_image(struct model *m, uint64_t start, uint64_t end)
{
	const struct image *img = m->image;
	uint64_t fresh = 0;
	size_t run;

	for (run = run_above(img, start); run < img->n_runs; run++) {
		const struct pm_run *r = &img->runs[run];
		uint64_t a = max_u64(start, r->vaddr), b = min_u64(end, run_end(r));

		if (a >= b)
			break;
		fresh += model_done(m, img->first[run] + ((a - r->vaddr) >> PM_PAGE_SHIFT),
				    (b - a) >> PM_PAGE_SHIFT);
	}
	return fresh;
}

uint64_t model_cut(struct model *m, uint64_t start, uint64_t end)
{
	uint64_t fresh = 0;
	size_t s;

	for (s = seg_above(m, start); s < m->n_segs && m->segs[s].start < end; s++) {
		const struct segment *seg = &m->segs[s];
		uint64_t a = max_u64(start, seg->start), b = min_u64(end, seg->end);

		fresh += drop_image(m, seg->image + (a - seg->start), seg->image + (b - seg->start));
	}
	return fresh;
}

/* Joins segment i with the one before it, if they are one in both worlds. */
static void seg_join(struct model *m, size_t i)
{
	struct segment *a, *b;

	if (!i || i >= m->n_segs)
		return;
	a = &m->segs[i - 1];
	b = &m->segs[i];
	if (a->end != b->start || a->image + (a->end - a->start) != b->image)
		return;
	a->end = b->end;
	seg_remove(m, i);
}

uint64_t model_move(struct model *m, uint64_t from, uint64_t to, uint64_t len)
{
	uint64_t fresh;
	size_t i, k;

	/* Whatever was at the target has been unmapped by the same mremap. */
	fresh = model_cut(m, to, to + len);
	seg_split(m, to);
	seg_split(m, to + len);
	i = seg_above(m, to);
	while (i < m->n_segs && m->segs[i].start < to + len)
		seg_remove(m, i);

	seg_split(m, from);
	seg_split(m, from + len);
	for (;;) {
		struct segment seg;

		i = seg_above(m, from);
		if (i == m->n_segs || m->segs[i].start >= from + len)
			break;
		seg = m->segs[i];
		seg_remove(m, i);
		seg.start += to - from;
		seg.end += to - from;
		k = seg_above(m, seg.start);
		seg_insert(m, k, seg);
		seg_join(m, k + 1);
		seg_join(m, k);
	}
	return fresh;
}
