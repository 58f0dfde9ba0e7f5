// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "control.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "drain.h"
#include "fault.h"
#include "log.h"
#include "loop.h"
#include "status.h"
#include "util.h"

struct client {
	struct watch watch;
	char line[256];
	size_t len;
	struct client *next;
};

static struct watch listener;
static const char *socket_path;
static struct client *clients;
static enum control_wish wish;

enum control_wish control_wish(void)
{
	return wish;
}

static void tell(const struct client *c, const char *text)
{
	/* A client that does not read its answers does not get them. */
	if (send(c->watch.fd, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return;
}

static void tell_status(const struct client *c)
{
	char buf[STATUS_MAX];

	status_format(buf, sizeof(buf));
	tell(c, buf);
}

static void command(struct client *c, char *line)
{
	char *arg = strchr(line, ' ');
	uint64_t rate = 0, pages;

	if (arg)
		*arg++ = '\0';
	if (!strcmp(line, "status") && !arg) {
		tell_status(c);
	} else if (!strcmp(line, "drain")) {
		if (arg && !parse_u64_all(arg, &rate)) {
			tell(c, "{\"error\":\"drain wants bytes per second\"}\n");
			return;
		}
		log_line("drain, %llu bytes per second", (unsigned long long)rate);
		drain_begin(rate);
		tell_status(c);
	} else if (!strcmp(line, "window")) {
		if (!arg || !parse_u64_all(arg, &pages) || !pages || pages > FAULT_WINDOW_MAX) {
			tell(c, "{\"error\":\"window wants a number of pages\"}\n");
			return;
		}
		fault_set_window((unsigned int)pages);
		tell_status(c);
	} else if (!strcmp(line, "complete") && !arg) {
		log_line("no restore begins any more");
		status_expect_no_more();
		tell_status(c);
	} else if (!strcmp(line, "quit") && !arg) {
		if (status_spaces_left()) {
			tell(c, "{\"error\":\"pages are not home yet: drain first, or abort\"}\n");
			return;
		}
		wish = CONTROL_QUIT;
		tell_status(c);
	} else if (!strcmp(line, "abort") && !arg) {
		wish = CONTROL_ABORT;
		tell_status(c);
	} else {
		tell(c, "{\"error\":\"unknown command\"}\n");
	}
}

static void client_free(struct client *c)
{
	struct client **p;

	for (p = &clients; *p != c; p = &(*p)->next)
		;
	*p = c->next;
	loop_remove(&c->watch);
	free(c);
}

static void client_ready(struct watch *watch)
{
	struct client *c = (struct client *)watch;
	ssize_t n;
	char *end;

	n = recv(watch->fd, c->line + c->len, sizeof(c->line) - 1 - c->len, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		client_free(c);
		return;
	}
	c->len += (size_t)n;
	c->line[c->len] = '\0';
	while ((end = strchr(c->line, '\n'))) {
		*end = '\0';
		command(c, c->line);
		c->len -= (size_t)(end + 1 - c->line);
		memmove(c->line, end + 1, c->len + 1);
	}
	if (c->len == sizeof(c->line) - 1)
		client_free(c);
}

static void listener_ready(struct watch *watch)
{
	struct client *c;
	int fd;

	fd = accept4(watch->fd, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0)
		return;
	c = xcalloc(1, sizeof(*c));
	c->watch = (struct watch){ .fd = fd, .ready = client_ready };
	c->next = clients;
	clients = c;
	loop_add(&c->watch);
}

void control_open(const char *path)
{
	socket_path = path;
	listener = (struct watch){ .fd = listen_unix(path), .ready = listener_ready };
}

void control_start(void)
{
	loop_add(&listener);
}

void control_tell(const char *line)
{
	const struct client *c;

	for (c = clients; c; c = c->next)
		tell(c, line);
}

void control_stop(void)
{
	while (clients)
		client_free(clients);
	loop_remove(&listener);
	unlink(socket_path);
}
