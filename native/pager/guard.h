/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who sees to it that the userfaultfds stay open.  When the last descriptor of one
 * is closed the kernel lets its process go on, with zeros for what is missing.
 *
 * Three processes share one descriptor table: whatever any of them has, all have.
 *
 *   worker      does everything.  If it dies it is started anew.
 *   supervisor  waits for the two others, and starts them anew.  It has the memory
 *               of the time before the first worker, and so has each new one.
 *   witness     waits for the supervisor, and takes its place.
 *
 * A worker that has lost both of the others makes a witness of its own; but that
 * one has a worker's memory and cannot start another.  If workers do not come to
 * life, or the last one dies, the processes concerned are stopped: see hold.h.
 */
#ifndef REKERNEL_GUARD_H
#define REKERNEL_GUARD_H

#include <stdnoreturn.h>

/*
 * Makes this process the supervisor; worker() runs in others and returns an exit
 * code.  last_words() tells what a worker that was killed when all was home could
 * not tell any more.
 */
noreturn void guard_run(int (*worker)(void), void (*last_words)(void));
/* A worker has begun to serve. */
void guard_ready(void);
/* A worker's look at the others. */
void guard_check(void);

#endif
