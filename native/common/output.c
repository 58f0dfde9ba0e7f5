// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "output.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util.h"

#define DAX_ALIGN (2ull << 20)

bool parse_path_numbers(const char *spec, char **path, uint64_t *numbers, int n)
{
	char *copy = xstrdup(spec);
	int i;

	for (i = n - 1; i >= 0; i--) {
		char *colon = strrchr(copy, ':');

		if (!colon || !parse_u64_all(colon + 1, &numbers[i])) {
			free(copy);
			return false;
		}
		*colon = '\0';
	}
	if (!*copy) {
		free(copy);
		return false;
	}
	*path = copy;
	return true;
}

void *map_window(int fd, uint64_t offset, uint64_t len, int prot, void **map, size_t *map_len)
{
	uint64_t start = align_down(offset, DAX_ALIGN);
	struct stat st;
	uint64_t end;
	void *p;

	if (fstat(fd, &st) < 0)
		return NULL;
	end = offset + len;
	end = align_up(end, S_ISCHR(st.st_mode) ? DAX_ALIGN : 4096);
	p = mmap(NULL, end - start, prot, MAP_SHARED, fd, (off_t)start);
	if (p == MAP_FAILED)
		return NULL;
	*map = p;
	*map_len = end - start;
	return (char *)p + (offset - start);
}

void output_set_file(struct output *out, const char *path, uint64_t max)
{
	*out = (struct output){ .path = path, .max = max, .fd = -1 };
}

bool output_set_window(struct output *out, const char *spec)
{
	uint64_t numbers[2];
	char *path;

	if (!parse_path_numbers(spec, &path, numbers, 2))
		return false;
	*out = (struct output){
		.path = path, .window = true, .offset = numbers[0], .max = numbers[1], .fd = -1,
	};
	return true;
}

void output_open(struct output *out, uint64_t len)
{
	int flags = O_RDWR | O_CLOEXEC | (out->window ? 0 : O_CREAT | O_TRUNC);

	out->fd = open(out->path, flags, 0600);
	if (out->fd < 0)
		die_errno("cannot open %s", out->path);
	if (!out->window && ftruncate(out->fd, (off_t)len) < 0)
		die_errno("cannot make %s %llu bytes long", out->path, (unsigned long long)len);
	if (!len)
		return;
	out->data = map_window(out->fd, out->offset, len, PROT_READ | PROT_WRITE, &out->map,
			       &out->map_len);
	if (!out->data)
		die_errno("cannot map %llu bytes of %s", (unsigned long long)len, out->path);
}

void output_close(struct output *out)
{
	if (out->map)
		munmap(out->map, out->map_len);
	if (out->fd >= 0)
		close(out->fd);
	out->map = NULL;
	out->data = NULL;
	out->fd = -1;
}
