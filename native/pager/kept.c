// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "kept.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "state.h"
#include "util.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif

static uint64_t table_bytes(uint64_t cap)
{
	return sizeof(struct segment_table) + cap * sizeof(struct segment);
}

static struct segment_table *table_at(const struct kept *k, uint32_t which)
{
	return (struct segment_table *)((char *)k->head + k->head->table[which]);
}

static bool map_it(struct kept *k)
{
	/* A fault of somebody else waits for this memory: never on a disk. */
	void *p = mmap(NULL, k->len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_LOCKED, k->fd, 0);

	if (p == MAP_FAILED)
		return false;
	k->head = p;
	return true;
}

/* Linux 6.3 wants to be told that nobody will run it, and may refuse otherwise. */
static int make_memfd(void)
{
	int fd = memfd_create(KEPT_NAME, MFD_CLOEXEC | MFD_NOEXEC_SEAL);

	if (fd < 0 && errno == EINVAL)
		fd = memfd_create(KEPT_NAME, MFD_CLOEXEC);
	return fd;
}

void kept_new(struct kept *k, uint64_t pages, uint64_t segs)
{
	uint64_t tables = sizeof(*k->head) + kept_words(pages) * sizeof(k->head->done[0]);
	uint64_t cap = segs + 6;

	k->fd = make_memfd();
	k->len = align_up(tables + 2 * table_bytes(cap), 4096);
	if (k->fd < 0 || ftruncate(k->fd, (off_t)k->len) < 0 || !map_it(k))
		die_errno("cannot make memory for an address space");
	k->head->order = state_numbers(1);
	k->head->uffd = -1;
	k->head->image = -1;
	k->head->pages = pages;
	k->head->table[0] = tables;
	k->head->table[1] = tables + table_bytes(cap);
	table_at(k, 0)->cap = cap;
	table_at(k, 1)->cap = cap;
	in_order();
	k->head->magic = KEPT_MAGIC;
}

bool kept_open(struct kept *k, int fd)
{
	struct stat st;

	k->fd = fd;
	if (fstat(fd, &st) < 0 || (uint64_t)st.st_size < sizeof(*k->head))
		return false;
	k->len = (size_t)st.st_size;
	if (!map_it(k))
		die_errno("cannot map the memory of an address space");
	if (k->head->magic == KEPT_MAGIC)
		return true;
	munmap(k->head, k->len);
	return false;
}

void kept_close(struct kept *k)
{
	munmap(k->head, k->len);
	close(k->fd);
	k->head = NULL;
	k->fd = -1;
}

const struct segment_table *kept_table(const struct kept *k)
{
	return table_at(k, k->head->current);
}

struct segment_table *kept_spare(struct kept *k, uint64_t n)
{
	uint32_t spare = !k->head->current;
	uint64_t end = k->len, cap = 2 * n;
	struct segment_table *t = table_at(k, spare);

	if (t->cap >= n)
		return t;
	munmap(k->head, k->len);
	k->len = align_up(end + table_bytes(cap), 4096);
	if (ftruncate(k->fd, (off_t)k->len) < 0 || !map_it(k))
		die_errno("cannot make room for moved mappings");
	t = (struct segment_table *)((char *)k->head + end);
	t->cap = cap;
	in_order();
	k->head->table[spare] = end;
	return t;
}

void kept_flip(struct kept *k)
{
	in_order();
	__atomic_store_n(&k->head->current, !k->head->current, __ATOMIC_RELEASE);
}
