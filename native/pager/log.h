/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef REKERNEL_LOG_H
#define REKERNEL_LOG_H

/* Lines go to path, or to stderr if it is NULL; ends the program if it cannot be opened. */
void log_open(const char *path);
/* "SECONDS.MICROS message\n", in one write. */
void log_line(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void log_errno(int err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* A line as it is: the final summary. */
void log_raw(const char *line);

#endif
