/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The control socket: one command per line, one JSON line back. */
#ifndef REKERNEL_CONTROL_H
#define REKERNEL_CONTROL_H

enum control_wish {
	CONTROL_NONE,
	CONTROL_QUIT,	/* nothing is left to serve; leave */
	CONTROL_ABORT,	/* leave, whatever is left */
};

/* Listens; the descriptor is for good. */
void control_open(const char *path);
/* Adds it to the main loop. */
void control_start(void);
/* What the last command asks of the main loop. */
enum control_wish control_wish(void);
/* Tells all connected clients. */
void control_tell(const char *line);
void control_stop(void);

#endif
