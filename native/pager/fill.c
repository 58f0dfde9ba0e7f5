// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "fill.h"

#include <signal.h>
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

	count(&state->counters.pages_home, fresh);
	count(&state->counters.pages_present, fresh);
	uffd_wake(s->fd, vaddr);
}

/* Linux before 6.6 has no way to make a page raise SIGBUS. */
static enum uffd_result poison(struct uspace *s, uint64_t vaddr)
{
	/* For tests. */
	return getenv("REKERNEL_NO_POISON") ? UFFD_ERROR : uffd_poison(s->fd, vaddr);
}

/* There is no other way to keep it from waiting for ever, or from zeros. */
static void end_process(struct uspace *s)
{
	const struct kept_head *head = s->model.kept.head;

	s->model.kept.head->damaged = true;
	__atomic_store_n(&s->damaged, true, __ATOMIC_RELAXED);
	if (!head->forked && !kill((pid_t)head->host_pid, SIGKILL))
		log_line("process %u is ended: it cannot go on without that page", head->host_pid);
}

/*
 * The memory that held the page is broken.  Handing out zeros instead would be
 * a silent lie, so its owner gets SIGBUS, as from broken memory it maps itself.
 * Where the kernel cannot do that the owner is killed; a forked child, whose PID
 * is not known, waits for the page, and its space is never closed.  Returns
 * UFFD_OK if that settles the page.
 */
static enum uffd_result lose(struct uspace *s, uint64_t vaddr, uint64_t ordinal)
{
	const struct kept_head *head = s->model.kept.head;
	uint32_t n = !__atomic_load_n(&s->damaged, __ATOMIC_RELAXED);
	enum uffd_result res;
	uint64_t fresh;

	/* Before: whoever comes after a SIGKILL finds a page there and takes it for good. */
	count(&state->counters.pages_lost, n);
	named_add(&state->lost, head->host_pid, n);
	res = poison(s, vaddr);
	switch (res) {
	case UFFD_OK:
		fresh = model_done(&s->model, ordinal, 1);
		count(&state->counters.pages_home, fresh);
		uffd_wake(s->fd, vaddr);
		break;
	case UFFD_ERROR:
		end_process(s);
		break;
	default:
		count(&state->counters.pages_lost, -(uint64_t)n);
		named_add(&state->lost, head->host_pid, -n);
		if (res == UFFD_PRESENT)
			present(s, vaddr, ordinal);
		return res == UFFD_PRESENT ? UFFD_OK : res;
	}
	log_line("process %u: page %#llx cannot be read from the old memory, %s", s->pid,
		 (unsigned long long)vaddr, res == UFFD_OK ? "poisoned" : "it cannot go on");
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

			count(&state->counters.pages_home, fresh);
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
