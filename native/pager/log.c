// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "log.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "util.h"

static int log_fd = STDERR_FILENO;

void log_open(const char *path)
{
	if (!path)
		return;
	log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (log_fd < 0)
		die_errno("cannot open %s", path);
}

static void put(const char *buf, size_t len)
{
	/* There is nobody to tell that the log is full. */
	if (write(log_fd, buf, len) < 0)
		return;
}

static void vlog(int err, const char *fmt, va_list ap)
{
	uint64_t t = now_us();
	char buf[512];
	int n;

	n = snprintf(buf, sizeof(buf), "%llu.%06llu ", (unsigned long long)(t / 1000000),
		     (unsigned long long)(t % 1000000));
	n += vsnprintf(buf + n, sizeof(buf) - n, fmt, ap);
	if (err && n < (int)sizeof(buf))
		n += snprintf(buf + n, sizeof(buf) - n, ": %s", strerror(err));
	if (n > (int)sizeof(buf) - 2)
		n = sizeof(buf) - 2;
	buf[n] = '\n';
	put(buf, n + 1);
}

void log_line(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vlog(0, fmt, ap);
	va_end(ap);
}

void log_errno(int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vlog(err, fmt, ap);
	va_end(ap);
}

void log_raw(const char *line)
{
	put(line, strlen(line));
}
