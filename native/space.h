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
 * struct uspace is never freed while the program runs: an epoll event or a drain
 * thread may still hold a pointer to one that is closed.
 */
#ifndef REKERNEL_SPACE_H
#define REKERNEL_SPACE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "mapfile.h"
#include "model.h"

/* One run of "criu restore": what connects to a listening socket. */
struct restore {
	const char *path;
	bool over;		/* atomic: finished or failed, memory is laid out */
	bool failed;
};

struct uspace {
	pthread_rwlock_t lock;	/* see above; a waiting writer goes first */
	int fd;			/* -1 once closed */
	uint32_t pid;		/* as CRIU announced it; a forked child has its parent's */
	bool forked;
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

/* Sums over all spaces of all time; atomic. */
struct counters {
	uint64_t pages_total;	/* in the map, plus what forked children must get again */
	uint64_t pages_home;	/* in place or not needed any more, for whatever reason */
	uint64_t pages_faulted;	/* of them copied because of a fault, with their window */
	uint64_t pages_drained;	/* of them copied by the drain */
	uint64_t pages_present;	/* of them found in place: restored by CRIU itself */
	uint64_t pages_dropped;	/* of them given up by their process, or it has exited */
	uint64_t pages_lost;	/* unreadable in the old memory */
	uint64_t pages_zero;	/* zeros served, not part of pages_total */
	uint64_t faults;
	uint64_t fault_micros;	/* time from seeing a batch of faults to its end */
	uint64_t fault_micros_max;
	uint64_t last_fault;	/* now_us() of the last one */
	uint64_t forks;
	uint64_t unknown;	/* processes that are not in the map */
	uint64_t retries;	/* EAGAIN: the process was changing its mappings */
	uint64_t no_memory;	/* ENOMEM: the process's cgroup or the machine is full */
};

extern struct counters counters;

static inline void count(uint64_t *counter, uint64_t n)
{
	__atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

static inline uint64_t counted(const uint64_t *counter)
{
	return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

/* All open spaces, oldest first. */
extern pthread_mutex_t space_list_lock;
extern struct uspace *space_list;

/* The epoll instance the fault workers sleep on. */
extern int space_epoll;

/* Before anything else here. */
void space_init(void);
/* Frees what is left when the threads are gone. */
void space_fini(void);

/* A userfaultfd that CRIU handed over; image NULL for a process not in the map. */
void space_open(int fd, uint32_t pid, const struct image *image, const struct restore *restore);
/* One the kernel made for a child of parent, whose write lock is held. */
void space_open_fork(int fd, const struct uspace *parent);

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
