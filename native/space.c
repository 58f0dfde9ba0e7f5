// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "space.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "notify.h"
#include "util.h"

struct counters counters;
pthread_mutex_t space_list_lock = PTHREAD_MUTEX_INITIALIZER;
struct uspace *space_list;
int space_epoll = -1;

static struct uspace **list_end = &space_list;
static struct uspace *graveyard;
static const struct image no_image;

void space_init(void)
{
	space_epoll = epoll_create1(EPOLL_CLOEXEC);
	if (space_epoll < 0)
		die_errno("cannot make an epoll instance");
}

static void free_list(struct uspace *s)
{
	while (s) {
		struct uspace *next = s->next;

		model_free(&s->model);
		pthread_rwlock_destroy(&s->lock);
		free(s);
		s = next;
	}
}

void space_fini(void)
{
	free_list(space_list);
	free_list(graveyard);
	space_list = NULL;
	graveyard = NULL;
}

static struct uspace *space_new(int fd, uint32_t pid, const struct restore *restore)
{
	struct uspace *s = xcalloc(1, sizeof(*s));
	pthread_rwlockattr_t attr;

	/* Faults come before the drain, hence writers before readers. */
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&s->lock, &attr);
	pthread_rwlockattr_destroy(&attr);
	s->fd = fd;
	s->pid = pid;
	s->restore = restore;
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	return s;
}

static void space_add(struct uspace *s)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLONESHOT, .data.ptr = s };

	pthread_mutex_lock(&space_list_lock);
	*list_end = s;
	list_end = &s->next;
	pthread_mutex_unlock(&space_list_lock);
	if (epoll_ctl(space_epoll, EPOLL_CTL_ADD, s->fd, &ev) < 0)
		warn_errno("cannot watch the userfaultfd of process %u", s->pid);
	notify(NOTIFY_SPACES);
}

void space_open(int fd, uint32_t pid, const struct image *image, const struct restore *restore)
{
	struct uspace *s = space_new(fd, pid, restore);

	model_init(&s->model, image ? image : &no_image);
	space_add(s);
}

void space_open_fork(int fd, const struct uspace *parent)
{
	struct uspace *s = space_new(fd, parent->pid, parent->restore);

	s->forked = true;
	model_fork(&s->model, &parent->model);
	count(&counters.forks, 1);
	count(&counters.pages_total, model_left(&s->model));
	space_add(s);
}

bool space_complete(const struct uspace *s)
{
	/*
	 * Before the restore is over CRIU has yet to register memory, and
	 * somebody has to answer the faults there, if only with zeros.
	 */
	return !s->damaged && !model_left(&s->model) &&
	       __atomic_load_n(&s->restore->over, __ATOMIC_ACQUIRE);
}

static void list_remove(struct uspace *s)
{
	struct uspace **p;

	pthread_mutex_lock(&space_list_lock);
	for (p = &space_list; *p; p = &(*p)->next) {
		if (*p != s)
			continue;
		*p = s->next;
		if (list_end == &s->next)
			list_end = p;
		s->next = graveyard;
		graveyard = s;
		break;
	}
	pthread_mutex_unlock(&space_list_lock);
}

void space_close_locked(struct uspace *s)
{
	uint64_t left;

	if (s->fd < 0)
		return;
	left = model_left(&s->model);
	count(&counters.pages_home, left);
	count(&counters.pages_dropped, left);
	epoll_ctl(space_epoll, EPOLL_CTL_DEL, s->fd, NULL);
	close(s->fd);
	s->fd = -1;
	/* Out of the list first: there it is looked at without its lock. */
	list_remove(s);
	model_free(&s->model);
	notify(NOTIFY_SPACES);
}

void space_close(struct uspace *s)
{
	pthread_rwlock_wrlock(&s->lock);
	space_close_locked(s);
	pthread_rwlock_unlock(&s->lock);
}

void space_rearm(struct uspace *s)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLONESHOT, .data.ptr = s };

	epoll_ctl(space_epoll, EPOLL_CTL_MOD, s->fd, &ev);
}

uint64_t space_count(uint64_t *left, uint64_t *damaged)
{
	const struct uspace *s;
	uint64_t n = 0;

	*left = 0;
	*damaged = 0;
	pthread_mutex_lock(&space_list_lock);
	for (s = space_list; s; s = s->next) {
		n++;
		*left += model_left(&s->model);
		*damaged += __atomic_load_n(&s->damaged, __ATOMIC_RELAXED);
	}
	pthread_mutex_unlock(&space_list_lock);
	return n;
}

void space_sweep(void)
{
	struct uspace *s;

	for (;;) {
		pthread_mutex_lock(&space_list_lock);
		for (s = space_list; s && !space_complete(s); s = s->next)
			;
		pthread_mutex_unlock(&space_list_lock);
		if (!s)
			return;
		space_close(s);
	}
}
