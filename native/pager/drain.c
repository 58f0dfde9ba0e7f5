// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Threads claim 2 MiB of pages at a time, so several can work on one space.  A
 * claim is copied in chunks with the space's lock released in between; chunks
 * are short while processes fault, for the next fault may wait for one.
 */
#define _GNU_SOURCE
#include "drain.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "fill.h"
#include "log.h"
#include "util.h"

#define CLAIM_PAGES	512u
#define QUIET_CHUNK	512u
#define BUSY_CHUNK	16u
#define QUIET_US	5000	/* no fault for so long */
#define NICE		5
#define MAX_THREADS	8
#define RETRY_US	100
#define FULL_US		20000
#define IDLE_MS		50

static pthread_t threads[MAX_THREADS];
static unsigned int n_threads;

/* Under space_list_lock, like the claims. */
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static bool wanted, stopping;

/* Speed limit. */
static pthread_mutex_t rate_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t rate;		/* bytes per second, 0 for none */
static uint64_t rate_due;	/* now_us() when the bytes so far are paid for */

static void sleep_us(uint64_t us)
{
	struct timespec ts = { .tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000 };

	nanosleep(&ts, NULL);
}

static void pay(uint64_t pages)
{
	uint64_t now, until;

	pthread_mutex_lock(&rate_lock);
	if (!rate || !pages) {
		pthread_mutex_unlock(&rate_lock);
		return;
	}
	now = now_us();
	rate_due = max_u64(rate_due, now) + pages * PM_PAGE_SIZE * 1000000 / rate;
	until = rate_due;
	pthread_mutex_unlock(&rate_lock);
	/* In small steps, because the limit may be lifted meanwhile. */
	while (until > now) {
		sleep_us(min_u64(until - now, 100000));
		now = now_us();
		pthread_mutex_lock(&rate_lock);
		until = min_u64(until, rate_due);
		pthread_mutex_unlock(&rate_lock);
	}
}

static uint64_t chunk_size(void)
{
	return now_us() - counted(&state->counters.last_fault) < QUIET_US ? BUSY_CHUNK : QUIET_CHUNK;
}

/* Not registered with us, for instance because it is locked: CRIU has filled it. */
static void drop_page(struct uspace *s, uint64_t ordinal)
{
	uint64_t n = model_done(&s->model, ordinal, 1);

	count(&state->counters.pages_home, n);
	count(&state->counters.pages_dropped, n);
}

/* Returns false if the space has nothing left for the drain. */
static bool drain_claim(struct uspace *s, uint64_t from, uint64_t to, struct fill_buffer *buf)
{
	uint64_t limit = CLAIM_PAGES;

	while (from < to) {
		uint64_t chunk = chunk_size(), filled = 0, pause = 0;
		struct extent ext;

		pthread_rwlock_rdlock(&s->lock);
		if (s->fd < 0) {
			pthread_rwlock_unlock(&s->lock);
			return false;
		}
		if (!model_next(&s->model, from, to, chunk, &ext)) {
			pthread_rwlock_unlock(&s->lock);
			return true;
		}
		switch (fill(s, &ext, limit, buf, &state->counters.pages_drained, &filled)) {
		case UFFD_OK:
			limit = CLAIM_PAGES;
			break;
		case UFFD_BUSY:
			count(&state->counters.retries, 1);
			pause = RETRY_US;
			break;
		case UFFD_FULL:
			count(&state->counters.no_memory, 1);
			pause = FULL_US;
			break;
		case UFFD_EXITED:
			pthread_rwlock_unlock(&s->lock);
			return false;
		case UFFD_ABSENT:
			/* Mappings border here; if not even one page fits, there is none. */
			if (filled)
				break;
			if (limit > 1) {
				limit = min_u64(limit, ext.npages) / 2;
				limit = max_u64(limit, 1);
				break;
			}
			drop_page(s, ext.ordinal);
			filled = 1;
			break;
		default:
			pause = FULL_US;
			break;
		}
		pthread_rwlock_unlock(&s->lock);
		from = ext.ordinal + filled;
		pay(filled);
		if (pause)
			sleep_us(pause);
	}
	return true;
}

/* Under space_list_lock. */
static struct uspace *claim(uint64_t *from, uint64_t *to)
{
	struct uspace *s;

	for (s = space_list; s; s = s->next) {
		uint64_t pages = s->model.image->pages;

		if (!__atomic_load_n(&s->restore->over, __ATOMIC_ACQUIRE) || !model_left(&s->model))
			continue;
		if (s->cursor >= pages) {
			/* What the last round had to leave; a damaged page stays left. */
			if (s->claims || __atomic_load_n(&s->damaged, __ATOMIC_RELAXED))
				continue;
			s->cursor = 0;
		}
		*from = s->cursor;
		*to = s->cursor = min_u64(*from + CLAIM_PAGES, pages);
		s->claims++;
		return s;
	}
	return NULL;
}

static void wait_for_work(void)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += IDLE_MS * 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	if (wanted)
		pthread_cond_timedwait(&wake, &space_list_lock, &until);
	else
		pthread_cond_wait(&wake, &space_list_lock);
}

static void *worker(void *arg)
{
	struct fill_buffer buf;

	(void)arg;
	fill_buffer_init(&buf);
	setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), NICE);
	pthread_mutex_lock(&space_list_lock);
	while (!stopping) {
		uint64_t from, to;
		struct uspace *s = wanted ? claim(&from, &to) : NULL;
		bool more;

		if (!s) {
			wait_for_work();
			continue;
		}
		pthread_mutex_unlock(&space_list_lock);
		more = drain_claim(s, from, to, &buf);
		if (!more || space_complete(s))
			space_close(s);
		pthread_mutex_lock(&space_list_lock);
		s->claims--;
	}
	pthread_mutex_unlock(&space_list_lock);
	fill_buffer_free(&buf);
	return NULL;
}

void drain_start(unsigned int n)
{
	for (; n_threads < n && n_threads < MAX_THREADS; n_threads++)
		if (pthread_create(&threads[n_threads], NULL, worker, NULL))
			die(EXIT_FAILED, "cannot start a thread");
}

void drain_stop(void)
{
	unsigned int i;

	pthread_mutex_lock(&space_list_lock);
	stopping = true;
	pthread_cond_broadcast(&wake);
	pthread_mutex_unlock(&space_list_lock);
	for (i = 0; i < n_threads; i++)
		pthread_join(threads[i], NULL);
}

void drain_begin(uint64_t new_rate)
{
	state->rate = new_rate;
	state->drain_wanted = true;
	pthread_mutex_lock(&rate_lock);
	rate = new_rate;
	rate_due = 0;
	pthread_mutex_unlock(&rate_lock);
	pthread_mutex_lock(&space_list_lock);
	wanted = true;
	pthread_cond_broadcast(&wake);
	pthread_mutex_unlock(&space_list_lock);
}

bool drain_wanted(void)
{
	bool w;

	pthread_mutex_lock(&space_list_lock);
	w = wanted;
	pthread_mutex_unlock(&space_list_lock);
	return w;
}

void drain_kick(void)
{
	pthread_mutex_lock(&space_list_lock);
	pthread_cond_broadcast(&wake);
	pthread_mutex_unlock(&space_list_lock);
}
