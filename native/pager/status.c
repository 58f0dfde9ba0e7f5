// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "status.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "drain.h"
#include "intake.h"
#include "log.h"
#include "pagemap_format.h"
#include "address_space.h"
#include "util.h"

static const struct map_file *map;
static int dir_fd = -1;
static char *file_name;
static char *temp_name;

unsigned long long status_spaces_left(void)
{
	uint64_t left, damaged;

	return space_count(&left, &damaged);
}

bool status_drained(void)
{
	struct intake_status in = intake_status();

	/*
	 * Without a look at the restores this would be true before the first
	 * of them has begun.
	 */
	return drain_wanted() && (!in.waiting || state->expect_no_more) && !in.restoring &&
	       !status_spaces_left();
}

void status_expect_no_more(void)
{
	state->expect_no_more = true;
}

static const char *phase(const struct status_held *held)
{
	struct intake_status in = intake_status();

	if (status_drained())
		return "drained";
	/* Nothing can be done for those: they wait for a page that cannot be read. */
	if (drain_wanted() && held->damaged && held->damaged == held->spaces && !in.restoring)
		return "damaged";
	if (drain_wanted())
		return "draining";
	if (!held->spaces && !in.finished && !in.failed)
		return "waiting";
	return "serving";
}

/* A piece of text that is put together; what does not fit is left out. */
struct text {
	char *buf;
	size_t len;
	size_t at;
};

__attribute__((format(printf, 2, 3)))
static void add(struct text *t, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(t->buf + t->at, t->len - t->at, fmt, ap);
	va_end(ap);
	t->at = min_u64(t->at + (size_t)n, t->len - 1);
}

static void add_named(struct text *t, const char *name, const struct named_list *list)
{
	uint32_t i, n = min_u64(__atomic_load_n(&list->n, __ATOMIC_ACQUIRE), NAMED_MAX);
	const char *comma = "";

	add(t, ",\"%s\":[", name);
	for (i = 0; i < n; i++) {
		/* What was taken back, or is being written. */
		if (!list->item[i].pid || (list == &state->lost && !list->item[i].pages))
			continue;
		add(t, "%s{\"pid\":%u,\"pages\":%u}", comma, list->item[i].pid,
		    list->item[i].pages);
		comma = ",";
	}
	add(t, "]");
}

static void format(char *buf, size_t len, const char *phase_name, const struct status_held *held,
		   const struct named_list *misses)
{
	struct text t = { .buf = buf, .len = len };
	struct intake_status in = intake_status();
	uint64_t unclaimed = 0, unclaimed_pages = 0;
	size_t i;

	for (i = 0; i < map->n_spaces; i++) {
		if (state->claims[i])
			continue;
		unclaimed++;
		unclaimed_pages += map->spaces[i].image.pages;
	}
#define N(x) ((unsigned long long)(x))
#define C(x) ((unsigned long long)counted(&state->counters.x))
	add(&t,
	    "{\"schema\":1,\"state\":\"%s\",\"pages_total\":%llu,\"pages_home\":%llu,"
	    "\"pages_faulted\":%llu,\"pages_drained\":%llu,\"pages_present\":%llu,"
	    "\"pages_dropped\":%llu,\"pages_lost\":%llu,\"pages_zero\":%llu,"
	    "\"bytes_left\":%llu,\"spaces_left\":%llu,\"spaces_damaged\":%llu,"
	    "\"unclaimed_spaces\":%llu,\"unclaimed_pages\":%llu,\"unknown\":%llu,"
	    "\"forks\":%llu,\"faults\":%llu,\"fault_micros\":%llu,\"fault_micros_max\":%llu,"
	    "\"retries\":%llu,\"no_memory\":%llu,\"restarts\":%llu,\"restores_waiting\":%llu,"
	    "\"restores_running\":%llu,\"restores_finished\":%llu,\"restores_failed\":%llu",
	    phase_name, C(pages_total), C(pages_home), C(pages_faulted), C(pages_drained),
	    C(pages_present), C(pages_dropped), C(pages_lost), C(pages_zero),
	    N(held->left * PM_PAGE_SIZE), N(held->spaces), N(held->damaged), N(unclaimed),
	    N(unclaimed_pages), C(unknown), C(forks), C(faults), C(fault_micros),
	    C(fault_micros_max), C(retries), C(no_memory), C(restarts), N(in.waiting),
	    N(in.restoring), N(in.finished), N(in.failed));
#undef N
#undef C
	add_named(&t, "missing", misses);
	add_named(&t, "lost", &state->lost);
	add_named(&t, "unknown_processes", &state->unknown);
	add_named(&t, "stopped", &state->stopped);
	add(&t, ",\"worker\":%d,\"witness\":%d,\"pid\":%d}\n", state->pid[ROLE_WORKER],
	    state->pid[ROLE_WITNESS], state->pid[ROLE_SUPERVISOR]);
}

void status_format(char *buf, size_t len)
{
	struct named_list misses = { 0 };
	struct status_held held;
	const struct uspace *s;

	held.spaces = space_count(&held.left, &held.damaged);
	pthread_mutex_lock(&space_list_lock);
	for (s = space_list; s && misses.n < NAMED_MAX; s = s->next)
		if (model_left(&s->model))
			named_add(&misses, s->host_pid, (uint32_t)model_left(&s->model));
	pthread_mutex_unlock(&space_list_lock);
	format(buf, len, phase(&held), &held, &misses);
}

void status_format_held(char *buf, size_t len, const struct status_held *held)
{
	static const struct named_list none;

	format(buf, len, held->spaces ? "stopped" : "drained", held, &none);
}

void status_init(const struct map_file *mf)
{
	map = mf;
}

void status_file_open(const char *path)
{
	char *copy = xstrdup(path), *slash = strrchr(copy, '/');

	file_name = xstrdup(slash ? slash + 1 : copy);
	if (asprintf(&temp_name, ".%s.new", file_name) < 0)
		die(EXIT_FAILED, "out of memory");
	if (slash)
		slash[slash == copy] = '\0';
	dir_fd = open(slash ? copy : ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (dir_fd < 0)
		die_errno("cannot open the directory of %s", path);
	free(copy);
}

void status_file_write(const char *text)
{
	size_t len = strlen(text);
	ssize_t n;
	int fd;

	if (dir_fd < 0)
		return;
	fd = openat(dir_fd, temp_name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0)
		return;
	n = write(fd, text, len);
	close(fd);
	if (n == (ssize_t)len)
		renameat(dir_fd, temp_name, dir_fd, file_name);
}
