/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How the threads tell the main loop that something is worth a look. */
#ifndef REKERNEL_NOTIFY_H
#define REKERNEL_NOTIFY_H

enum notify_what {
	NOTIFY_SPACES = 1,	/* a space was opened or closed */
};

/* Makes the eventfd the main loop polls; returns it. */
int notify_init(void);
void notify(enum notify_what what);

#endif
