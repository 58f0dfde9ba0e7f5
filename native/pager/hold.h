/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The end when no worker can serve any more: stop the processes, and hold on. */
#ifndef REKERNEL_HOLD_H
#define REKERNEL_HOLD_H

#include <stdnoreturn.h>

/*
 * Stops every process that still misses pages, tells so in the status file, and
 * keeps their userfaultfds until the processes are gone: no page of them is ever
 * zeros.  Allocates nothing.
 */
noreturn void hold(void);

#endif
