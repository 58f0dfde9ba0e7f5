// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "hold.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kept.h"
#include "log.h"
#include "state.h"
#include "status.h"
#include "uffd.h"
#include "util.h"

#define PROBE_S		1
#define GENERATIONS	32

struct dirent_raw {
	uint64_t ino;
	int64_t off;
	unsigned short len;
	unsigned char type;
	char name[];
};

typedef void (*entry_fn)(int dir, int number, void *arg);

/* Calls fn for every entry of a directory of /proc whose name is a number. */
static void each_number(const char *path, entry_fn fn, void *arg)
{
	char buf[2048] __attribute__((aligned(8)));
	int dir = openat(state->proc, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	long n, at;

	if (dir < 0)
		return;
	while ((n = syscall(SYS_getdents64, dir, buf, sizeof(buf))) > 0) {
		for (at = 0; at < n; at += ((struct dirent_raw *)(buf + at))->len) {
			const struct dirent_raw *entry = (struct dirent_raw *)(buf + at);

			if (entry->name[0] >= '0' && entry->name[0] <= '9')
				fn(dir, atoi(entry->name), arg);
		}
	}
	close(dir);
}

/* Has it memory that some userfaultfd watches for missing pages? */
static bool is_watched(int pid)
{
	char path[64], buf[4096 + 5] = "    ", *p;
	bool found = false;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%d/smaps", pid);
	fd = openat(state->proc, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	/* Four bytes of the piece before stay in front: the word may lie across. */
	while (!found && (n = read(fd, buf + 4, 4096)) > 0) {
		buf[4 + n] = '\0';
		for (p = buf; !found && (p = strstr(p, " um")); p++)
			found = p[3] == ' ' || p[3] == '\n';
		memmove(buf, buf + n, 4);
	}
	close(fd);
	return found;
}

static void stop_one(int pid, uint64_t pages)
{
	uint32_t i, n = min_u64(state->stopped.n, NAMED_MAX);

	if (kill(pid, SIGSTOP) < 0)
		return;
	for (i = 0; i < n; i++)
		if (state->stopped.item[i].pid == (uint32_t)pid)
			return;
	named_add(&state->stopped, (uint32_t)pid, (uint32_t)pages);
	log_line("process %d is stopped: nobody can bring its pages", pid);
}

struct family {
	int parent;
	unsigned int depth;
};

static void stop_children(int parent, unsigned int depth);

static void children_of_task(int dir, int tid, void *arg)
{
	const struct family *family = arg;
	char path[64], buf[4096], *p, *end;
	ssize_t n;
	int fd;

	(void)dir;
	snprintf(path, sizeof(path), "%d/task/%d/children", family->parent, tid);
	fd = openat(state->proc, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	n = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	buf[n < 0 ? 0 : n] = '\0';
	for (p = buf;; p = end) {
		int child = (int)strtol(p, &end, 10);

		if (end == p)
			return;
		if (is_watched(child))
			stop_one(child, 0);
		stop_children(child, family->depth + 1);
	}
}

/* The kernel does not tell whose a forked child's userfaultfd is: all that have one. */
static void stop_children(int parent, unsigned int depth)
{
	struct family family = { parent, depth };
	char path[64];

	if (depth == GENERATIONS)
		return;
	snprintf(path, sizeof(path), "%d/task", parent);
	each_number(path, children_of_task, &family);
}

static uint64_t missing(int fd, const struct kept_head *head)
{
	uint64_t i, words[64], left = head->pages, n = kept_words(head->pages), at, have;

	for (at = 0; at < n; at += have) {
		off_t offset = (off_t)(sizeof(*head) + at * sizeof(words[0]));

		have = min_u64(n - at, ARRAY_SIZE(words));
		if (pread(fd, words, have * sizeof(words[0]), offset) < 0)
			break;
		for (i = 0; i < have; i++)
			left -= (uint64_t)__builtin_popcountll(words[i]);
	}
	return left;
}

static void hold_space(int dir, int fd, void *arg)
{
	const char want[] = "/memfd:" KEPT_NAME;
	struct status_held *held = arg;
	char name[16], link[64];
	struct kept_head head;
	uint64_t left;

	snprintf(name, sizeof(name), "%d", fd);
	if (readlinkat(dir, name, link, sizeof(link)) < (ssize_t)sizeof(want) ||
	    memcmp(link, want, sizeof(want) - 1) ||
	    pread(fd, &head, sizeof(head), 0) != sizeof(head) || head.phase != KEPT_LIVE)
		return;
	if (uffd_exited(head.uffd)) {
		head.phase = KEPT_CLOSED;
		if (pwrite(fd, &head, sizeof(head), 0) < 0)
			return;
		close(head.uffd);
		close(fd);
		return;
	}
	left = missing(fd, &head);
	held->spaces++;
	held->left += left;
	held->damaged += head.damaged;
	if (!head.forked)
		stop_one((int)head.host_pid, left);
	else
		stop_children((int)head.host_pid, 0);
}

void hold(void)
{
	char buf[STATUS_MAX];

	log_line("no worker is left: processes that miss pages are stopped");
	for (;;) {
		struct status_held held = { 0 };

		each_number("self/fd", hold_space, &held);
		status_format_held(buf, sizeof(buf), &held);
		status_file_write(buf);
		if (!held.spaces)
			break;
		sleep(PROBE_S);
	}
	log_raw(buf);
	state->over = true;
	_exit(EXIT_FAILED);
}
