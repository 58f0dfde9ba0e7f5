/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The page map as the pager sees it: checked once, then trusted. */
#ifndef REKERNEL_MAPFILE_H
#define REKERNEL_MAPFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model.h"

struct map_space {
	uint32_t pid;
	uint32_t nspid;
	uint32_t tree;
	struct image image;
};

struct map_file {
	struct map_space *spaces;
	size_t n_spaces;
	uint64_t pages;
	void *map;
	size_t map_len;
	uint64_t *first;
};

/*
 * Maps "FILE" or "FILE:OFFSET:LEN" and checks everything in it, also that the
 * frames it names are covered.  Ends the program with EXIT_BAD_MAP otherwise.
 */
void map_file_open(struct map_file *mf, const char *spec);
void map_file_close(struct map_file *mf);

/* The space CRIU means by this PID; any_tree if the caller cannot tell. */
struct map_space *map_file_find(struct map_file *mf, uint32_t nspid, bool any_tree, uint32_t tree);
/* Do two spaces have the same nspid, so that any_tree would be a guess? */
bool map_file_ambiguous(const struct map_file *mf);

#endif
