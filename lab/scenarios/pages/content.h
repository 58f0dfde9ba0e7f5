// SPDX-License-Identifier: GPL-2.0-or-later
/* What a page must hold, and whether it does. */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 4096UL
#define MIB (1UL << 20)
#define WORDS (PAGE / sizeof(uint64_t))
#define HOLE 255

/* One mapping. generation[page] says what the page holds; HOLE: nothing was ever written. */
struct area {
	const char *name;
	uint64_t seed;
	char *base;
	unsigned long pages;
	unsigned char *generation;
	int shared;		/* all processes see what one of them writes */
	int hidden;		/* PROT_NONE, except while it is being verified */
};

static char problem[256];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int bad(const char *format, ...)
{
	va_list list;

	va_start(list, format);
	if (!problem[0])
		vsnprintf(problem, sizeof(problem), format, list);
	va_end(list);
	return -1;
}

static uint64_t first_word(uint64_t seed, unsigned long page, unsigned generation)
{
	uint64_t x = seed * 0x9e3779b97f4a7c15UL + page * 0xbf58476d1ce4e5b9UL +
		     generation * 0x94d049bb133111ebUL;

	return x ? x : 1;
}

static uint64_t next_word(uint64_t x)
{
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x;
}

static void fill(struct area *a, unsigned long page, unsigned generation)
{
	uint64_t x = first_word(a->seed, page, generation);
	uint64_t *at = (uint64_t *)(a->base + page * PAGE), *end = at + WORDS;

	for (; at < end; at++, x = next_word(x))
		*at = x;
	a->generation[page] = generation;
}

static int check(struct area *a, unsigned long page)
{
	int hole = a->generation[page] == HOLE;
	uint64_t x = hole ? 0 : first_word(a->seed, page, a->generation[page]);
	uint64_t *start = (uint64_t *)(a->base + page * PAGE), *at = start, *end = at + WORDS;

	for (; at < end; at++) {
		if (*at != x)
			return bad("%s: page %lu of %lu, word %ld is %016lx, not %016lx", a->name,
				   page, a->pages, (long)(at - start), *at, x);
		if (!hole)
			x = next_word(x);
	}
	return 0;
}
