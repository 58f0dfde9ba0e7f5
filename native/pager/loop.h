/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The main thread's event loop: everything that is not a page. */
#ifndef REKERNEL_LOOP_H
#define REKERNEL_LOOP_H

#include <stdbool.h>

/* Embedded in what a descriptor belongs to. */
struct watch {
	int fd;
	/* Called when the descriptor is readable or its peer is gone. */
	void (*ready)(struct watch *watch);
};

void loop_init(void);
void loop_add(struct watch *watch);
/* Stops watching and closes the descriptor. */
void loop_remove(struct watch *watch);
/* Waits at most timeout_ms and calls what is ready. */
void loop_once(int timeout_ms);

/* A listening socket at path, mode 0600; ends the program if that fails. */
int listen_unix(const char *path);

#endif
