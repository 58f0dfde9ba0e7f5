/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Userfaultfds come in: CRIU's side of the lazy-pages protocol. */
#ifndef REKERNEL_INTAKE_H
#define REKERNEL_INTAKE_H

#include <stdbool.h>
#include <stddef.h>

#include "mapfile.h"
#include "options.h"

/* Listens on all sockets; the descriptors are for good. */
void intake_open(struct map_file *mf, const struct listen_option *listens, size_t n);
/* Settles what a worker had received when it was killed. */
void intake_replay(void);
/* Is this a connection that a worker had accepted and not yet written down? */
bool intake_adopt(int fd);
/* Adds all of it to the main loop. */
void intake_start(void);
/* No more restores; the sockets vanish. */
void intake_stop(void);
/* Only their names. */
void intake_unlink(void);

struct intake_status {
	size_t listeners;
	size_t waiting;		/* listeners nobody has connected to yet */
	size_t restoring;	/* connections whose restore is not over */
	size_t finished;
	size_t failed;
};

struct intake_status intake_status(void);

#endif
