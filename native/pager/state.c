// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "state.h"

#include <sys/mman.h>

#include "util.h"

/* Retries of a restore are rare, and each needs one. */
#define RESTORES_EACH	4
#define RESTORES_MORE	64

struct state *state;

void state_init(size_t n_listeners, size_t n_spaces)
{
	size_t max = RESTORES_EACH * n_listeners + RESTORES_MORE, restores, len, i;
	char *p;

	restores = align_up(sizeof(*state), 64);
	len = restores + max * sizeof(struct restore) + n_spaces * sizeof(uint32_t);
	p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE,
		 -1, 0);
	if (p == MAP_FAILED)
		die_errno("cannot map the memory that workers share");
	state = (struct state *)p;
	state->restores = (struct restore *)(p + restores);
	state->claims = (uint32_t *)(state->restores + max);
	state->max_restores = max;
	state->next_number = 1;
	for (i = 0; i < N_ROLES; i++)
		state->pidfd[i] = -1;
}

uint64_t state_numbers(uint64_t n)
{
	return __atomic_fetch_add(&state->next_number, n, __ATOMIC_RELAXED);
}

void named_add(struct named_list *list, uint32_t pid, uint32_t pages)
{
	uint32_t i, n = min_u64(__atomic_load_n(&list->n, __ATOMIC_ACQUIRE), NAMED_MAX);

	/* Two threads may both find nothing: then it is named twice, with the right sum. */
	for (i = 0; i < n; i++) {
		if (list->item[i].pid != pid)
			continue;
		__atomic_fetch_add(&list->item[i].pages, pages, __ATOMIC_RELAXED);
		return;
	}
	i = __atomic_fetch_add(&list->n, 1, __ATOMIC_ACQ_REL);
	if (i < NAMED_MAX)
		list->item[i] = (struct named){ pid, pages };
}
