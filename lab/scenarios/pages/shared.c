// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A service with much shared memory, as a database has it. Usage: shared MIB ANSWER
 *
 * At SIGUSR1 it compares every byte and writes "ok" or what is wrong to the file ANSWER.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#include "content.h"

static void answer(const char *path)
{
	FILE *file = fopen(path, "w");

	if (!file)
		die(path);
	fprintf(file, "%s\n", problem[0] ? problem : "ok");
	fclose(file);
}

int main(int argc, char **argv)
{
	unsigned long page;
	struct area a = { .name = "shared", .seed = 77 };
	sigset_t set;
	int number;

	if (argc != 3)
		return 2;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	a.pages = strtoul(argv[1], NULL, 10) * MIB / PAGE;
	a.generation = calloc(1, a.pages);
	a.base = mmap(NULL, a.pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (a.base == MAP_FAILED || !a.generation)
		die("mmap");
	for (page = 0; page < a.pages; page++)
		fill(&a, page, 0);
	answer(argv[2]);
	while (!sigwait(&set, &number)) {
		problem[0] = 0;
		for (page = 0; page < a.pages; page++)
			if (check(&a, page))
				break;
		answer(argv[2]);
	}
	return 1;
}
