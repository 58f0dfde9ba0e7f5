// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "mapfile.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "crc32.h"
#include "frames.h"
#include "output.h"
#include "util.h"

#define USER_END (1ull << 56)	/* five-level page tables */

#define bad(spec, ...)	die(EXIT_BAD_MAP, "page map " spec, __VA_ARGS__)

static const void *map_it(struct map_file *mf, const char *spec, uint64_t *len)
{
	uint64_t window[2] = { 0, 0 };
	struct stat st;
	const void *p;
	char *path;
	int fd;

	if (!parse_path_numbers(spec, &path, window, 2))
		path = xstrdup(spec);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		die_errno("cannot open %s", path);
	if (!window[1])
		window[1] = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0;
	else if (S_ISREG(st.st_mode) && (uint64_t)st.st_size < window[0] + window[1])
		bad("%s is shorter than the given window", path);
	if (window[1] < sizeof(struct pm_header))
		bad("%s is too short for a header", path);
	p = map_window(fd, window[0], window[1], PROT_READ, &mf->map, &mf->map_len);
	if (!p)
		die_errno("cannot map %s", path);
	close(fd);
	free(path);
	*len = window[1];
	return p;
}

static void check_header(const struct pm_header *h, uint64_t len)
{
	uint64_t need;

	if (memcmp(h->magic, PM_MAGIC, PM_MAGIC_LEN))
		bad("has no %s at its start", PM_MAGIC);
	if (h->version != PM_VERSION)
		bad("has version %u, this program reads %u", h->version, PM_VERSION);
	if (h->page_size != PM_PAGE_SIZE)
		bad("has pages of %u bytes", h->page_size);
	if (h->flags & ~PM_FLAGS_KNOWN)
		bad("has unknown flags %#llx", (unsigned long long)h->flags);
	if (h->n_runs > len / sizeof(struct pm_run))
		bad("is cut off: %llu bytes", (unsigned long long)len);
	need = sizeof(*h) + h->n_spaces * sizeof(struct pm_space) +
	       h->n_runs * sizeof(struct pm_run);
	if (need > len)
		bad("is cut off: %llu of %llu bytes", (unsigned long long)len,
		    (unsigned long long)need);
	if (crc32_update(0, (const char *)h + PM_CRC_START, need - PM_CRC_START) != h->crc32)
		bad("is %s: the checksum does not match", "damaged");
}

static void take_space(struct map_file *mf, const struct pm_space *ps, const struct pm_run *runs,
		       uint64_t n_runs)
{
	struct map_space *space;
	uint64_t i, pages = 0, above = 0;

	if (ps->first_run > n_runs || ps->n_runs > n_runs - ps->first_run)
		bad("gives process %u runs it does not have", ps->pid);
	for (i = ps->first_run; i < ps->first_run + ps->n_runs; i++) {
		const struct pm_run *r = &runs[i];

		if (!r->npages || r->vaddr % PM_PAGE_SIZE || r->vaddr < above ||
		    r->vaddr >= USER_END || r->flags & ~PM_RUN_KNOWN)
			bad("has a malformed run at %#llx of process %u",
			    (unsigned long long)r->vaddr, ps->pid);
		above = r->vaddr + ((uint64_t)r->npages << PM_PAGE_SHIFT);
		if (ps->kind == PM_KIND_ANON && !frames_cover(r->pfn, r->npages))
			bad("names frame %#llx, which no --frames covers",
			    (unsigned long long)r->pfn);
		mf->first[i] = pages;
		pages += r->npages;
	}
	if (pages != ps->pages)
		bad("counts %llu pages of process %u, but has %llu", (unsigned long long)ps->pages,
		    ps->pid, (unsigned long long)pages);
	if (ps->kind != PM_KIND_ANON)
		return;
	space = &mf->spaces[mf->n_spaces++];
	space->pid = ps->pid;
	space->nspid = ps->nspid;
	space->tree = ps->tree;
	space->image = (struct image){
		.runs = runs + ps->first_run,
		.n_runs = ps->n_runs,
		.first = mf->first + ps->first_run,
		.pages = pages,
	};
	mf->pages += pages;
}

void map_file_open(struct map_file *mf, const char *spec)
{
	const struct pm_header *h;
	const struct pm_space *ps;
	uint64_t len;
	size_t i;

	memset(mf, 0, sizeof(*mf));
	h = map_it(mf, spec, &len);
	check_header(h, len);
	ps = (const struct pm_space *)(h + 1);
	mf->first = xcalloc(h->n_runs, sizeof(*mf->first));
	mf->spaces = xcalloc(h->n_spaces, sizeof(*mf->spaces));
	for (i = 0; i < h->n_spaces; i++)
		take_space(mf, &ps[i], (const struct pm_run *)(ps + h->n_spaces), h->n_runs);
}

void map_file_close(struct map_file *mf)
{
	if (mf->map)
		munmap(mf->map, mf->map_len);
	free(mf->first);
	free(mf->spaces);
	memset(mf, 0, sizeof(*mf));
}

struct map_space *map_file_find(struct map_file *mf, uint32_t nspid, bool any_tree, uint32_t tree)
{
	size_t i;

	for (i = 0; i < mf->n_spaces; i++)
		if (mf->spaces[i].nspid == nspid && (any_tree || mf->spaces[i].tree == tree))
			return &mf->spaces[i];
	return NULL;
}

bool map_file_ambiguous(const struct map_file *mf)
{
	size_t i, k;

	for (i = 0; i < mf->n_spaces; i++)
		for (k = 0; k < i; k++)
			if (mf->spaces[i].nspid == mf->spaces[k].nspid)
				return true;
	return false;
}
