// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "frames.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "output.h"
#include "pagemap_format.h"
#include "util.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22	/* Linux 5.14 */
#endif

struct frames {
	char *path;
	int fd;
	uint64_t offset;
	uint64_t first;		/* frame number */
	uint64_t npages;
	const char *data;
	void *map;
	size_t map_len;
};

static struct frames *table;
static size_t n_table;

static _Thread_local sigjmp_buf *volatile recover;

bool frames_add(const char *spec)
{
	uint64_t n[3];
	char *path;

	if (!parse_path_numbers(spec, &path, n, 3))
		return false;
	if ((n[0] | n[1] | n[2]) % PM_PAGE_SIZE || !n[2]) {
		free(path);
		return false;
	}
	table = xrealloc(table, n_table + 1, sizeof(*table));
	table[n_table++] = (struct frames){
		.path = path, .offset = n[0], .first = n[1] >> PM_PAGE_SHIFT,
		.npages = n[2] >> PM_PAGE_SHIFT,
	};
	return true;
}

void frames_open(void)
{
	size_t i;

	for (i = 0; i < n_table; i++) {
		table[i].fd = open(table[i].path, O_RDONLY | O_CLOEXEC);
		if (table[i].fd < 0)
			die_errno("cannot open %s", table[i].path);
	}
}

void frames_map(void)
{
	struct stat st;
	size_t i;

	for (i = 0; i < n_table; i++) {
		struct frames *f = &table[i];

		f->data = map_window(f->fd, f->offset, f->npages << PM_PAGE_SHIFT, PROT_READ,
				     &f->map, &f->map_len);
		if (!f->data)
			die_errno("cannot map %s", f->path);
		/*
		 * A device maps 2 MiB at a time, so filling the page table now
		 * is cheap and saves a fault inside the first UFFDIO_COPYs.
		 */
		if (!fstat(f->fd, &st) && S_ISCHR(st.st_mode))
			madvise(f->map, f->map_len, MADV_POPULATE_READ);
	}
}

void frames_unmap(void)
{
	size_t i;

	for (i = 0; i < n_table; i++) {
		if (table[i].map)
			munmap(table[i].map, table[i].map_len);
		close(table[i].fd);
		free(table[i].path);
	}
	free(table);
	table = NULL;
	n_table = 0;
}

static const struct frames *find(uint64_t pfn)
{
	size_t i;

	for (i = 0; i < n_table; i++)
		if (pfn >= table[i].first && pfn - table[i].first < table[i].npages)
			return &table[i];
	return NULL;
}

bool frames_cover(uint64_t pfn, uint64_t npages)
{
	while (npages) {
		const struct frames *f = find(pfn);
		uint64_t n;

		if (!f)
			return false;
		n = min_u64(npages, f->npages - (pfn - f->first));
		pfn += n;
		npages -= n;
	}
	return true;
}

const void *frames_address(uint64_t pfn, uint64_t *npages)
{
	const struct frames *f = find(pfn);

	*npages = min_u64(*npages, f->npages - (pfn - f->first));
	return f->data + ((pfn - f->first) << PM_PAGE_SHIFT);
}

static void on_sigbus(int sig)
{
	if (recover)
		siglongjmp(*recover, 1);
	/* Not ours: die of it. */
	signal(sig, SIG_DFL);
	raise(sig);
}

void frames_catch_sigbus(void)
{
	struct sigaction sa = { .sa_handler = on_sigbus, .sa_flags = SA_NODEFER };

	sigaction(SIGBUS, &sa, NULL);
}

bool frames_read(void *to, const void *from)
{
	sigjmp_buf here;

	if (sigsetjmp(here, 0)) {
		recover = NULL;
		return false;
	}
	/* The copy must stay between the two stores, for only the handler sees them. */
	recover = &here;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	memcpy(to, from, PM_PAGE_SIZE);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	recover = NULL;
	return true;
}
