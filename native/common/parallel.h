/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef REKERNEL_PARALLEL_H
#define REKERNEL_PARALLEL_H

#include <stddef.h>

/*
 * Calls fn(ctx, scratch, i) for every i below n from one thread per CPU, in no
 * particular order.  scratch_new and scratch_free, if not NULL, make and end
 * what belongs to one thread.
 */
struct parallel {
	void (*fn)(void *ctx, void *scratch, size_t i);
	void *ctx;
	size_t n;
	void *(*scratch_new)(void);
	void (*scratch_free)(void *scratch);
};

void parallel_run(const struct parallel *job);

#endif
