// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "util.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void vmessage(int err, const char *fmt, va_list ap)
{
	char buf[1024];
	int n, len;

	n = snprintf(buf, sizeof(buf), "%s: ", program_invocation_short_name);
	n += vsnprintf(buf + n, sizeof(buf) - n, fmt, ap);
	if (n < (int)sizeof(buf) && err)
		n += snprintf(buf + n, sizeof(buf) - n, ": %s", strerror(err));
	len = n < (int)sizeof(buf) - 1 ? n : (int)sizeof(buf) - 2;
	buf[len] = '\n';
	if (write(STDERR_FILENO, buf, len + 1) < 0)
		return;
}

void warn_msg(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vmessage(0, fmt, ap);
	va_end(ap);
}

void warn_errno(const char *fmt, ...)
{
	int err = errno;
	va_list ap;

	va_start(ap, fmt);
	vmessage(err, fmt, ap);
	va_end(ap);
}

void die(int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vmessage(0, fmt, ap);
	va_end(ap);
	/* Not exit(): other threads may be running, and nothing is buffered. */
	_exit(code);
}

void die_errno(const char *fmt, ...)
{
	int err = errno;
	va_list ap;

	va_start(ap, fmt);
	vmessage(err, fmt, ap);
	va_end(ap);
	_exit(EXIT_FAILED);
}

void *xcalloc(size_t n, size_t size)
{
	void *p = calloc(n ? n : 1, size ? size : 1);

	if (!p)
		die(EXIT_FAILED, "out of memory");
	return p;
}

void *xrealloc(void *p, size_t n, size_t size)
{
	p = reallocarray(p, n ? n : 1, size);
	if (!p)
		die(EXIT_FAILED, "out of memory");
	return p;
}

char *xstrdup(const char *s)
{
	char *p = strdup(s);

	if (!p)
		die(EXIT_FAILED, "out of memory");
	return p;
}

uint64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

bool parse_u64(const char *s, const char **end, uint64_t *value)
{
	unsigned int shift = 0;
	uint64_t v;
	char *e;

	if (!isdigit((unsigned char)*s))
		return false;
	errno = 0;
	v = strtoull(s, &e, s[0] == '0' && (s[1] == 'x' || s[1] == 'X') ? 16 : 10);
	if (errno || e == s)
		return false;
	switch (*e) {
	case 'K':
		shift = 10;
		break;
	case 'M':
		shift = 20;
		break;
	case 'G':
		shift = 30;
		break;
	case 'T':
		shift = 40;
		break;
	}
	if (shift) {
		if (v > UINT64_MAX >> shift)
			return false;
		v <<= shift;
		e++;
	}
	*end = e;
	*value = v;
	return true;
}

bool parse_u64_all(const char *s, uint64_t *value)
{
	const char *end;

	return parse_u64(s, &end, value) && !*end;
}
