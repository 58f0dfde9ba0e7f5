// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "status.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "drain.h"
#include "intake.h"
#include "log.h"
#include "pagemap_format.h"
#include "space.h"
#include "util.h"

static bool no_more;
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
	return drain_wanted() && (!in.waiting || no_more) && !in.restoring &&
	       !status_spaces_left();
}

void status_expect_no_more(void)
{
	no_more = true;
}

static const char *state(uint64_t spaces)
{
	struct intake_status in = intake_status();

	if (status_drained())
		return "drained";
	if (drain_wanted())
		return "draining";
	if (!spaces && !in.finished && !in.failed)
		return "waiting";
	return "serving";
}

void status_format(char *buf, size_t len, const struct map_file *mf)
{
	struct intake_status in = intake_status();
	uint64_t left, damaged, spaces = space_count(&left, &damaged);
	uint64_t unclaimed = 0, unclaimed_pages = 0;
	size_t i;

	for (i = 0; i < mf->n_spaces; i++) {
		if (mf->spaces[i].claims)
			continue;
		unclaimed++;
		unclaimed_pages += mf->spaces[i].image.pages;
	}
#define N(x) ((unsigned long long)(x))
#define C(x) ((unsigned long long)counted(&counters.x))
	snprintf(buf, len,
		 "{\"schema\":1,\"state\":\"%s\",\"pages_total\":%llu,\"pages_home\":%llu,"
		 "\"pages_faulted\":%llu,\"pages_drained\":%llu,\"pages_present\":%llu,"
		 "\"pages_dropped\":%llu,\"pages_lost\":%llu,\"pages_zero\":%llu,"
		 "\"bytes_left\":%llu,\"spaces_left\":%llu,\"spaces_damaged\":%llu,"
		 "\"unclaimed_spaces\":%llu,\"unclaimed_pages\":%llu,\"unknown\":%llu,"
		 "\"forks\":%llu,\"faults\":%llu,\"fault_micros\":%llu,\"fault_micros_max\":%llu,"
		 "\"retries\":%llu,\"no_memory\":%llu,\"restores_waiting\":%llu,"
		 "\"restores_running\":%llu,\"restores_finished\":%llu,\"restores_failed\":%llu,"
		 "\"pid\":%d}\n",
		 state(spaces), C(pages_total), C(pages_home), C(pages_faulted), C(pages_drained),
		 C(pages_present), C(pages_dropped), C(pages_lost), C(pages_zero),
		 N(left * PM_PAGE_SIZE), N(spaces), N(damaged), N(unclaimed), N(unclaimed_pages),
		 C(unknown), C(forks), C(faults), C(fault_micros), C(fault_micros_max), C(retries),
		 C(no_memory), N(in.waiting), N(in.restoring), N(in.finished), N(in.failed),
		 getpid());
#undef N
#undef C
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
