/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The threads that answer page faults and follow what processes do. */
#ifndef REKERNEL_FAULT_H
#define REKERNEL_FAULT_H

#include <stdbool.h>
#include <stdint.h>

#include "address_space.h"

/* window: pages to bring per fault, the faulting one included. */
#define FAULT_WINDOW_MAX 512u
void fault_set_window(unsigned int window);
void fault_start(unsigned int threads);
void fault_stop(void);

/* Settles what a worker had read of a space when it was killed; before fault_start(). */
void fault_replay(struct uspace *s, struct event_slot *slot);

/*
 * Tries to bring one page of a space, to notice that its process has exited:
 * the kernel does not say so by itself.
 */
void fault_probe_exited(void);

#endif
