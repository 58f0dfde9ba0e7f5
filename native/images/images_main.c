// SPDX-License-Identifier: GPL-2.0-or-later
/* rekernel-images: command line; see README.md. */
#define _GNU_SOURCE
#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "areas.h"
#include "complete.h"
#include "parallel.h"
#include "util.h"

static const char usage_text[] =
"usage: rekernel-images [--whole] DIRECTORY...\n"
"\n"
"Mend what criu dump has written to the directories: areas of 8 TiB or more are split, as criu\n"
"cannot fill them again. Then complete what criu dump --track-mem --prev-images-dir has written,\n"
"while the processes still stand where they were dumped: pages that the pager serves are marked as\n"
"lazy, others that the images lack are written down.\n"
"\n"
"  --whole   the images have all pages; only mend them\n";

struct job {
	const char *directory;
	pid_t pid;
};

struct jobs {
	struct job *v;
	size_t n;
	size_t cap;
	bool whole;
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

static void mend_one(void *ctx, void *scratch, size_t i)
{
	const struct jobs *jobs = ctx;
	const struct job *job = &jobs->v[i];

	(void)scratch;
	split_areas(job->directory, job->pid);
	if (!jobs->whole)
		complete(job->directory, job->pid);
}

int main(int argc, char **argv)
{
	struct jobs jobs = { .whole = argc > 2 && !strcmp(argv[1], "--whole") };
	int first = jobs.whole ? 2 : 1, i;

	if (argc <= first || argv[first][0] == '-') {
		fputs(usage_text, argc == 2 && !strcmp(argv[1], "--help") ? stdout : stderr);
		return argc == 2 && !strcmp(argv[1], "--help") ? EXIT_OK : EXIT_USAGE;
	}
	for (i = first; i < argc; i++)
		collect(&jobs, argv[i]);
	parallel_run(&(struct parallel){ .fn = mend_one, .ctx = &jobs, .n = jobs.n });
	free(jobs.v);
	return EXIT_OK;
}
