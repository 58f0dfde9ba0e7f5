// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * EPOLLONESHOT gives a space to one thread at a time.  The thread reads all that
 * is queued: events change the model at once, in their order, and faults are
 * collected and answered last, from the model as it is then.
 *
 * Every fault that was read is either answered or its thread is woken to fault
 * again: none is ever lost.  Events are read into a slot that outlives this
 * process (state.h): the kernel tells each of them once.
 */
#define _GNU_SOURCE
#include "fault.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "batch.h"
#include "fill.h"
#include "log.h"
#include "util.h"

#define MAX_WINDOW	64u
#define MAX_THREADS	16
/* An mmap, mremap or fork of a large process can take this long. */
#define BUSY_TRIES	100
#define BUSY_MS		1
#define FULL_US		2000

static pthread_t threads[MAX_THREADS];
static unsigned int n_threads;
static int stop_fd = -1;

_Static_assert(MAX_THREADS <= EVENT_SLOTS, "each thread has a slot");

/* One thread's. */
struct worker {
	struct fill_buffer buf;
	struct event_slot *slot;
};

/* Returns a space that is to be published when the event is settled. */
static struct uspace *apply_event(struct uspace *s, const struct uffd_msg *msg, uint64_t number)
{
	uint64_t dropped = 0;

	switch (msg->event) {
	case UFFD_EVENT_FORK:
		return space_open_fork((int)msg->arg.fork.ufd, s, number);
	case UFFD_EVENT_REMAP:
		dropped = model_move(&s->model, msg->arg.remap.from, msg->arg.remap.to,
				     msg->arg.remap.len, number);
		break;
	case UFFD_EVENT_REMOVE:
		/*
		 * The range stays registered, although nothing will ever come
		 * there: unregistering would split the mapping, and a later
		 * mremap of the whole would fail.
		 */
	case UFFD_EVENT_UNMAP:
		dropped = model_cut(&s->model, msg->arg.remove.start, msg->arg.remove.end);
		break;
	default:
		log_line("process %u: unknown userfaultfd event %#x", s->pid, msg->event);
		return NULL;
	}
	count(&state->counters.pages_home, dropped);
	count(&state->counters.pages_dropped, dropped);
	return NULL;
}

void fault_replay(struct uspace *s, struct event_slot *slot)
{
	uint32_t i;

	for (i = slot->applied; i < EVENT_MESSAGES && slot->msg[i].event; i++) {
		const struct uffd_msg *msg = &slot->msg[i];
		uint64_t number = slot->number + i;
		struct uspace *child = NULL;

		/* Whoever waits for a page is woken, and faults again. */
		if (msg->event == UFFD_EVENT_FORK && space_born(number))
			;
		else if (msg->event != UFFD_EVENT_PAGEFAULT)
			child = apply_event(s, msg, number);
		in_order();
		slot->applied = i + 1;
		if (child)
			space_publish(child);
	}
}

static void add_fault(struct uspace *s, struct batch *batch, uint64_t addr)
{
	addr &= ~(PM_PAGE_SIZE - 1ull);
	if (!batch_add(batch, addr))
		uffd_wake(s->fd, addr);
}

/* The slot must not claim anything while it changes hands. */
static void slot_prepare(struct event_slot *slot, const struct uspace *s)
{
	memset(slot->msg, 0, sizeof(slot->msg));
	in_order();
	slot->number = state_numbers(EVENT_MESSAGES);
	slot->kept = s->model.kept.fd;
	slot->applied = 0;
	in_order();
}

