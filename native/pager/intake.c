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
#include <sys/un.h>
#include <unistd.h>

#include "drain.h"
#include "log.h"
#include "loop.h"
#include "address_space.h"
#include "util.h"

/* "RSTF"; larger than any PID. */
#define LAZY_PAGES_RESTORE_FINISHED 0x52535446

struct listener {
	struct watch watch;
	struct listen_option opt;
};

struct connection {
	struct watch watch;
	struct restore *restore;
	struct connection *next;
};

static struct map_file *map;
static struct listener *listeners;
static size_t n_listeners;
static struct connection *connections;

static const struct listen_option *option_of(const struct restore *r)
{
	return &listeners[r->listener].opt;
}

/* Returns what is to be published when the message is settled. */
static struct uspace *take_uffd(struct restore *r, int fd, uint32_t host_pid, uint64_t number)
{
	const struct listen_option *opt = option_of(r);
	struct arrival a = {
		.fd = fd, .pid = (uint32_t)r->pid.value, .image = -1, .number = number,
		.restore = (uint32_t)(r - state->restores),
	};
	struct map_space *ms;

	a.host_pid = host_pid ? host_pid : a.pid;
	ms = map_file_find(map, a.pid, opt->any_tree, opt->tree);
	if (!ms) {
		log_line("process %u of %s is not in the page map: it gets zeros", a.pid,
			 opt->path);
		count(&state->counters.unknown, 1);
		named_add(&state->unknown, a.host_pid, 0);
		return space_open(&a, &no_image);
	}
	a.image = (int)(ms - map->spaces);
	/* A second attempt at a restore that failed. */
	if (state->claims[a.image]++)
		count(&state->counters.pages_total, ms->image.pages);
	return space_open(&a, &ms->image);
}

static void restore_over(struct restore *r, bool failed)
{
	if (r->over)
		return;
	r->failed = failed;
	__atomic_store_n(&r->over, true, __ATOMIC_RELEASE);
	if (failed)
		log_line("restore at %s ended without a word: its processes are served on",
			 option_of(r)->path);
	space_sweep();
	drain_kick();
}

/* Returns false if the connection is of no more use. */
static bool take_pid(struct restore *r, uint32_t have, const char *buf, size_t n)
{
	memcpy(r->pid.bytes + have, buf, n);
	r->have = have + (uint32_t)n;
	if (r->have < sizeof(r->pid.bytes))
		return true;
	if (r->pid.value == LAZY_PAGES_RESTORE_FINISHED) {
		restore_over(r, false);
		r->have = 0;
	} else if (r->pid.value < 0) {
		r->have = 0;
	} else if (!r->pid.value) {
		log_line("%s: PID 0 announced", option_of(r)->path);
		return false;
	}
	return true;
}

static int passed_fd(struct msghdr *msg, uint32_t *host_pid)
{
	struct ucred cred = { 0 };
	struct cmsghdr *cmsg;
	int fd = -1;

	for (cmsg = CMSG_FIRSTHDR(msg); cmsg; cmsg = CMSG_NXTHDR(msg, cmsg)) {
		if (cmsg->cmsg_level != SOL_SOCKET)
			continue;
		if (cmsg->cmsg_type == SCM_RIGHTS)
			memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
		else if (cmsg->cmsg_type == SCM_CREDENTIALS)
			memcpy(&cred, CMSG_DATA(cmsg), sizeof(cred));
	}
	*host_pid = (uint32_t)cred.pid;
	return fd;
}

/*
 * Settles what is in the slot; done twice, it changes nothing more.  Returns
 * false if the connection is of no more use.
 */
static bool settle(struct intake_slot *slot)
{
	struct restore *r = &state->restores[slot->restore];
	struct uspace *space = NULL;
	uint32_t host_pid;
	bool ok;
	int fd;

	if (!slot->msg.msg_len) {
		ok = false;
	} else {
		fd = passed_fd(&slot->msg.msg_hdr, &host_pid);
		if (slot->have < sizeof(r->pid.bytes)) {
			ok = take_pid(r, slot->have, slot->data, slot->msg.msg_len);
			if (fd >= 0)
				close(fd);
		} else {
			ok = fd >= 0;
			if (ok && !space_born(slot->number))
				space = take_uffd(r, fd, host_pid, slot->number);
			else if (!ok)
				log_line("%s: no descriptor for process %d", option_of(r)->path,
					 r->pid.value);
			r->have = 0;
		}
	}
	if (!ok)
		restore_over(r, true);
	in_order();
	slot->applied = true;
	if (space)
		space_publish(space);
	return ok;
}

static void connection_drop(struct connection *c)
{
	c->restore->fd = -1;
	in_order();
	loop_remove(&c->watch);
}

