// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A pagemap image names ranges of pages in ascending order; the data of those that are present
 * follow each other in the pages image that its head names. Both are written anew.
 */
#define _GNU_SOURCE
#include "complete.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "criu_image.h"
#include "mm_image.h"
#include "pagemap_format.h"
#include "util.h"

/* criu/include/magic.h, images/pagemap.proto, criu/include/image.h */
#define PAGEMAP_MAGIC	0x56084025u
enum { HEAD_PAGES_ID = 1 };
enum { PE_VADDR = 1, PE_COMPAT_NR_PAGES = 2, PE_FLAGS = 4, PE_NR_PAGES = 5 };
#define STATUS_VSYSCALL	(1u << 2)
#define STATUS_VDSO	(1u << 3)
#define STATUS_VVAR	(1u << 12)
#define FLAG_PARENT	1u
#define FLAG_LAZY	2u
#define FLAG_PRESENT	4u

struct range {
	uint64_t start;
	uint64_t end;
};

struct ranges {
	struct range *v;
	size_t n;
	size_t cap;
};

struct work {
	const char *directory;
	pid_t pid;
	struct ranges lazy;	/* what the pager serves, sorted */
	size_t i;		/* in it; never goes back */
	struct buffer pages;	/* as CRIU has written them */
	size_t taken;		/* bytes of them */
	int mem;		/* /proc/PID/mem */
	int out;		/* the new pages */
	struct buffer map;	/* the new page map */
	struct range last;	/* its last entry, not written yet */
	uint32_t last_flags;
};

static void add_range(struct ranges *list, uint64_t start, uint64_t end)
{
	if (list->n == list->cap) {
		list->cap = list->cap ? 2 * list->cap : 128;
		list->v = xrealloc(list->v, list->cap, sizeof(*list->v));
	}
	list->v[list->n++] = (struct range){ start, end };
}

/* What CRIU registers with userfaultfd: vma_entry_can_be_lazy() in its vma.h. */
static bool is_lazy(uint64_t flags, uint64_t status)
{
	return flags & MAP_ANONYMOUS && flags & MAP_PRIVATE &&
	       !(flags & (MAP_LOCKED | MAP_HUGETLB)) &&
	       !(status & (STATUS_VSYSCALL | STATUS_VDSO | STATUS_VVAR));
}

static void read_lazy(struct work *w, const char *path)
{
	struct message mm, entry;
	struct criu_image img;
	struct field vma, field;

	image_read(&img, path, MM_MAGIC);
	while (image_next(&img, &mm)) {
		while (message_next(&mm, &vma)) {
			uint64_t at[VMA_STATUS + 1] = { 0 };

			if (vma.number != MM_VMAS)
				continue;
			entry = (struct message){ &img, vma.at, vma.end };
			while (message_next(&entry, &field))
				if (field.number <= VMA_STATUS)
					at[field.number] = field.value;
			if (is_lazy(at[VMA_FLAGS], at[VMA_STATUS]))
				add_range(&w->lazy, at[VMA_START], at[VMA_END]);
		}
	}
	image_free(&img);
}

static void read_pages(struct work *w, const char *path)
{
	struct stat st;
	ssize_t n;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &st) < 0)
		die_errno("cannot read %s", path);
	w->pages.cap = st.st_size;
	w->pages.data = xcalloc(w->pages.cap + 1, 1);
	while (w->pages.len < w->pages.cap) {
		n = read(fd, w->pages.data + w->pages.len, w->pages.cap - w->pages.len);
		if (n <= 0)
			die_errno("cannot read %s", path);
		w->pages.len += n;
	}
	close(fd);
}

static void flush_entry(struct work *w)
{
	unsigned char entry[64];
	uint64_t pages = (w->last.end - w->last.start) / PM_PAGE_SIZE;
	uint32_t len;

	if (!pages)
		return;
	len = image_put_number(entry, PE_VADDR, w->last.start);
	/* Required, and not looked at beside the other. */
	len += image_put_number(entry + len, PE_COMPAT_NR_PAGES, 0);
	len += image_put_number(entry + len, PE_FLAGS, w->last_flags);
	len += image_put_number(entry + len, PE_NR_PAGES, pages);
	buffer_append(&w->map, &len, sizeof(len));
	buffer_append(&w->map, entry, len);
	w->last = (struct range){ 0, 0 };
}

static void add_entry(struct work *w, uint64_t start, uint64_t end, uint32_t flags)
{
	if (w->last.end == start && w->last_flags == flags) {
		w->last.end = end;
		return;
	}
	flush_entry(w);
	w->last = (struct range){ start, end };
	w->last_flags = flags;
}