/* Empties the queue; returns false if there was nothing in it. */
static bool read_messages(struct uspace *s, struct batch *batch, struct event_slot *slot)
{
	bool any = false;

	for (;;) {
		struct uspace *child;
		uint32_t i;
		ssize_t n;

		slot_prepare(slot, s);
		n = read(s->fd, slot->msg, sizeof(slot->msg));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			if (n < 0 && errno != EAGAIN)
				log_errno(errno, "process %u: cannot read userfaultfd", s->pid);
			return any;
		}
		n /= sizeof(slot->msg[0]);
		any = true;
		for (i = 0; i < n; i++) {
			const struct uffd_msg *msg = &slot->msg[i];

			if (msg->event == UFFD_EVENT_PAGEFAULT) {
				add_fault(s, batch, msg->arg.pagefault.address);
				continue;
			}
			child = apply_event(s, msg, slot->number + i);
			in_order();
			slot->applied = i + 1;
			/* Before, somebody could have closed it and nobody would know. */
			if (child)
				space_publish(child);
		}
	}
}

/* Sequential faults are read ahead of, the further the longer they go on. */
static uint64_t window_for(struct uspace *s, uint64_t addr)
{
	unsigned int base = __atomic_load_n(&state->window, __ATOMIC_RELAXED);

	if (base > 1 && addr == s->next_fault)
		s->window = min_u64(2 * max_u64(s->window, base), max_u64(base, MAX_WINDOW));
	else
		s->window = base;
	return s->window;
}

static enum uffd_result answer_zero(struct uspace *s, const struct extent *ext)
{
	enum uffd_result res;
	uint64_t done;

	res = uffd_zero(s->fd, ext->vaddr, ext->npages, &done);
	if (!done && res == UFFD_ABSENT && ext->npages > 1)
		res = uffd_zero(s->fd, ext->vaddr, 1, &done);
	count(&state->counters.pages_zero, done);
	return done ? UFFD_OK : res;
}

static enum uffd_result answer_copy(struct uspace *s, const struct extent *ext,
				    struct fill_buffer *buf)
{
	enum uffd_result res;
	uint64_t filled;

	res = fill(s, ext, ext->npages, buf, &state->counters.pages_faulted, &filled);
	if (!filled && res == UFFD_ABSENT && ext->npages > 1) {
		/* The window reaches beyond the mapping. */
		res = fill(s, ext, 1, buf, &state->counters.pages_faulted, &filled);
	}
	s->next_fault = ext->vaddr + (filled << PM_PAGE_SHIFT);
	return filled ? UFFD_OK : res;
}

static enum uffd_result answer(struct uspace *s, uint64_t addr, uint64_t window,
			       struct fill_buffer *buf)
{
	struct extent ext = model_at(&s->model, addr, window);

	return ext.zero ? answer_zero(s, &ext) : answer_copy(s, &ext, buf);
}

/* The process is in the middle of an unmap, a move or a fork. */
static void await_event(struct uspace *s, struct batch *batch, struct event_slot *slot)
{
	struct pollfd pfd = { .fd = s->fd, .events = POLLIN };

	count(&state->counters.retries, 1);
	if (!read_messages(s, batch, slot)) {
		poll(&pfd, 1, BUSY_MS);
		read_messages(s, batch, slot);
	}
}

/* Returns false if the process is gone. */
static bool answer_all(struct uspace *s, struct batch *batch, struct worker *w)
{
	unsigned int tries = 0;

	while (batch_waiting(batch)) {
		uint64_t addr = batch->addr[batch->next];
		/* Others that wait are more urgent than what may come next. */
		uint64_t window = batch_waiting(batch) > 4 ? 1 : window_for(s, addr);

		switch (answer(s, addr, window, &w->buf)) {
		case UFFD_OK:
			break;
		case UFFD_BUSY:
			if (++tries < BUSY_TRIES) {
				await_event(s, batch, w->slot);
				continue;
			}
			uffd_wake(s->fd, addr);
			break;
		case UFFD_EXITED:
			return false;
		case UFFD_FULL:
			count(&state->counters.no_memory, 1);
			usleep(FULL_US);
			uffd_wake(s->fd, addr);
			break;
		default:
			/*
			 * The page or its mapping is not what it was when the
			 * fault happened: look again.
			 */
			uffd_wake(s->fd, addr);
			break;
		}
		batch->next++;
	}
	return true;
}

