// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "loop.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "util.h"

static int epfd = -1;

void loop_init(void)
{
	epfd = epoll_create1(EPOLL_CLOEXEC);
	if (epfd < 0)
		die_errno("cannot make an epoll instance");
}

void loop_add(struct watch *watch)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = watch };

	if (epoll_ctl(epfd, EPOLL_CTL_ADD, watch->fd, &ev) < 0)
		die_errno("cannot watch a descriptor");
}

void loop_remove(struct watch *watch)
{
	epoll_ctl(epfd, EPOLL_CTL_DEL, watch->fd, NULL);
	close(watch->fd);
	watch->fd = -1;
}

void loop_once(int timeout_ms)
{
	struct epoll_event ev;
	struct watch *watch;

	/* One at a time: a callback may remove others. */
	if (epoll_wait(epfd, &ev, 1, timeout_ms) != 1)
		return;
	watch = ev.data.ptr;
	watch->ready(watch);
}

int listen_unix(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	mode_t mask;
	int fd, n;

	/* Made under another name: whoever sees the path can connect to it. */
	n = snprintf(addr.sun_path, sizeof(addr.sun_path), "%s~", path);
	if (n >= (int)sizeof(addr.sun_path))
		die(EXIT_USAGE, "socket path too long: %s", path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		die_errno("cannot make a socket");
	if (unlink(addr.sun_path) < 0 && errno != ENOENT)
		die_errno("cannot remove %s", addr.sun_path);
	mask = umask(0177);
	if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 || listen(fd, 16) < 0 ||
	    rename(addr.sun_path, path) < 0)
		die_errno("cannot listen on %s", path);
	umask(mask);
	return fd;
}
