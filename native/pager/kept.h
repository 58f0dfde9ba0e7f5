/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What must be known of an address space as long as it lives, whoever serves it:
 * a memfd each.  The descriptor table, which all holders share, is the list of
 * them: a worker finds what its predecessor had by looking through its own
 * descriptors.
 *
 * Every change is either a single store or may be made again.
 */
#ifndef REKERNEL_KEPT_H
#define REKERNEL_KEPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KEPT_NAME	"rekernel-space"
#define KEPT_MAGIC	0x3150454b4b52ull

enum kept_phase {
	KEPT_NEW,		/* not yet anybody's */
	KEPT_LIVE,
	KEPT_CLOSING,		/* the userfaultfd is closed next, or is closed already */
	KEPT_CLOSED,
};

struct segment {
	uint64_t start;
	uint64_t end;
	uint64_t image;		/* image address of start */
};

/* A table of segments; see model.h. */
struct segment_table {
	uint64_t event;		/* number of the event that made it */
	uint64_t n;
	uint64_t cap;
	struct segment seg[];
};

struct kept_head {
	uint64_t magic;
	uint64_t order;		/* older spaces come first */
	uint64_t born;		/* number of what brought it, see state.h */
	uint32_t phase;
	int32_t uffd;
	uint32_t pid;		/* as CRIU announced it; a forked child has its parent's */
	uint32_t host_pid;	/* as the kernel knows it; a forked child has its parent's */
	int32_t image;		/* index of the space in the map, -1 for none */
	uint32_t restore;	/* index in state->restores */
	bool forked;
	bool damaged;
	uint64_t pages;		/* bits that count in done */
	uint64_t table[2];	/* offsets */
	uint32_t current;	/* which of them is in force */
	uint64_t done[];	/* bitmap by ordinal */
};

struct kept {
	int fd;
	struct kept_head *head;
	size_t len;
};

/* Memory for a space of so many pages and segments. Ends the program if there is none. */
void kept_new(struct kept *k, uint64_t pages, uint64_t segs);
/* Takes over what a predecessor has made; false if it is none, or half made. */
bool kept_open(struct kept *k, int fd);
/* Unmaps and closes. */
void kept_close(struct kept *k);

/* The table in force. */
const struct segment_table *kept_table(const struct kept *k);
/* The other one, with room for n segments; what it holds is of no value. */
struct segment_table *kept_spare(struct kept *k, uint64_t n);
/* Puts the other one in force: a single store. */
void kept_flip(struct kept *k);

/* Words of the bitmap. */
static inline uint64_t kept_words(uint64_t pages)
{
	return pages / 64 + 1;
}

#endif
