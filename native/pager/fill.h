/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Brings image pages home: what faults and the drain have in common. */
#ifndef REKERNEL_FILL_H
#define REKERNEL_FILL_H

#include "address_space.h"
#include "uffd.h"

/* Working memory of one thread, for pages that are scattered in the frames. */
#define BOUNCE_PAGES 64u

struct fill_buffer {
	char *bounce;
};

void fill_buffer_init(struct fill_buffer *buf);
void fill_buffer_free(struct fill_buffer *buf);

/*
 * Copies the pages of ext from the frames, at most limit pages per system call,
 * and marks them done.  A lock of s is held.  Returns what stopped it, *filled
 * says how many pages came home before.  UFFD_PRESENT and UFFD_UNREADABLE are
 * settled here, so the caller never sees them: a page that is there is marked
 * done, an unreadable one is poisoned.
 */
enum uffd_result fill(struct uspace *s, const struct extent *ext, uint64_t limit,
		      struct fill_buffer *buf, uint64_t *kind, uint64_t *filled);

#endif
