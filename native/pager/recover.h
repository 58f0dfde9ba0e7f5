/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A worker takes over what the one before it had when it was killed. */
#ifndef REKERNEL_RECOVER_H
#define REKERNEL_RECOVER_H

#include "mapfile.h"

/* What is open now stays so, whoever dies. */
void recover_keep(void);
/*
 * Looks through the descriptors that all workers share; before this process opens
 * any itself.
 */
void recover_look(void);
/* Makes spaces of them and settles what was under way; before space_serve(). */
void recover(const struct map_file *map);

#endif
