/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What outlives a worker that is killed: memory that the supervisor, the witness
 * and every worker share, at one address.
 *
 * What the kernel hands out only once (an event, a descriptor) is read straight
 * into a slot here, so it is here even if the reader is killed before it has
 * looked at it.  The next worker applies what was read and not applied; for that
 * every such thing has a number, and whatever it makes bears that number.
 *
 * The address spaces themselves are not here: see kept.h.
 */
#ifndef REKERNEL_STATE_H
#define REKERNEL_STATE_H

#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "options.h"

#define EVENT_MESSAGES	16
#define EVENT_SLOTS	16
#define NAMED_MAX	32

/* Sums over all spaces of all time; atomic. */
struct counters {
	uint64_t pages_total;	/* in the map, plus what forked children must get again */
	uint64_t pages_home;	/* in place or not needed any more, for whatever reason */
	uint64_t pages_faulted;	/* of them copied because of a fault, with their window */
	uint64_t pages_drained;	/* of them copied by the drain */
	uint64_t pages_present;	/* of them found in place: by CRIU itself, or as a worker died */
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
	uint64_t restarts;	/* workers that were started anew */
};

/* A process by its PID of today, and how many pages of it are meant. */
struct named {
	uint32_t pid;
	uint32_t pages;
};

struct named_list {
	uint32_t n;		/* atomic; may be larger than NAMED_MAX */
	struct named item[NAMED_MAX];
};

/* One run of "criu restore": what connects to a listening socket. */
struct restore {
	bool over;		/* atomic: finished or failed, memory is laid out */
	bool failed;
	int fd;			/* -1 when it is closed */
	uint32_t listener;
	uint32_t have;		/* bytes of pid, 4 when the descriptor is due */
	union {
		int32_t value;
		char bytes[4];
	} pid;
};

/* What one fault worker has read of a userfaultfd. */
struct event_slot {
	uint64_t number;	/* of the first message */
	int kept;		/* whose: descriptor of its memory, see kept.h */
	uint32_t applied;	/* how many messages are settled */
	struct uffd_msg msg[EVENT_MESSAGES];	/* event is 0 behind the last one */
};

/* What the main thread has received from a restore. */
struct intake_slot {
	uint64_t number;
	uint32_t restore;
	uint32_t have;		/* bytes of the PID before it */
	bool applied;
	struct mmsghdr msg;	/* msg_len is UINT32_MAX as long as nothing came */
	struct iovec iov;
	char data[4];
	union {
		char bytes[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(3 * sizeof(int))];
		struct cmsghdr align;
	} control;
};

enum role {
	ROLE_WORKER,
	ROLE_SUPERVISOR,
	ROLE_WITNESS,
	N_ROLES,
};

struct state {
	struct counters counters;
	struct named_list lost, unknown, stopped;

	uint64_t next_number;	/* atomic */
	struct event_slot events[EVENT_SLOTS];
	struct intake_slot intake;

	/* What the control socket and signals have asked for. */
	unsigned int window;	/* atomic */
	uint64_t rate;
	bool drain_wanted;
	bool exit_when_drained;
	bool expect_no_more;

	/* Who holds the descriptors; see guard.h. */
	int pidfd[N_ROLES];
	int pid[N_ROLES];
	int fixed;		/* descriptors below this are for good */
	int proc;		/* /proc, which is elsewhere after switch_root */
	int signals;
	bool ready;		/* a worker has begun to serve */
	uint32_t stillborn;	/* workers in a row that did not come to that */
	bool drained;		/* all is home, nothing can be lost any more */
	bool over;
	int code;

	size_t n_restores, max_restores;
	size_t n_used;		/* listeners that have had a restore */
	struct restore *restores;
	uint32_t *claims;	/* per space of the map: how many restores have asked for it */
};

extern struct state *state;

/* Ends the program if that fails. */
void state_init(size_t n_listeners, size_t n_spaces);
/* The number of the first of n things. */
uint64_t state_numbers(uint64_t n);
/* Adds to what is known of this process. */
void named_add(struct named_list *list, uint32_t pid, uint32_t pages);

static inline void count(uint64_t *counter, uint64_t n)
{
	__atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

static inline uint64_t counted(const uint64_t *counter)
{
	return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

/*
 * What is above is stored before what is below.  Only the compiler must be told:
 * whoever looks does so after the kernel has seen this thread end.
 */
#define in_order()	__atomic_signal_fence(__ATOMIC_SEQ_CST)

#endif