static void slot_prepare(struct intake_slot *slot, const struct restore *r)
{
	slot->applied = true;
	in_order();
	memset(&slot->control, 0, sizeof(slot->control));
	slot->number = state_numbers(1);
	slot->restore = (uint32_t)(r - state->restores);
	slot->have = r->have;
	/* Never read beyond what is due: a descriptor belongs to its byte. */
	slot->iov = (struct iovec){
		.iov_base = slot->data,
		.iov_len = r->have == sizeof(r->pid.bytes) ? 1 : sizeof(r->pid.bytes) - r->have,
	};
	slot->msg = (struct mmsghdr){
		.msg_hdr = {
			.msg_iov = &slot->iov, .msg_iovlen = 1,
			.msg_control = &slot->control, .msg_controllen = sizeof(slot->control),
		},
		/* It tells whether anything came: the return value dies with this process. */
		.msg_len = UINT32_MAX,
	};
	in_order();
	slot->applied = false;
	in_order();
}

static void connection_ready(struct watch *watch)
{
	struct connection *c = (struct connection *)watch;
	struct intake_slot *slot = &state->intake;

	slot_prepare(slot, c->restore);
	if (recvmmsg(watch->fd, &slot->msg, 1, MSG_CMSG_CLOEXEC | MSG_DONTWAIT, NULL) < 0) {
		if (errno == EAGAIN || errno == EINTR)
			return;
		/* As if it had been closed. */
		slot->msg.msg_len = 0;
	}
	if (!settle(slot))
		connection_drop(c);
}

void intake_replay(void)
{
	struct intake_slot *slot = &state->intake;

	if (!slot->number || slot->applied || slot->msg.msg_len == UINT32_MAX)
		return;
	if (!settle(slot))
		/* It is closed with all that is nobody's. */
		state->restores[slot->restore].fd = -1;
}

static void watch_restore(struct restore *r)
{
	struct connection *c = xcalloc(1, sizeof(*c));

	c->watch = (struct watch){ .fd = r->fd, .ready = connection_ready };
	c->restore = r;
	c->next = connections;
	connections = c;
	loop_add(&c->watch);
}

/* The listener's first restore among the first n, else n. */
static size_t first_restore(size_t listener, size_t n)
{
	size_t i;

	for (i = 0; i < n && state->restores[i].listener != listener; i++)
		;
	return i;
}

static struct restore *adopt(struct listener *l, int fd)
{
	struct restore *r = &state->restores[state->n_restores];

	if (state->n_restores == state->max_restores) {
		log_line("%s: too many restores", l->opt.path);
		close(fd);
		return NULL;
	}
	*r = (struct restore){ .fd = fd, .listener = (uint32_t)(l - listeners) };
	in_order();
	state->n_restores++;
	state->n_used += first_restore(r->listener, state->n_restores) == state->n_restores - 1;
	return r;
}

static void listener_ready(struct watch *watch)
{
	struct listener *l = (struct listener *)watch;
	struct restore *r;
	int fd;

	fd = accept4(watch->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0)
		return;
	r = adopt(l, fd);
	if (r)
		watch_restore(r);
}

bool intake_adopt(int fd)
{
	struct sockaddr_un addr = { 0 };
	socklen_t len = sizeof(addr) - 1;
	size_t i, n;

	if (getsockname(fd, (struct sockaddr *)&addr, &len) < 0)
		return false;
	for (i = 0; i < n_listeners; i++) {
		n = strlen(listeners[i].opt.path);
		/* It was bound under another name, see listen_unix(). */
		if (strncmp(addr.sun_path, listeners[i].opt.path, n) ||
		    strcmp(addr.sun_path + n, "~"))
			continue;
		return adopt(&listeners[i], fd) != NULL;
	}
	return false;
}

void intake_open(struct map_file *mf, const struct listen_option *listens, size_t n)
{
	const int on = 1;
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
		/* The kernel says who sends: PIDs in images are those of a container. */
		if (setsockopt(listeners[i].watch.fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)))
			die_errno("cannot ask for the senders at %s", listens[i].path);
	}
}

void intake_start(void)
{
	size_t i;

	for (i = 0; i < n_listeners; i++)
		loop_add(&listeners[i].watch);
	state->n_used = 0;
	for (i = 0; i < state->n_restores; i++) {
		state->n_used += first_restore(state->restores[i].listener, i) == i;
		if (state->restores[i].fd >= 0)
			watch_restore(&state->restores[i]);
	}
}

void intake_unlink(void)
{
	size_t i;

	for (i = 0; i < n_listeners; i++)
		unlink(listeners[i].opt.path);
}

void intake_stop(void)
{
	struct connection *c;
	size_t i;

	for (i = 0; i < n_listeners; i++)
		if (listeners[i].watch.fd >= 0)
			loop_remove(&listeners[i].watch);
	intake_unlink();
	for (c = connections; c; c = c->next)
		if (c->watch.fd >= 0)
			connection_drop(c);
}

struct intake_status intake_status(void)
{
	struct intake_status st = { .listeners = n_listeners };
	size_t i;

	st.waiting = n_listeners - state->n_used;
	for (i = 0; i < state->n_restores; i++) {
		const struct restore *r = &state->restores[i];

		if (!r->over)
			st.restoring++;
		else if (r->failed)
			st.failed++;
		else
			st.finished++;
	}
	return st;
}
