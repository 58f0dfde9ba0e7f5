// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * EPOLLONESHOT gives a space to one thread at a time.  The thread reads all that
 * is queued: events change the model at once, in their order, and faults are
 * collected and answered last, from the model as it is then.
 *
 * Every fault that was read is either answered or its thread is woken to fault
 * again: none is ever lost.
 */
#define _GNU_SOURCE
#include "fault.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "batch.h"
#include "fill.h"
#include "log.h"
#include "util.h"

#define MESSAGES	16	/* read at once */
#define MAX_WINDOW	64u
#define MAX_THREADS	16
/* An mmap, mremap or fork of a large process can take this long. */
#define BUSY_TRIES	100
#define BUSY_MS		1
#define FULL_US		2000

static pthread_t threads[MAX_THREADS];
static unsigned int n_threads;
/* Changed by the control thread while the workers read it. */
static _Atomic unsigned int base_window;
static int stop_fd = -1;

static void apply_event(struct uspace *s, const struct uffd_msg *msg)
{
	uint64_t dropped = 0;

	switch (msg->event) {
	case UFFD_EVENT_FORK:
		space_open_fork((int)msg->arg.fork.ufd, s);
		return;
	case UFFD_EVENT_REMAP:
		dropped = model_move(&s->model, msg->arg.remap.from, msg->arg.remap.to,
				     msg->arg.remap.len);
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
		return;
	}
	count(&counters.pages_home, dropped);
	count(&counters.pages_dropped, dropped);
}

static void add_fault(struct uspace *s, struct batch *batch, uint64_t addr)
{
	addr &= ~(PM_PAGE_SIZE - 1ull);
	if (!batch_add(batch, addr))
		uffd_wake(s->fd, addr);
}

/* Empties the queue; returns false if there was nothing in it. */
static bool read_messages(struct uspace *s, struct batch *batch)
{
	struct uffd_msg msgs[MESSAGES];
	bool any = false;

	for (;;) {
		ssize_t i, n = read(s->fd, msgs, sizeof(msgs));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			if (n < 0 && errno != EAGAIN)
				log_errno(errno, "process %u: cannot read userfaultfd", s->pid);
			return any;
		}
		n /= sizeof(msgs[0]);
		any = true;
		for (i = 0; i < n; i++) {
			if (msgs[i].event == UFFD_EVENT_PAGEFAULT)
				add_fault(s, batch, msgs[i].arg.pagefault.address);
			else
				apply_event(s, &msgs[i]);
		}
	}
}

/* Sequential faults are read ahead of, the further the longer they go on. */
static uint64_t window_for(struct uspace *s, uint64_t addr)
{
	unsigned int base = base_window;

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
	count(&counters.pages_zero, done);
	return done ? UFFD_OK : res;
}

static enum uffd_result answer_copy(struct uspace *s, const struct extent *ext,
				    struct fill_buffer *buf)
{
	enum uffd_result res;
	uint64_t filled;

	res = fill(s, ext, ext->npages, buf, &counters.pages_faulted, &filled);
	if (!filled && res == UFFD_ABSENT && ext->npages > 1) {
		/* The window reaches beyond the mapping. */
		res = fill(s, ext, 1, buf, &counters.pages_faulted, &filled);
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
static void await_event(struct uspace *s, struct batch *batch)
{
	struct pollfd pfd = { .fd = s->fd, .events = POLLIN };

	count(&counters.retries, 1);
	if (!read_messages(s, batch)) {
		poll(&pfd, 1, BUSY_MS);
		read_messages(s, batch);
	}
}

/* Returns false if the process is gone. */
static bool answer_all(struct uspace *s, struct batch *batch, struct fill_buffer *buf)
{
	unsigned int tries = 0;

	while (batch_waiting(batch)) {
		uint64_t addr = batch->addr[batch->next];
		/* Others that wait are more urgent than what may come next. */
		uint64_t window = batch_waiting(batch) > 4 ? 1 : window_for(s, addr);

		switch (answer(s, addr, window, buf)) {
		case UFFD_OK:
			break;
		case UFFD_BUSY:
			if (++tries < BUSY_TRIES) {
				await_event(s, batch);
				continue;
			}
			uffd_wake(s->fd, addr);
			break;
		case UFFD_EXITED:
			return false;
		case UFFD_FULL:
			count(&counters.no_memory, 1);
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
	uint64_t now = now_us(), max = counted(&counters.fault_micros_max);

	count(&counters.faults, n);
	count(&counters.fault_micros, now - begin);
	while (now - begin > max &&
	       !__atomic_compare_exchange_n(&counters.fault_micros_max, &max, now - begin, false,
					    __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
	__atomic_store_n(&counters.last_fault, now, __ATOMIC_RELAXED);
}

static void serve(struct uspace *s, struct fill_buffer *buf)
{
	uint64_t begin = now_us();
	struct batch batch = { .n = 0 };

	pthread_rwlock_wrlock(&s->lock);
	if (s->fd < 0) {
		pthread_rwlock_unlock(&s->lock);
		return;
	}
	read_messages(s, &batch);
	if (!answer_all(s, &batch, buf) || space_complete(s))
		space_close_locked(s);
	else
		space_rearm(s);
	pthread_rwlock_unlock(&s->lock);
	if (batch.n)
		note_time(begin, batch.n);
}

static void *worker(void *arg)
{
	struct fill_buffer buf;
	struct epoll_event ev;

	(void)arg;
	fill_buffer_init(&buf);
	for (;;) {
		int n = epoll_wait(space_epoll, &ev, 1, -1);

		if (n <= 0)
			continue;
		if (!ev.data.ptr)
			break;
		serve(ev.data.ptr, &buf);
	}
	fill_buffer_free(&buf);
	return NULL;
}

void fault_set_window(unsigned int window)
{
	base_window = window;
}

void fault_start(unsigned int n, unsigned int window)
{
	struct epoll_event ev = { .events = EPOLLIN };

	base_window = window;
	stop_fd = eventfd(0, EFD_CLOEXEC);
	if (stop_fd < 0 || epoll_ctl(space_epoll, EPOLL_CTL_ADD, stop_fd, &ev) < 0)
		die_errno("cannot make an eventfd");
	for (; n_threads < n && n_threads < MAX_THREADS; n_threads++)
		if (pthread_create(&threads[n_threads], NULL, worker, NULL))
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
		gone = fill(s, &ext, 1, &buf, &counters.pages_drained, &filled) == UFFD_EXITED;
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
