// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The protocol of criu/uffd.c.  Every task of a restore sends, over one shared
 * connection: its PID as int32, then one byte that carries a userfaultfd.  A
 * zombie sends its PID negated and no descriptor.  When all memory is laid out,
 * the restore sends LAZY_PAGES_RESTORE_FINISHED in the place of a PID.
 */
#define _GNU_SOURCE
#include "intake.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "drain.h"
#include "log.h"
#include "loop.h"
#include "space.h"
#include "util.h"

/* "RSTF"; larger than any PID. */
#define LAZY_PAGES_RESTORE_FINISHED 0x52535446

struct listener {
	struct watch watch;
	struct listen_option opt;
	bool used;
};

struct connection {
	struct watch watch;
	const struct listener *listener;
	struct restore restore;
	union {
		int32_t value;
		char bytes[4];
	} pid;
	size_t have;		/* bytes of it, 4 when the descriptor is due */
	struct connection *next;	/* never freed: spaces point to the restore */
};

static struct map_file *map;
static struct listener *listeners;
static size_t n_listeners;
static struct connection *connections;

static void take_uffd(struct connection *c, int fd)
{
	uint32_t pid = (uint32_t)c->pid.value;
	struct map_space *ms;

	ms = map_file_find(map, pid, c->listener->opt.any_tree, c->listener->opt.tree);
	if (!ms) {
		log_line("process %u of %s is not in the page map: it gets zeros", pid,
			 c->restore.path);
		count(&counters.unknown, 1);
	} else if (ms->claims++) {
		/* A second attempt at a restore that failed. */
		count(&counters.pages_total, ms->image.pages);
	}
	space_open(fd, pid, ms ? &ms->image : NULL, &c->restore);
}

static void restore_over(struct connection *c, bool failed)
{
	if (c->restore.over)
		return;
	c->restore.failed = failed;
	__atomic_store_n(&c->restore.over, true, __ATOMIC_RELEASE);
	if (failed)
		log_line("restore at %s ended without a word: its processes are served on",
			 c->restore.path);
	space_sweep();
	drain_kick();
}

/* Returns false if the connection is of no more use. */
static bool take_pid(struct connection *c, const char *buf, size_t n)
{
	memcpy(c->pid.bytes + c->have, buf, n);
	c->have += n;
	if (c->have < sizeof(c->pid.bytes))
		return true;
	if (c->pid.value == LAZY_PAGES_RESTORE_FINISHED) {
		restore_over(c, false);
		c->have = 0;
	} else if (c->pid.value < 0) {
		c->have = 0;
	} else if (!c->pid.value) {
		log_line("%s: PID 0 announced", c->restore.path);
		return false;
	}
	return true;
}

static int passed_fd(struct msghdr *msg)
{
	struct cmsghdr *cmsg;
	int fd;

	for (cmsg = CMSG_FIRSTHDR(msg); cmsg; cmsg = CMSG_NXTHDR(msg, cmsg)) {
		if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS)
			continue;
		memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
		return fd;
	}
	return -1;
}

static void connection_ready(struct watch *watch)
{
	struct connection *c = (struct connection *)watch;
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	char buf[4];
	struct iovec iov = { .iov_base = buf };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};
	bool want_fd = c->have == sizeof(c->pid.bytes), ok;
	ssize_t n;
	int fd;

	/* Never read beyond what is due: a descriptor belongs to its byte. */
	iov.iov_len = want_fd ? 1 : sizeof(c->pid.bytes) - c->have;
	n = recvmsg(watch->fd, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		restore_over(c, true);
		loop_remove(watch);
		return;
	}
	fd = passed_fd(&msg);
	if (want_fd) {
		ok = fd >= 0;
		if (ok)
			take_uffd(c, fd);
		else
			log_line("%s: no descriptor for process %d", c->restore.path, c->pid.value);
		c->have = 0;
	} else {
		if (fd >= 0)
			close(fd);
		ok = take_pid(c, buf, (size_t)n);
	}
	if (!ok) {
		restore_over(c, true);
		loop_remove(watch);
	}
}

static void listener_ready(struct watch *watch)
{
	struct listener *l = (struct listener *)watch;
	struct connection *c;
	int fd;

	fd = accept4(watch->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0)
		return;
	c = xcalloc(1, sizeof(*c));
	c->watch = (struct watch){ .fd = fd, .ready = connection_ready };
	c->listener = l;
	c->restore.path = l->opt.path;
	c->next = connections;
	connections = c;
	l->used = true;
	loop_add(&c->watch);
}

void intake_start(struct map_file *mf, const struct listen_option *listens, size_t n)
{
	size_t i;

	map = mf;
	listeners = xcalloc(n, sizeof(*listeners));
	n_listeners = n;
	for (i = 0; i < n; i++) {
		if (listens[i].any_tree && map_file_ambiguous(mf))
			die(EXIT_USAGE, "PIDs are not unique in the map: use --listen TREE=%s",
			    listens[i].path);
		listeners[i].opt = listens[i];
		listeners[i].watch = (struct watch){
			.fd = listen_unix(listens[i].path), .ready = listener_ready,
		};
		loop_add(&listeners[i].watch);
	}
}

void intake_stop(void)
{
	struct connection *c;
	size_t i;

	for (i = 0; i < n_listeners; i++) {
		if (listeners[i].watch.fd < 0)
			continue;
		loop_remove(&listeners[i].watch);
		unlink(listeners[i].opt.path);
	}
	for (c = connections; c; c = c->next)
		if (c->watch.fd >= 0)
			loop_remove(&c->watch);
}

struct intake_status intake_status(void)
{
	struct intake_status st = { .listeners = n_listeners };
	const struct connection *c;
	size_t i;

	for (i = 0; i < n_listeners; i++)
		st.waiting += !listeners[i].used;
	for (c = connections; c; c = c->next) {
		if (!c->restore.over)
			st.restoring++;
		else if (c->restore.failed)
			st.failed++;
		else
			st.finished++;
	}
	return st;
}
