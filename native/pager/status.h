/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef REKERNEL_STATUS_H
#define REKERNEL_STATUS_H

#include <stdbool.h>
#include <stddef.h>

#include "mapfile.h"

#define STATUS_MAX 8192

/* Is there nothing left to serve, and nothing more to be expected? */
bool status_drained(void);
/* From now on "drained" does not wait for restores that have not begun. */
void status_expect_no_more(void);
/* Number of spaces that miss pages or are still watched. */
unsigned long long status_spaces_left(void);

/* Whose page map the status is about; before anything else here. */
void status_init(const struct map_file *mf);
/* One JSON object and a newline; see README.md for its members. */
void status_format(char *buf, size_t len);

/* What is left where no worker is; see hold.h. */
struct status_held {
	uint64_t spaces;
	uint64_t left;		/* pages */
	uint64_t damaged;
};

void status_format_held(char *buf, size_t len, const struct status_held *held);

/* Opens the directory now, for the path may mean something else after switch_root. */
void status_file_open(const char *path);
/* Replaces the file; does nothing without status_file_open(). */
void status_file_write(const char *text);

#endif
