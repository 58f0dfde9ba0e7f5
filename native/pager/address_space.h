/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One userfaultfd and the address space behind it.
 *
 * The rule that makes it correct: a userfaultfd is read only under the write
 * lock, and filled only under either lock.  The kernel holds a process that
 * unmaps, moves or forks until its event has been read, and refuses UFFDIO_COPY
 * meanwhile (EAGAIN).  So a copy that was decided before an event can never be
 * done after it: that would bring back pages the process has thrown away.
 *
 * What must outlive this process is in the memory of its model (kept.h); the rest
 * is made anew by the next worker.
 *
 * struct uspace is never freed while the program runs: an epoll event or a drain
 * thread may still hold a pointer to one that is closed.
 */
#ifndef REKERNEL_ADDRESS_SPACE_H
#define REKERNEL_ADDRESS_SPACE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "mapfile.h"
#include "model.h"
#include "state.h"

struct uspace {
	pthread_rwlock_t lock;	/* see above; a waiting writer goes first */
	int fd;			/* -1 once closed */
	uint32_t pid;		/* as CRIU announced it; a forked child has its parent's */
	uint32_t host_pid;	/* the same as the kernel knows it */
	bool damaged;		/* a page could not be read: never close, see fill.h */
	const struct restore *restore;
	struct model model;

	/* Drain, under the list lock: next ordinal to claim, claims at work. */
	uint64_t cursor;
	unsigned int claims;

	/* Sequential faults, under the write lock. */
	uint64_t next_fault;
	uint64_t window;

	struct uspace *next;	/* list lock */
};

/* All open spaces, oldest first. */
extern pthread_mutex_t space_list_lock;
extern struct uspace *space_list;

/* The epoll instance the fault workers sleep on. */
extern int space_epoll;

/* Before anything else here. */
void space_init(void);
/* Frees what is left when the threads are gone. */
void space_fini(void);

/* What is known of a userfaultfd when it comes. */
struct arrival {
	int fd;
	uint32_t pid;
	uint32_t host_pid;
	int image;		/* index in the map, -1 for a process that is not in it */
	uint32_t restore;	/* index */
	uint64_t number;	/* of the event that brought it */
};

/* One that CRIU handed over; nobody serves it before space_publish(). */
struct uspace *space_open(const struct arrival *a, const struct image *image);
/* One the kernel made for a child of parent, whose write lock is held. */
struct uspace *space_open_fork(int fd, const struct uspace *parent, uint64_t number);
/* One of a worker before. */
struct uspace *space_take_over(const struct kept *kept, const struct image *image);
/* Has anything been opened for this number already? */
bool space_born(uint64_t number);
/* From now on it is served, if spaces are. */
void space_publish(struct uspace *s);
/* From now on they are. */
void space_serve(void);
/* A restore's process that is not in the map has no image. */
extern const struct image no_image;

/* Wants nothing any more, and may be closed? */
bool space_complete(const struct uspace *s);
/*
 * Closes: the kernel unregisters its memory and wakes who waits.  Missing pages
 * count as dropped.  Takes the write lock; no lock may be held.
 */
void space_close(struct uspace *s);
/* The same with the write lock held. */
void space_close_locked(struct uspace *s);

/* Lets the fault workers hear of this space again. */
void space_rearm(struct uspace *s);

/* Number of open spaces; *left is the number of pages they miss. */
uint64_t space_count(uint64_t *left, uint64_t *damaged);
/* Closes all spaces that are complete. */
void space_sweep(void);

#endif
