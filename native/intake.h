/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Userfaultfds come in: CRIU's side of the lazy-pages protocol. */
#ifndef REKERNEL_INTAKE_H
#define REKERNEL_INTAKE_H

#include <stdbool.h>
#include <stddef.h>

#include "mapfile.h"
#include "options.h"

/* Listens on all sockets and adds them to the main loop. */
void intake_start(struct map_file *mf, const struct listen_option *listens, size_t n);
/* No more restores; the sockets vanish. */
void intake_stop(void);

struct intake_status {
	size_t listeners;
	size_t waiting;		/* listeners nobody has connected to yet */
	size_t restoring;	/* connections whose restore is not over */
	size_t finished;
	size_t failed;
};

struct intake_status intake_status(void);

#endif
