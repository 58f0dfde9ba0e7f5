/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Faults of one space that were read and are answered in one go. */
#ifndef REKERNEL_BATCH_H
#define REKERNEL_BATCH_H

#include <stdbool.h>
#include <stdint.h>

#define BATCH_MAX 64u

struct batch {
	uint64_t addr[BATCH_MAX];
	unsigned int next;	/* first that is not answered */
	unsigned int n;
};

/*
 * Several threads may wait for one page, and one answer serves them all.  But
 * only one that is still to come: a page can be given back and be faulted on
 * again while the rest of the batch is being answered.
 * Returns false if there is no room: its thread must be woken to fault again.
 */
static inline bool batch_add(struct batch *batch, uint64_t addr)
{
	unsigned int i;

	for (i = batch->next; i < batch->n; i++)
		if (batch->addr[i] == addr)
			return true;
	if (batch->n == BATCH_MAX)
		return false;
	batch->addr[batch->n++] = addr;
	return true;
}

static inline unsigned int batch_waiting(const struct batch *batch)
{
	return batch->n - batch->next;
}

#endif
