// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * CRIU counts the pages from one that it has to the end of its area in an int, where it maps the
 * area before it forks: if that is shared copy-on-write, or any pages are lazy
 * (restore_priv_vma_content() of its mem.c, still so in 4.2). In areas of
 * 8 TiB or more it ends with "Page read err". Address sanitizers reserve such, and the kernel
 * merges smaller ones that meet.
 *
 * Where the kernel does not make one of such neighbours again when they are mapped, a process can
 * tell by an mremap() across the border only. A parent and its child are cut at the same places:
 * CRIU compares the bounds.
 */
#define _GNU_SOURCE
#include "areas.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "criu_image.h"
#include "mm_image.h"
#include "util.h"

#define LARGE	(1ull << 43)
#define PIECE	(1ull << 42)

struct area {
	uint64_t start;
	uint64_t end;
	uint64_t pgoff;
	uint64_t flags;
};

static struct area read_area(struct message entry)
{
	struct field field;
	uint64_t at[VMA_FLAGS + 1] = { 0 };

	while (message_next(&entry, &field))
		if (field.number <= VMA_FLAGS)
			at[field.number] = field.value;
	return (struct area){ at[VMA_START], at[VMA_END], at[VMA_PGOFF], at[VMA_FLAGS] };
}

static bool is_large(const struct area *area)
{
	return area->flags & MAP_PRIVATE && area->end - area->start >= LARGE;
}

static void put_number(struct buffer *to, uint32_t number, uint64_t value)
{
	unsigned char bytes[20];

	buffer_append(to, bytes, image_put_number(bytes, number, value));
}

/* One more area like this entry, from start to end. */
static void put_piece(struct buffer *to, struct message entry, const struct area *area,
		      uint64_t start, uint64_t end)
{
	struct buffer piece = { 0 };
	unsigned char head[20];
	struct field field;
	size_t at = entry.at;

	put_number(&piece, VMA_START, start);
	put_number(&piece, VMA_END, end);
	/* Bytes of a file; CRIU has 0 for what is none. */
	put_number(&piece, VMA_PGOFF, area->flags & MAP_ANONYMOUS ? area->pgoff :
				      area->pgoff + (start - area->start));
	for (; message_next(&entry, &field); at = entry.at)
		if (field.number > VMA_PGOFF)
			buffer_append(&piece, entry.img->data + at, entry.at - at);
	buffer_append(to, head, image_put_bytes(head, MM_VMAS, piece.len));
	buffer_append(to, piece.data, piece.len);
	free(piece.data);
}

static void split(struct buffer *to, struct message entry, const struct area *area)
{
	uint64_t start, end;

	/* At round addresses, so that no huge page is cut. */
	for (start = area->start; start < area->end; start = end) {
		end = min_u64(align_down(start, PIECE) + PIECE, area->end);
		put_piece(to, entry, area, start, end);
	}
}

/* Appends the entry; says whether anything in it was split. */
static bool copy_entry(struct buffer *to, struct message mm)
{
	struct buffer new = { 0 };
	struct field field;
	size_t at = mm.at;
	bool found = false;
	uint32_t len;

	for (; message_next(&mm, &field); at = mm.at) {
		struct message entry = { mm.img, field.at, field.end };
		struct area area = { 0 };

		if (field.number == MM_VMAS)
			area = read_area(entry);
		if (is_large(&area)) {
			split(&new, entry, &area);
			found = true;
		} else {
			buffer_append(&new, mm.img->data + at, mm.at - at);
		}
	}
	len = new.len;
	buffer_append(to, &len, sizeof(len));
	buffer_append(to, new.data, new.len);
	free(new.data);
	return found;
}

void split_areas(const char *directory, pid_t pid)
{
	struct buffer new = { 0 };
	struct message mm;
	struct criu_image img;
	char path[4096];
	bool found = false;

	snprintf(path, sizeof(path), "%s/mm-%d.img", directory, pid);
	image_read(&img, path, MM_MAGIC);
	buffer_append(&new, img.data, img.next);
	while (image_next(&img, &mm))
		found |= copy_entry(&new, mm);
	if (found)
		buffer_write(&new, path);
	image_free(&img);
	free(new.data);
}
