// SPDX-License-Identifier: GPL-2.0-or-later
/* rekernel-images: command line; see README.md. */
#define _GNU_SOURCE
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "complete.h"
#include "parallel.h"
#include "util.h"

static const char usage_text[] =
"usage: rekernel-images DIRECTORY...\n"
"\n"
"Complete what criu dump --track-mem --prev-images-dir has written to the directories, while the\n"
"processes still stand where they were dumped: pages that the pager serves are marked as lazy,\n"
"others that the images lack are written down.\n";

struct job {
	const char *directory;
	pid_t pid;
};

struct jobs {
	struct job *v;
	size_t n;
	size_t cap;
};

/* Every process with memory has a pagemap-PID.img; pagemap-shmem-ID.img is of shared memory. */
static void collect(struct jobs *jobs, const char *path)
{
	DIR *directory = opendir(path);
	struct dirent *entry;
	int pid, len;

	if (!directory)
		die_errno("cannot read %s", path);
	while ((entry = readdir(directory))) {
		len = 0;
		if (sscanf(entry->d_name, "pagemap-%d.img%n", &pid, &len) != 1 || !len ||
		    entry->d_name[len])
			continue;
		if (jobs->n == jobs->cap) {
			jobs->cap = jobs->cap ? 2 * jobs->cap : 64;
			jobs->v = xrealloc(jobs->v, jobs->cap, sizeof(*jobs->v));
		}
		jobs->v[jobs->n++] = (struct job){ path, pid };
	}
	closedir(directory);
}

static void complete_one(void *ctx, void *scratch, size_t i)
{
	const struct job *job = (struct job *)ctx + i;

	(void)scratch;
	complete(job->directory, job->pid);
}

int main(int argc, char **argv)
{
	struct jobs jobs = { 0 };
	int i;

	if (argc < 2 || argv[1][0] == '-') {
		fputs(usage_text, argc == 2 && !strcmp(argv[1], "--help") ? stdout : stderr);
		return argc == 2 && !strcmp(argv[1], "--help") ? EXIT_OK : EXIT_USAGE;
	}
	for (i = 1; i < argc; i++)
		collect(&jobs, argv[i]);
	parallel_run(&(struct parallel){ .fn = complete_one, .ctx = jobs.v, .n = jobs.n });
	free(jobs.v);
	return EXIT_OK;
}
