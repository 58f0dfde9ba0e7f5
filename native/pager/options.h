/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef REKERNEL_OPTIONS_H
#define REKERNEL_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct listen_option {
	const char *path;
	bool any_tree;
	uint32_t tree;
};

struct pager_options {
	const char *map;
	size_t n_frames;
	struct listen_option *listens;
	size_t n_listens;
	const char *control;
	const char *log;
	const char *status_file;
	unsigned int window;
	unsigned int threads;
	unsigned int drain_threads;
	bool exit_when_drained;
};

/* Ends the program with EXIT_USAGE, or EXIT_OK after --help. */
void pager_options_parse(struct pager_options *opt, int argc, char **argv);

#endif
