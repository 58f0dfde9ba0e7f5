// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The descriptor table says which spaces there are, each with its memory
 * (kept.h).  What had been read and not settled is settled now; descriptors that
 * belong to nothing were the dead worker's own and are closed.
 *
 * Threads whose fault the dead one had read wait in the kernel, and nobody will
 * hear of them again: all are woken, and those that still miss a page fault anew.
 */
#define _GNU_SOURCE
#include "recover.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fault.h"
#include "intake.h"
#include "log.h"
#include "address_space.h"
#include "uffd.h"
#include "util.h"

enum kind {
	KIND_OTHER,
	KIND_SPACE,
	KIND_UFFD,
	KIND_SOCKET,
	KIND_SETTLED,	/* somebody's, or closed */
};

struct seen {
	int fd;
	enum kind kind;
};

static struct seen *table;
static size_t n_table;

static enum kind kind_of(int dir, int fd)
{
	char name[16], link[PATH_MAX];
	ssize_t n;

	snprintf(name, sizeof(name), "%d", fd);
	n = readlinkat(dir, name, link, sizeof(link) - 1);
	link[n < 0 ? 0 : n] = '\0';
	/* Of the guards, whose roles may change meanwhile; "anon_inode:[pidfd]" before pidfs. */
	if (n < 0 || strstr(link, "pidfd"))
		return KIND_SETTLED;
	if (!strncmp(link, "/memfd:" KEPT_NAME, strlen("/memfd:" KEPT_NAME)))
		return KIND_SPACE;
	if (strstr(link, "userfaultfd"))
		return KIND_UFFD;
	return strncmp(link, "socket:", 7) ? KIND_OTHER : KIND_SOCKET;
}

static bool is_guard(int fd)
{
	size_t i;

	for (i = 0; i < N_ROLES; i++)
		if (state->pidfd[i] == fd)
			return true;
	return false;
}

static DIR *open_table(void)
{
	int fd = openat(state->proc, "self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);

	if (!dir)
		die_errno("cannot look through /proc/self/fd");
	return dir;
}

/* The next descriptor in the table, -1 at its end. */
static int next_in(DIR *dir)
{
	struct dirent *entry;

	while ((entry = readdir(dir))) {
		int fd = atoi(entry->d_name);

		if (entry->d_name[0] != '.' && fd != dirfd(dir))
			return fd;
	}
	return -1;
}

void recover_keep(void)
{
	DIR *dir = open_table();
	int fd;

	while ((fd = next_in(dir)) >= 0)
		if (fd >= state->fixed)
			state->fixed = fd + 1;
	closedir(dir);
}

void recover_look(void)
{
	DIR *dir = open_table();
	int fd;

	while ((fd = next_in(dir)) >= 0) {
		if (fd < state->fixed || is_guard(fd))
			continue;
		table = xrealloc(table, n_table + 1, sizeof(*table));
		table[n_table++] = (struct seen){ fd, kind_of(dirfd(dir), fd) };
	}
	closedir(dir);
}

static void settled(int fd)
{
	size_t i;

	for (i = 0; i < n_table; i++)
		if (table[i].fd == fd)
			table[i].kind = KIND_SETTLED;
}

static const struct image *image_of(const struct map_file *map, const struct kept *k)
{
	return k->head->image < 0 ? &no_image : &map->spaces[k->head->image].image;
}

static int by_order(const void *a, const void *b)
{
	uint64_t x = ((const struct kept *)a)->head->order, y = ((const struct kept *)b)->head->order;

	return x < y ? -1 : x > y;
}

/* Returns those that were being closed, *n of them. */
static struct kept *take_spaces(const struct map_file *map, size_t *n)
{
	struct kept *live = xcalloc(n_table, sizeof(*live)), *rest = xcalloc(n_table, sizeof(*rest));
	size_t i, n_live = 0;

	*n = 0;
	for (i = 0; i < n_table; i++) {
		struct kept k;

		if (table[i].kind != KIND_SPACE)
			continue;
		table[i].kind = KIND_SETTLED;
		if (!kept_open(&k, table[i].fd))
			close(table[i].fd);
		else if (k.head->phase == KEPT_NEW)
			kept_close(&k);
		else if (k.head->phase == KEPT_LIVE)
			live[n_live++] = k;
		else
			rest[(*n)++] = k;
	}
	qsort(live, n_live, sizeof(*live), by_order);
	for (i = 0; i < n_live; i++) {
		settled(live[i].head->uffd);
		space_publish(space_take_over(&live[i], image_of(map, &live[i])));
	}
	free(live);
	return rest;
}

static void replay(struct event_slot *slot)
{
	struct uspace *s;

	if (slot->applied >= EVENT_MESSAGES || !slot->msg[slot->applied].event)
		return;
	for (s = space_list; s; s = s->next)
		if (s->model.kept.fd == slot->kept)
			break;
	if (s)
		fault_replay(s, slot);
}

static void close_rest(struct kept *rest, size_t n)
{
	size_t i, k;

	for (i = 0; i < n; i++) {
		for (k = 0; k < n_table; k++) {
			if (table[k].fd != rest[i].head->uffd || table[k].kind != KIND_UFFD ||
			    rest[i].head->phase != KEPT_CLOSING)
				continue;
			close(table[k].fd);
			table[k].kind = KIND_SETTLED;
		}
		kept_close(&rest[i]);
	}
	free(rest);
}

static void close_others(void)
{
	size_t i, k;

	for (k = 0; k < state->n_restores; k++)
		settled(state->restores[k].fd);
	for (i = 0; i < n_table; i++) {
		switch (table[i].kind) {
		case KIND_SETTLED:
			break;
		case KIND_UFFD:
			/* Cannot be; but closing it would mean zeros for somebody. */
			log_line("descriptor %d is a userfaultfd of nobody", table[i].fd);
			break;
		case KIND_SOCKET:
			if (intake_adopt(table[i].fd))
				break;
			/* fallthrough */
		default:
			close(table[i].fd);
		}
	}
	free(table);
	table = NULL;
	n_table = 0;
}

/* What was copied and not yet counted when the worker died was found in place. */
static void correct_counters(const struct map_file *map)
{
	struct counters *c = &state->counters;
	uint64_t left, damaged, known;
	size_t i;

	space_count(&left, &damaged);
	for (i = 0; i < map->n_spaces; i++)
		if (!state->claims[i])
			left += map->spaces[i].image.pages;
	known = c->pages_faulted + c->pages_drained + c->pages_present + c->pages_dropped;
	if (known + left > c->pages_total)
		c->pages_total = known + left;
	c->pages_home = c->pages_total - left;
	/* Lost pages that were poisoned are home, too, and in none of them. */
	if (c->pages_home > known + c->pages_lost)
		c->pages_present += c->pages_home - known - c->pages_lost;
}

void recover(const struct map_file *map)
{
	struct kept *rest;
	struct uspace *s;
	size_t i, n;

	rest = take_spaces(map, &n);
	for (i = 0; i < EVENT_SLOTS; i++)
		replay(&state->events[i]);
	intake_replay();
	for (s = space_list; s; s = s->next)
		settled(s->fd);
	close_rest(rest, n);
	close_others();
	correct_counters(map);
	for (s = space_list; s; s = s->next)
		uffd_wake_all(s->fd);
}
