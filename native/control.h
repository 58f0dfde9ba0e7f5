/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The control socket: one command per line, one JSON line back. */
#ifndef REKERNEL_CONTROL_H
#define REKERNEL_CONTROL_H

#include "mapfile.h"

enum control_wish {
	CONTROL_NONE,
	CONTROL_QUIT,	/* nothing is left to serve; leave */
	CONTROL_ABORT,	/* leave, whatever is left */
};

void control_start(const char *path, const struct map_file *mf);
/* What the last command asks of the main loop. */
enum control_wish control_wish(void);
/* Tells all connected clients. */
void control_tell(const char *line);
void control_stop(void);

#endif