static void note_time(uint64_t begin, unsigned int n)
{
	uint64_t now = now_us(), max = counted(&state->counters.fault_micros_max);

	count(&state->counters.faults, n);
	count(&state->counters.fault_micros, now - begin);
	while (now - begin > max &&
	       !__atomic_compare_exchange_n(&state->counters.fault_micros_max, &max, now - begin, false,
					    __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
	__atomic_store_n(&state->counters.last_fault, now, __ATOMIC_RELAXED);
}

static void serve(struct uspace *s, struct worker *w)
{
	uint64_t begin = now_us();
	struct batch batch = { .n = 0 };

	pthread_rwlock_wrlock(&s->lock);
	if (s->fd < 0) {
		pthread_rwlock_unlock(&s->lock);
		return;
	}
	read_messages(s, &batch, w->slot);
	if (!answer_all(s, &batch, w) || space_complete(s))
		space_close_locked(s);
	else
		space_rearm(s);
	pthread_rwlock_unlock(&s->lock);
	if (batch.n)
		note_time(begin, batch.n);
}

static void *worker(void *arg)
{
	struct worker w = { .slot = arg };
	struct epoll_event ev;

	fill_buffer_init(&w.buf);
	for (;;) {
		int n = epoll_wait(space_epoll, &ev, 1, -1);

		if (n <= 0)
			continue;
		if (!ev.data.ptr)
			break;
		serve(ev.data.ptr, &w);
	}
	fill_buffer_free(&w.buf);
	return NULL;
}

void fault_set_window(unsigned int window)
{
	__atomic_store_n(&state->window, window, __ATOMIC_RELAXED);
}

void fault_start(unsigned int n)
{
	struct epoll_event ev = { .events = EPOLLIN };

	stop_fd = eventfd(0, EFD_CLOEXEC);
	if (stop_fd < 0 || epoll_ctl(space_epoll, EPOLL_CTL_ADD, stop_fd, &ev) < 0)
		die_errno("cannot make an eventfd");
	for (; n_threads < n && n_threads < MAX_THREADS; n_threads++)
		if (pthread_create(&threads[n_threads], NULL, worker,
				   &state->events[n_threads]))
			die(EXIT_FAILED, "cannot start a thread");
}

void fault_stop(void)
{
	uint64_t one = 1;
	unsigned int i;

	if (write(stop_fd, &one, sizeof(one)) < 0)
		return;
	for (i = 0; i < n_threads; i++)
		pthread_join(threads[i], NULL);
	close(stop_fd);
}

static void probe(struct uspace *s)
{
	static struct fill_buffer buf;
	struct extent ext;
	uint64_t filled;
	bool gone = false;

	if (!buf.bounce)
		fill_buffer_init(&buf);
	pthread_rwlock_rdlock(&s->lock);
	if (s->fd >= 0 && model_next(&s->model, 0, UINT64_MAX, 1, &ext))
		gone = fill(s, &ext, 1, &buf, &state->counters.pages_drained, &filled) == UFFD_EXITED;
	pthread_rwlock_unlock(&s->lock);
	if (gone)
		space_close(s);
}

void fault_probe_exited(void)
{
	struct uspace *s, *snapshot[256];
	unsigned int i, n = 0;
	static unsigned int skip;
	unsigned int seen = 0;

	/* A different part of the list each time, if it is long. */
	pthread_mutex_lock(&space_list_lock);
	for (s = space_list; s; s = s->next) {
		if (seen++ < skip || n == ARRAY_SIZE(snapshot))
			continue;
		if (__atomic_load_n(&s->restore->over, __ATOMIC_ACQUIRE) && !s->claims)
			snapshot[n++] = s;
	}
	skip = n == ARRAY_SIZE(snapshot) ? skip + n : 0;
	pthread_mutex_unlock(&space_list_lock);
	for (i = 0; i < n; i++)
		probe(snapshot[i]);
}
