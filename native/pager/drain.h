/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The threads that bring home what nobody asks for. */
#ifndef REKERNEL_DRAIN_H
#define REKERNEL_DRAIN_H

#include <stdbool.h>
#include <stdint.h>

void drain_start(unsigned int threads);
void drain_stop(void);

/* Begins, or changes the speed; bytes per second, 0 for as fast as it goes. */
void drain_begin(uint64_t rate);
bool drain_wanted(void);
/* There may be something new to do. */
void drain_kick(void);

#endif
