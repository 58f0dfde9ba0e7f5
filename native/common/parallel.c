// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "parallel.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "util.h"

struct state {
	const struct parallel *job;
	size_t next;
};

static void *work(void *arg)
{
	struct state *state = arg;
	const struct parallel *job = state->job;
	void *scratch = job->scratch_new ? job->scratch_new() : NULL;
	size_t i;

	while ((i = __atomic_fetch_add(&state->next, 1, __ATOMIC_RELAXED)) < job->n)
		job->fn(job->ctx, scratch, i);
	if (job->scratch_free)
		job->scratch_free(scratch);
	return NULL;
}

static size_t cpus(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set) < 0)
		return 1;
	return CPU_COUNT(&set);
}

void parallel_run(const struct parallel *job)
{
	struct state state = { .job = job };
	size_t i, started = 0, extra;
	pthread_t *threads;

	/* The caller's thread is one of them. */
	extra = min_u64(cpus(), job->n);
	extra = extra ? extra - 1 : 0;
	threads = xcalloc(extra, sizeof(*threads));
	for (i = 0; i < extra; i++)
		if (!pthread_create(&threads[started], NULL, work, &state))
			started++;
	work(&state);
	for (i = 0; i < started; i++)
		pthread_join(threads[i], NULL);
	free(threads);
}
