// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "address_space.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "notify.h"
#include "util.h"

pthread_mutex_t space_list_lock = PTHREAD_MUTEX_INITIALIZER;
struct uspace *space_list;
int space_epoll = -1;

static struct uspace **list_end = &space_list;
static struct uspace *graveyard;
static bool serving;
const struct image no_image;

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

		if (s->fd >= 0)
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

static struct uspace *space_new(int fd, uint32_t pid, uint32_t host_pid, uint32_t restore)
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
	s->host_pid = host_pid;
	s->restore = &state->restores[restore];
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	return s;
}

/* From here on the next worker has it, too. */
static void enliven(struct uspace *s, const struct arrival *a)
{
	struct kept_head *head = s->model.kept.head;

	head->born = a->number;
	head->uffd = a->fd;
	head->pid = a->pid;
	head->host_pid = a->host_pid;
	head->image = a->image;
	head->restore = a->restore;
	in_order();
	head->phase = KEPT_LIVE;
	in_order();
}

static void watch(struct uspace *s)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLONESHOT, .data.ptr = s };

	if (epoll_ctl(space_epoll, EPOLL_CTL_ADD, s->fd, &ev) < 0)
		warn_errno("cannot watch the userfaultfd of process %u", s->pid);
}

void space_publish(struct uspace *s)
{
	pthread_mutex_lock(&space_list_lock);
	*list_end = s;
	list_end = &s->next;
	pthread_mutex_unlock(&space_list_lock);
	if (serving)
		watch(s);
	notify(NOTIFY_SPACES);
}

void space_serve(void)
{
	struct uspace *s;

	serving = true;
	/* Woken threads fault at once: a space may be answered, and closed, before the next. */
	pthread_mutex_lock(&space_list_lock);
	for (s = space_list; s; s = s->next)
		watch(s);
	pthread_mutex_unlock(&space_list_lock);
}

struct uspace *space_open(const struct arrival *a, const struct image *image)
{
	struct uspace *s = space_new(a->fd, a->pid, a->host_pid, a->restore);

	model_init(&s->model, image);
	enliven(s, a);
	return s;
}

struct uspace *space_open_fork(int fd, const struct uspace *parent, uint64_t number)
{
	const struct kept_head *head = parent->model.kept.head;
	struct uspace *s = space_new(fd, parent->pid, parent->host_pid, head->restore);
	struct arrival a = {
		.fd = fd, .pid = parent->pid, .host_pid = head->host_pid, .image = head->image,
		.restore = head->restore, .number = number,
	};

	model_fork(&s->model, &parent->model);
	s->model.kept.head->forked = true;
	enliven(s, &a);
	count(&state->counters.forks, 1);
	count(&state->counters.pages_total, model_left(&s->model));
	return s;
}

struct uspace *space_take_over(const struct kept *kept, const struct image *image)
{
	const struct kept_head *head = kept->head;
	struct uspace *s = space_new(head->uffd, head->pid, head->host_pid, head->restore);

	s->damaged = head->damaged;
	model_take_over(&s->model, image, kept);
	return s;
}

bool space_born(uint64_t number)
{
	const struct uspace *s;

	/* Who is in the list has its memory. */
	pthread_mutex_lock(&space_list_lock);
	for (s = space_list; s && s->model.kept.head->born != number; s = s->next)
		;
	pthread_mutex_unlock(&space_list_lock);
	return s;
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
	struct kept_head *head = s->model.kept.head;
	uint64_t left;

	if (s->fd < 0)
		return;
	left = model_left(&s->model);
	count(&state->counters.pages_home, left);
	count(&state->counters.pages_dropped, left);
	epoll_ctl(space_epoll, EPOLL_CTL_DEL, s->fd, NULL);
	/* The next worker must know whether the number is still this userfaultfd's. */
	head->phase = KEPT_CLOSING;
	in_order();
	close(s->fd);
	in_order();
	head->phase = KEPT_CLOSED;
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
