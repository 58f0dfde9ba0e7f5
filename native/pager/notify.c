// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "notify.h"

#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "util.h"

static int event_fd = -1;

int notify_init(void)
{
	event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (event_fd < 0)
		die_errno("cannot make an eventfd");
	return event_fd;
}

void notify(enum notify_what what)
{
	uint64_t n = what;

	if (write(event_fd, &n, sizeof(n)) < 0)
		return;	/* full, so it is readable anyway */
}
