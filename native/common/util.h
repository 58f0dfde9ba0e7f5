/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Small things every program here needs: messages, numbers, time, memory. */
#ifndef REKERNEL_UTIL_H
#define REKERNEL_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdnoreturn.h>

/*
 * Exit codes.  0-8 have the meaning they have in the rest of rekernel; those
 * from 12 on tell the caller which remedy to try.
 */
enum {
	EXIT_OK = 0,
	EXIT_FAILED = 1,	/* a system call failed; stderr says which */
	EXIT_USAGE = 2,
	EXIT_VANISHED = 3,	/* a process is gone; stderr names it */
	EXIT_BAD_MAP = 4,	/* page map damaged or not covered by the frames */
	EXIT_NOT_PERMITTED = 8,	/* the kernel hides page frame numbers from us */
	EXIT_ABORTED = 9,	/* the pager was told to leave with pages not home */
	EXIT_STRAYS = 12,	/* the stray area is too small */
	EXIT_SWAPPED = 13,	/* pages are in swap or under migration */
	EXIT_MAP_SPACE = 14,	/* the map does not fit into its output window */
};

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static inline uint64_t align_down(uint64_t v, uint64_t align)
{
	return v & ~(align - 1);
}

static inline uint64_t align_up(uint64_t v, uint64_t align)
{
	return align_down(v + align - 1, align);
}

/* "program: message\n" on stderr in one write. */
void warn_msg(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The same with ": strerror(errno)". */
void warn_errno(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
noreturn void die(int code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
noreturn void die_errno(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Zeroed memory, or the end of the program. */
void *xcalloc(size_t n, size_t size);
void *xrealloc(void *p, size_t n, size_t size);
char *xstrdup(const char *s);

/* Monotonic clock in microseconds. */
uint64_t now_us(void);

/*
 * A number, decimal or 0x..., with an optional suffix K, M, G or T.  Stops at
 * the first other character and stores its place in *end; false if there is no
 * number or it does not fit.
 */
bool parse_u64(const char *s, const char **end, uint64_t *value);
/* The same, and the number must be the whole string. */
bool parse_u64_all(const char *s, uint64_t *value);

#endif
