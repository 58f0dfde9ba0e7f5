// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "fill.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "frames.h"
#include "log.h"
#include "util.h"

/* A piece shorter than this is worth gathering: copying costs less than an ioctl. */
#define SHORT_PIECE 8

void fill_buffer_init(struct fill_buffer *buf)
{
	buf->bounce = mmap(NULL, BOUNCE_PAGES * PM_PAGE_SIZE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (buf->bounce == MAP_FAILED)
		die_errno("cannot map a buffer");
}

void fill_buffer_free(struct fill_buffer *buf)
{
	munmap(buf->bounce, BOUNCE_PAGES * PM_PAGE_SIZE);
}

static uint64_t piece(const struct model *m, uint64_t ordinal, uint64_t max, const void **from)
{
	uint64_t n, pfn = model_frame(m, ordinal, &n);

	n = min_u64(n, max);
	*from = frames_address(pfn, &n);
	return n;
}

/*
 * The source of the pages from ordinal on: a place in the frames or, if they
 * are scattered, their copy in the bounce buffer.  Returns how many of max
 * pages it holds, 0 if the first one cannot be read.
 */
static uint64_t source(const struct model *m, uint64_t ordinal, uint64_t max,
		       struct fill_buffer *buf, const void **from)
{
	uint64_t i, n = piece(m, ordinal, max, from), total = 0;

	if (n >= SHORT_PIECE || n == max)
		return n;
	max = min_u64(max, BOUNCE_PAGES);
	for (;;) {
		for (i = 0; i < n; i++) {
			const char *page = (const char *)*from + i * PM_PAGE_SIZE;

			if (!frames_read(buf->bounce + (total + i) * PM_PAGE_SIZE, page))
				break;
		}
		total += i;
		if (i < n || total == max)
			break;
		n = piece(m, ordinal + total, max - total, from);
		if (n >= 2 * SHORT_PIECE)
			break;
	}
	*from = buf->bounce;
	return total;
}

static void present(struct uspace *s, uint64_t vaddr, uint64_t ordinal)
{
	uint64_t fresh = model_done(&s->model, ordinal, 1);

	count(&counters.pages_home, fresh);
	count(&counters.pages_present, fresh);
	uffd_wake(s->fd, vaddr);
}

/*
 * The memory that held the page is broken.  Handing out zeros instead would be
 * a silent lie, so its owner gets SIGBUS, as from broken memory it maps itself.
 * Where the kernel cannot do that, the page stays missing, its users wait, and
 * the space is never closed.  Returns UFFD_OK if that settles the page.
 */
static enum uffd_result lose(struct uspace *s, uint64_t vaddr, uint64_t ordinal)
{
	enum uffd_result res = uffd_poison(s->fd, vaddr);

	switch (res) {
	case UFFD_OK:
		count(&counters.pages_home, model_done(&s->model, ordinal, 1));
		uffd_wake(s->fd, vaddr);
		break;
	case UFFD_PRESENT:
		present(s, vaddr, ordinal);
		return UFFD_OK;
	case UFFD_ERROR:
		__atomic_store_n(&s->damaged, true, __ATOMIC_RELAXED);
		break;
	default:
		return res;
	}
	count(&counters.pages_lost, 1);
	log_line("process %u: page %#llx cannot be read from the old memory, %s", s->pid,
		 (unsigned long long)vaddr, res == UFFD_OK ? "poisoned" : "its users will hang");
	return UFFD_OK;
}

enum uffd_result fill(struct uspace *s, const struct extent *ext, uint64_t limit,
		      struct fill_buffer *buf, uint64_t *kind, uint64_t *filled)
{
	*filled = 0;
	while (*filled < ext->npages) {
		uint64_t vaddr = ext->vaddr + (*filled << PM_PAGE_SHIFT);
		uint64_t ordinal = ext->ordinal + *filled, n, done = 0;
		enum uffd_result res = UFFD_UNREADABLE;
		const void *from;

		n = source(&s->model, ordinal, min_u64(limit, ext->npages - *filled), buf, &from);
		if (n)
			res = uffd_copy(s->fd, vaddr, from, n, &done);
		if (done) {
			uint64_t fresh = model_done(&s->model, ordinal, done);

			count(&counters.pages_home, fresh);
			count(kind, fresh);
			*filled += done;
			vaddr += done << PM_PAGE_SHIFT;
			ordinal += done;
		}
		if (res == UFFD_UNREADABLE) {
			res = lose(s, vaddr, ordinal);
			*filled += res == UFFD_OK;
		} else if (res == UFFD_PRESENT) {
			present(s, vaddr, ordinal);
			*filled += 1;
			res = UFFD_OK;
		}
		if (res != UFFD_OK)
			return res;
	}
	return UFFD_OK;
}
