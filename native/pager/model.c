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
static size_t seg_above(const struct segment_table *t, uint64_t addr)
{
	size_t lo = 0, hi = t->n;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (t->seg[mid].end > addr)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

/* There is room: a move adds four at most. */
static void seg_insert(struct segment_table *t, size_t at, struct segment seg)
{
	memmove(&t->seg[at + 1], &t->seg[at], (t->n - at) * sizeof(t->seg[0]));
	t->seg[at] = seg;
	t->n++;
}

static void seg_remove(struct segment_table *t, size_t at)
{
	memmove(&t->seg[at], &t->seg[at + 1], (t->n - at - 1) * sizeof(t->seg[0]));
	t->n--;
}

/* Makes addr a border between segments, if it lies inside one. */
static void seg_split(struct segment_table *t, uint64_t addr)
{
	size_t i = seg_above(t, addr);
	struct segment tail;

	if (i == t->n || t->seg[i].start >= addr)
		return;
	tail = t->seg[i];
	tail.image += addr - tail.start;
	tail.start = addr;
	t->seg[i].end = addr;
	seg_insert(t, i + 1, tail);
}

static void look_at_kept(struct model *m)
{
	m->table = kept_table(&m->kept);
	m->done = m->kept.head->done;
}

/* The table of segments that the next flip puts in force, to begin with a copy. */
static struct segment_table *next_table(struct model *m, const struct segment_table *from)
{
	struct segment_table *t = kept_spare(&m->kept, from->n + 4);

	/* The memory may have got another address. */
	if (from == m->table)
		from = kept_table(&m->kept);
	look_at_kept(m);
	t->event = from->event;
	t->n = from->n;
	memcpy(t->seg, from->seg, from->n * sizeof(t->seg[0]));
	return t;
}

void model_init(struct model *m, const struct image *image)
{
	struct segment_table *t;

	memset(m, 0, sizeof(*m));
	m->image = image;
	m->left = image->pages;
	kept_new(&m->kept, image->pages, 1);
	t = kept_spare(&m->kept, 1);
	t->n = 1;
	t->seg[0] = (struct segment){ 0, ADDRESS_END, 0 };
	kept_flip(&m->kept);
	look_at_kept(m);
}

void model_fork(struct model *child, const struct model *parent)
{
	memset(child, 0, sizeof(*child));
	child->image = parent->image;
	child->left = model_left(parent);
	kept_new(&child->kept, parent->image->pages, parent->table->n);
	next_table(child, parent->table);
	kept_flip(&child->kept);
	look_at_kept(child);
	memcpy(child->done, parent->done,
	       kept_words(parent->image->pages) * sizeof(child->done[0]));
}

void model_take_over(struct model *m, const struct image *image, const struct kept *kept)
{
	uint64_t i;

	memset(m, 0, sizeof(*m));
	m->image = image;
	m->kept = *kept;
	look_at_kept(m);
	m->left = image->pages;
	for (i = 0; i < kept_words(image->pages); i++)
		m->left -= (uint64_t)__builtin_popcountll(m->done[i]);
}

void model_free(struct model *m)
{
	kept_close(&m->kept);
	m->table = NULL;
	m->done = NULL;
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
	const struct segment_table *t = m->table;
	size_t s = seg_above(t, vaddr), run;
	const struct pm_run *r;
	uint64_t addr, end;

	if (s == t->n || t->seg[s].start > vaddr) {
		/* No image behind it; the next segment may have one. */
		end = s == t->n ? ADDRESS_END : t->seg[s].start;
		ext.npages = min_u64(max, (end - vaddr) >> PM_PAGE_SHIFT);
		return ext;
	}
	addr = t->seg[s].image + (vaddr - t->seg[s].start);
	end = addr + min_u64(max << PM_PAGE_SHIFT, t->seg[s].end - vaddr);
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
	for (s = 0; s < m->table->n; s++) {
		const struct segment *seg = &m->table->seg[s];

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
	const struct segment_table *t = m->table;
	uint64_t fresh = 0;
	size_t s;

	for (s = seg_above(t, start); s < t->n && t->seg[s].start < end; s++) {
		const struct segment *seg = &t->seg[s];
		uint64_t a = max_u64(start, seg->start), b = min_u64(end, seg->end);

		fresh += drop_image(m, seg->image + (a - seg->start), seg->image + (b - seg->start));
	}
	return fresh;
}

/* Joins segment i with the one before it, if they are one in both worlds. */
static void seg_join(struct segment_table *t, size_t i)
{
	struct segment *a, *b;

	if (!i || i >= t->n)
		return;
	a = &t->seg[i - 1];
	b = &t->seg[i];
	if (a->end != b->start || a->image + (a->end - a->start) != b->image)
		return;
	a->end = b->end;
	seg_remove(t, i);
}

uint64_t model_move(struct model *m, uint64_t from, uint64_t to, uint64_t len, uint64_t event)
{
	struct segment_table *t;
	uint64_t fresh;
	size_t i, k;

	if (m->table->event >= event)
		return 0;
	/* Whatever was at the target has been unmapped by the same mremap. */
	fresh = model_cut(m, to, to + len);
	t = next_table(m, m->table);
	t->event = event;
	seg_split(t, to);
	seg_split(t, to + len);
	i = seg_above(t, to);
	while (i < t->n && t->seg[i].start < to + len)
		seg_remove(t, i);

	seg_split(t, from);
	seg_split(t, from + len);
	for (;;) {
		struct segment seg;

		i = seg_above(t, from);
		if (i == t->n || t->seg[i].start >= from + len)
			break;
		seg = t->seg[i];
		seg_remove(t, i);
		seg.start += to - from;
		seg.end += to - from;
		k = seg_above(t, seg.start);
		seg_insert(t, k, seg);
		seg_join(t, k + 1);
		seg_join(t, k);
	}
	kept_flip(&m->kept);
	look_at_kept(m);
	return fresh;
}