static void put_pages(struct work *w, const void *data, size_t len)
{
	if (write(w->out, data, len) != (ssize_t)len)
		die_errno("cannot write the pages of process %d", w->pid);
}

static void copy_from_process(struct work *w, uint64_t start, uint64_t end)
{
	static const size_t piece = 64 * PM_PAGE_SIZE;
	unsigned char *data = xcalloc(1, piece);

	while (start < end) {
		size_t len = min_u64(end - start, piece);

		if (pread(w->mem, data, len, (off_t)start) != (ssize_t)len)
			die_errno("cannot read the pages at %#llx of process %d",
				  (unsigned long long)start, w->pid);
		put_pages(w, data, len);
		start += len;
	}
	free(data);
}

/* Pages that are all served by the pager, or none of them. */
static void settle(struct work *w, uint64_t start, uint64_t end, uint32_t flags, bool lazy)
{
	size_t written = flags & FLAG_PRESENT ? end - start : 0;

	if (written > w->pages.len - w->taken)
		die(EXIT_FAILED, "%s: the pages of process %d are cut off", w->directory, w->pid);
	if (lazy) {
		add_entry(w, start, end, FLAG_LAZY);
	} else {
		add_entry(w, start, end, FLAG_PRESENT);
		if (written)
			put_pages(w, w->pages.data + w->taken, written);
		else
			copy_from_process(w, start, end);
	}
	w->taken += written;
}

static void settle_entry(struct work *w, struct message entry)
{
	struct field field;
	uint64_t at[PE_NR_PAGES + 1] = { 0 }, start, end, next;

	while (message_next(&entry, &field))
		if (field.number <= PE_NR_PAGES)
			at[field.number] = field.value;
	start = at[PE_VADDR];
	end = start + at[PE_NR_PAGES] * PM_PAGE_SIZE;
	if (start >= end || at[PE_FLAGS] & ~(uint64_t)(FLAG_PARENT | FLAG_LAZY | FLAG_PRESENT))
		die(EXIT_FAILED, "%s: unknown entry at %#llx", entry.img->path,
		    (unsigned long long)start);
	for (; start < end; start = next) {
		bool lazy;

		while (w->i < w->lazy.n && w->lazy.v[w->i].end <= start)
			w->i++;
		lazy = w->i < w->lazy.n && w->lazy.v[w->i].start <= start;
		if (w->i == w->lazy.n)
			next = end;
		else
			next = min_u64(end, lazy ? w->lazy.v[w->i].end : w->lazy.v[w->i].start);
		settle(w, start, next, at[PE_FLAGS], lazy);
	}
}

static void open_files(struct work *w, const char *new_pages)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/mem", w->pid);
	w->mem = open(path, O_RDONLY | O_CLOEXEC);
	if (w->mem < 0)
		die(EXIT_VANISHED, "process %d is gone", w->pid);
	w->out = open(new_pages, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (w->out < 0)
		die_errno("cannot write %s", new_pages);
}

static uint64_t pages_id(struct message head)
{
	struct field field;

	while (message_next(&head, &field))
		if (field.number == HEAD_PAGES_ID)
			return field.value;
	die(EXIT_FAILED, "%s: names no pages", head.img->path);
}

void complete(const char *directory, pid_t pid)
{
	struct work w = { .directory = directory, .pid = pid };
	char path[4096], pages[4096], new_pages[4096 + 8];
	struct message entry;
	struct criu_image img;

	snprintf(path, sizeof(path), "%s/mm-%d.img", directory, pid);
	read_lazy(&w, path);
	snprintf(path, sizeof(path), "%s/pagemap-%d.img", directory, pid);
	image_read(&img, path, PAGEMAP_MAGIC);
	if (image_next(&img, &entry)) {
		snprintf(pages, sizeof(pages), "%s/pages-%llu.img", directory,
			 (unsigned long long)pages_id(entry));
		snprintf(new_pages, sizeof(new_pages), "%s.new", pages);
		read_pages(&w, pages);
		open_files(&w, new_pages);
		buffer_append(&w.map, img.data, entry.end);
		while (image_next(&img, &entry))
			settle_entry(&w, entry);
		flush_entry(&w);
		buffer_write(&w.map, path);
		close(w.mem);
		close(w.out);
		if (rename(new_pages, pages) < 0)
			die_errno("cannot write %s", pages);
	}
	image_free(&img);
	free(w.lazy.v);
	free(w.pages.data);
	free(w.map.data);
}
