// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "vma.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util.h"

/* From here on a mapping is worth a look into smaps before its page map is read. */
#define HUGE_MAPPING (256ull << 20)

struct text {
	char *s;
	size_t len;
	size_t cap;
};

/* False if there is no such process any more. */
static bool read_proc(struct text *t, pid_t pid, const char *name)
{
	char path[64];
	ssize_t n;
	int fd;

	t->len = 0;
	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		if (errno == ENOENT || errno == ESRCH)
			return false;
		die_errno("cannot open %s", path);
	}
	do {
		if (t->cap - t->len < 65536) {
			t->cap = t->cap ? 2 * t->cap : 262144;
			t->s = xrealloc(t->s, t->cap, 1);
		}
		n = read(fd, t->s + t->len, t->cap - t->len - 1);
		if (n < 0) {
			if (errno != ESRCH)
				die_errno("cannot read %s", path);
			close(fd);
			return false;
		}
		t->len += n;
	} while (n);
	t->s[t->len] = '\0';
	close(fd);
	return true;
}

bool vma_parse_line(const char *line, struct vma *vma, bool *qualifies)
{
	unsigned long long start, end, offset, inode;
	unsigned int major, minor;
	int name = 0;
	char perm[5];

	if (sscanf(line, "%llx-%llx %4s %llx %x:%x %llu %n", &start, &end, perm, &offset, &major,
		   &minor, &inode, &name) < 7)
		return false;
	vma->start = start;
	vma->end = end;
	/*
	 * [vdso], [vvar], [vvar_vclock], [vsyscall] and [uprobes] belong to the
	 * kernel; [heap], [stack], [anon:...] and no name at all are the user's.
	 */
	*qualifies = perm[3] == 'p' && inode == 0 && strncmp(line + name, "[v", 2) &&
		     strncmp(line + name, "[uprobes]", 9);
	return true;
}

static void add(struct vma_list *list, struct vma vma)
{
	if (list->n == list->cap) {
		list->cap = list->cap ? 2 * list->cap : 128;
		list->v = xrealloc(list->v, list->cap, sizeof(*list->v));
	}
	list->v[list->n++] = vma;
}

static bool has_flag(const char *line, const char *flag)
{
	const char *p = strstr(line, flag);

	return p && p[-1] == ' ';
}

static void parse(struct vma_list *list, struct text *t, bool detailed, bool drop_empty)
{
	unsigned long long anonymous = 0, swap = 0;
	bool qualifies = false;
	struct vma vma;
	char *line, *end;

	list->n = 0;
	for (line = t->s; *line; line = end + 1) {
		end = strchrnul(line, '\n');
		if (!*end)
			break;
		*end = '\0';
		if (!detailed) {
			if (vma_parse_line(line, &vma, &qualifies) && qualifies)
				add(list, vma);
			continue;
		}
		/* smaps: a mapping line, "Name:  N kB" lines, and VmFlags last. */
		if (!strncmp(line, "VmFlags:", 8)) {
			if (qualifies && !has_flag(line, "lo ") && !has_flag(line, "ht ") &&
			    (!drop_empty || anonymous || swap))
				add(list, vma);
			qualifies = false;
		} else if (sscanf(line, "Anonymous: %llu", &anonymous) == 1 ||
			   sscanf(line, "Swap: %llu", &swap) == 1) {
			continue;
		} else if (vma_parse_line(line, &vma, &qualifies)) {
			anonymous = 0;
			swap = 0;
		}
	}
}

static bool read_status(pid_t pid, struct text *t, pid_t *nspid, bool *locked)
{
	char *line;

	if (!read_proc(t, pid, "status"))
		return false;
	*nspid = pid;
	*locked = false;
	line = strstr(t->s, "\nNSpid:");
	if (line) {
		/* One number per nested namespace, the innermost last. */
		char *end = strchrnul(line + 1, '\n');

		while (end > line && end[-1] != '\t' && end[-1] != ' ')
			end--;
		*nspid = atoi(end);
	}
	line = strstr(t->s, "\nVmLck:");
	if (line)
		*locked = strtoull(line + 7, NULL, 10) != 0;
	return true;
}

static bool read_mappings(struct vma_list *list, struct text *t, pid_t pid, bool populated_only)
{
	bool locked;
	size_t i;

	if (!read_status(pid, t, &list->nspid, &locked))
		return false;
	/* Only smaps tells which mapping is locked; it costs a page-table walk. */
	if (!read_proc(t, pid, locked ? "smaps" : "maps"))
		return false;
	parse(list, t, locked, false);
	for (i = 0; populated_only && i < list->n; i++) {
		if (list->v[i].end - list->v[i].start < HUGE_MAPPING)
			continue;
		if (!read_proc(t, pid, "smaps"))
			return false;
		parse(list, t, true, true);
		break;
	}
	return true;
}

bool vma_list_read(struct vma_list *list, pid_t pid, bool populated_only)
{
	struct text t = { 0 };
	bool there = read_mappings(list, &t, pid, populated_only);

	if (!there)
		list->n = 0;
	free(t.s);
	return there;
}

void vma_list_free(struct vma_list *list)
{
	free(list->v);
	memset(list, 0, sizeof(*list));
}
