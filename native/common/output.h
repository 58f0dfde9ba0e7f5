/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where the recorder puts bytes: a regular file that is made as long as needed,
 * or a window of a device (or of an existing file) that is mapped and written
 * in place.
 */
#ifndef REKERNEL_OUTPUT_H
#define REKERNEL_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct output {
	const char *path;
	bool window;		/* fixed place and size; never truncated */
	uint64_t offset;	/* of the window in the device */
	uint64_t max;		/* most bytes it may take */

	int fd;
	void *map;		/* what mmap returned, for munmap */
	size_t map_len;
	void *data;		/* the caller's bytes begin here */
};

/* PATH, to become a regular file of at most max bytes. */
void output_set_file(struct output *out, const char *path, uint64_t max);
/* "PATH:OFFSET:MAXLEN"; false if it does not parse. */
bool output_set_window(struct output *out, const char *spec);
/*
 * Opens and maps len bytes for writing at out->data; ends the program if that
 * fails.  The caller has checked len against out->max.
 */
void output_open(struct output *out, uint64_t len);
void output_close(struct output *out);

/*
 * Splits "PATH:N1:...:Nn" at its last n colons, so that PATH may have colons.
 * *path is allocated; false if a number is missing or malformed.
 */
bool parse_path_numbers(const char *spec, char **path, uint64_t *numbers, int n);

/*
 * Maps [offset, offset + len) of fd shared; start and length are rounded to
 * 2 MiB, which devdax insists on.  Returns the address of offset, or NULL with
 * errno set; *map and *map_len are for munmap.
 */
void *map_window(int fd, uint64_t offset, uint64_t len, int prot, void **map, size_t *map_len);

#endif
