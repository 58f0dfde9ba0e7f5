// SPDX-License-Identifier: GPL-2.0-or-later
/* What needs no kernel: the model against a naive one, parsers, checksum. */
#define _GNU_SOURCE
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pager/batch.h"
#include "crc32.h"
#include "pagemap/kcore.h"
#include "pager/model.h"
#include "pager/state.h"
#include "output.h"
#include "pagemap/scan.h"
#include "util.h"
#include "pagemap/vma.h"

#define CHECK(cond)								\
	do {									\
		if (!(cond)) {							\
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond);	\
			exit(1);						\
		}								\
	} while (0)

#define PAGES 512	/* of the naive address space */
#define BASE 0x10000000ull

static uint64_t seed;

static uint64_t rnd(uint64_t below)
{
	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return (seed >> 33) % below;
}

/* For every page of today: frame + 1 of the page it wants, or 0 for zeros. */
struct naive {
	uint64_t want[PAGES];
};

static size_t make_runs(struct pm_run *runs, uint64_t *first, struct naive *naive, uint64_t *pages)
{
	size_t n = 0, p = 0;
	uint64_t pfn = 1000;

	*pages = 0;
	memset(naive, 0, sizeof(*naive));
	while (p < PAGES / 2) {
		size_t k, len = 1 + rnd(9);

		p += rnd(3) ? 0 : rnd(20);
		if (p + len > PAGES)
			break;
		pfn += rnd(2) ? 100 : 50;
		runs[n] = (struct pm_run){ BASE + p * PM_PAGE_SIZE, pfn, (uint32_t)len, 0 };
		first[n++] = *pages;
		for (k = 0; k < len; k++)
			naive->want[p + k] = pfn + k + 1;
		*pages += len;
		p += len;
		pfn += len;
	}
	return n;
}

static void compare(const struct model *m, const struct naive *naive)
{
	uint64_t left = 0, ordinal = 0, seen = 0;
	struct extent ext;
	size_t p, k;

	for (p = 0; p < PAGES; p++)
		left += naive->want[p] != 0;
	CHECK(model_left(m) == left);
	for (p = 0; p < PAGES; p += ext.npages) {
		ext = model_at(m, BASE + p * PM_PAGE_SIZE, 1 + rnd(20));
		CHECK(ext.npages >= 1);
		for (k = 0; k < ext.npages && p + k < PAGES; k++) {
			CHECK(ext.zero == !naive->want[p + k]);
			if (!ext.zero)
				CHECK(model_frame(m, ext.ordinal + k, NULL) + 1 ==
				      naive->want[p + k]);
		}
	}
	while (model_next(m, ordinal, UINT64_MAX, 1 + rnd(30), &ext)) {
		CHECK(!ext.zero && ext.ordinal >= ordinal && ext.npages >= 1);
		for (k = 0; k < ext.npages; k++) {
			p = (ext.vaddr - BASE) / PM_PAGE_SIZE + k;
			CHECK(p < PAGES);
			CHECK(model_frame(m, ext.ordinal + k, NULL) + 1 == naive->want[p]);
			seen++;
		}
		ordinal = ext.ordinal + ext.npages;
	}
	CHECK(seen == left);
}

static void step(struct model *m, struct naive *naive)
{
	size_t a = rnd(PAGES), len = 1 + rnd(40), b, k;
	struct naive old = *naive;
	struct extent ext;
	uint64_t event;

	if (a + len > PAGES)
		len = PAGES - a;
	switch (rnd(4)) {
	case 0:
	case 1:
		ext = model_at(m, BASE + a * PM_PAGE_SIZE, len);
		if (ext.zero)
			break;
		CHECK(model_done(m, ext.ordinal, ext.npages) == ext.npages);
		CHECK(model_done(m, ext.ordinal, ext.npages) == 0);
		memset(&naive->want[a], 0, ext.npages * sizeof(naive->want[0]));
		break;
	case 2:
		len = 1 + len / 8;
		if (a + len > PAGES)
			len = PAGES - a;
		model_cut(m, BASE + a * PM_PAGE_SIZE, BASE + (a + len) * PM_PAGE_SIZE);
		memset(&naive->want[a], 0, len * sizeof(naive->want[0]));
		break;
	case 3:
		b = rnd(PAGES - len + 1);
		if (b < a + len && a < b + len)
			break;
		event = state_numbers(1);
		model_move(m, BASE + a * PM_PAGE_SIZE, BASE + b * PM_PAGE_SIZE,
			   len * PM_PAGE_SIZE, event);
		/* As a worker does that does not know how far the one before it came. */
		CHECK(!model_move(m, BASE + a * PM_PAGE_SIZE, BASE + b * PM_PAGE_SIZE,
				  len * PM_PAGE_SIZE, event));
		for (k = 0; k < len; k++) {
			naive->want[b + k] = old.want[a + k];
			naive->want[a + k] = 0;
		}
		break;
	}
}

/* Another worker takes the model over. */
static void revive(struct model *m)
{
	uint64_t left = model_left(m);
	const struct image *img = m->image;
	struct kept kept;

	CHECK(kept_open(&kept, dup(m->kept.fd)));
	model_free(m);
	model_take_over(m, img, &kept);
	CHECK(model_left(m) == left);
}

static void test_model(void)
{
	int round, i;

	for (round = 0; round < 300; round++) {
		static struct pm_run runs[PAGES];
		static uint64_t first[PAGES];
		struct naive naive, child_naive;
		struct model m, child;
		struct image img = { .runs = runs, .first = first };

		seed = round;
		img.n_runs = make_runs(runs, first, &naive, &img.pages);
		model_init(&m, &img);
		compare(&m, &naive);
		for (i = 0; i < 60; i++) {
			step(&m, &naive);
			compare(&m, &naive);
			if (i % 7 == 0)
				revive(&m);
			if (i != 30)
				continue;
			model_fork(&child, &m);
			child_naive = naive;
		}
		compare(&child, &child_naive);
		for (i = 0; i < 20; i++)
			step(&child, &child_naive);
		compare(&child, &child_naive);
		model_free(&m);
		model_free(&child);
	}
}

static void test_empty_model(void)
{
	struct image img = { 0 };
	struct extent ext;
	struct model m;

	model_init(&m, &img);
	CHECK(!model_left(&m));
	CHECK(!model_next(&m, 0, UINT64_MAX, 8, &ext));
	ext = model_at(&m, BASE, 8);
	CHECK(ext.zero && ext.npages == 8);
	CHECK(!model_cut(&m, 0, 1ull << 47));
	CHECK(!model_move(&m, BASE, 2 * BASE, 4096, 1));
	model_free(&m);
}

static void test_batch(void)
{
	struct batch batch = { .n = 0 };
	unsigned int i;

	CHECK(batch_add(&batch, 0x1000) && batch_add(&batch, 0x2000) && batch_add(&batch, 0x1000));
	CHECK(batch_waiting(&batch) == 2);
	batch.next++;
	/* Answered already: this is somebody who has come back. */
	CHECK(batch_add(&batch, 0x1000) && batch_waiting(&batch) == 2);
	for (i = 3; i < BATCH_MAX; i++)
		CHECK(batch_add(&batch, i * 0x10000));
	CHECK(!batch_add(&batch, 0x7000));
	CHECK(batch_add(&batch, 0x2000));
}

static void test_crc32(void)
{
	char buf[1000];
	size_t i;

	CHECK(crc32_update(0, "123456789", 9) == 0xcbf43926);
	CHECK(crc32_update(0, "", 0) == 0);
	for (i = 0; i < sizeof(buf); i++)
		buf[i] = (char)(i * 7);
	for (i = 0; i < sizeof(buf); i++)
		CHECK(crc32_update(crc32_update(0, buf, i), buf + i, sizeof(buf) - i) ==
		      crc32_update(0, buf, sizeof(buf)));
}

static void test_parsers(void)
{
	struct region region;
	uint64_t v, n[3];
	bool qualifies;
	struct vma vma;
	char *path;

	CHECK(parse_u64_all("0x1000", &v) && v == 4096);
	CHECK(parse_u64_all("4G", &v) && v == 4ull << 30);
	CHECK(!parse_u64_all("", &v) && !parse_u64_all("-1", &v) && !parse_u64_all("1x", &v));
	CHECK(!parse_u64_all("99999999999999999999", &v) && !parse_u64_all("99999999T", &v));

	CHECK(region_parse(&region, "4G:6G,0x200000000:0x200001000") && region.n == 2);
	CHECK(region.ranges[1].first == 0x200000 && region.ranges[1].end == 0x200001);
	free(region.ranges);
	CHECK(region_parse(&region, "none") && !region.n);
	CHECK(!region_parse(&region, "6G:4G"));
	free(region.ranges);
	CHECK(!region_parse(&region, "1:4096"));
	CHECK(!region_parse(&region, ""));

	CHECK(parse_path_numbers("/dev/dax0.0:0:0x100000000:2G", &path, n, 3));
	CHECK(!strcmp(path, "/dev/dax0.0") && n[0] == 0 && n[1] == 4ull << 30 && n[2] == 2ull << 30);
	free(path);
	CHECK(parse_path_numbers("a:b:1", &path, n, 1) && !strcmp(path, "a:b"));
	free(path);
	CHECK(!parse_path_numbers("a:b", &path, n, 1) && !parse_path_numbers(":1", &path, n, 1));

	CHECK(vma_parse_line("7f0000000000-7f0000001000 rw-p 00000000 00:00 0 ", &vma, &qualifies));
	CHECK(qualifies && vma.start == 0x7f0000000000 && vma.end == 0x7f0000001000);
	CHECK(vma_parse_line("55d0-55e0 rw-p 00000000 00:00 0      [heap]", &vma, &qualifies));
	CHECK(qualifies);
	CHECK(vma_parse_line("55d0-55e0 rw-p 00000000 00:00 0      [anon:x]", &vma, &qualifies));
	CHECK(qualifies);
	CHECK(vma_parse_line("55d0-55e0 r-xp 00000000 00:00 0      [vdso]", &vma, &qualifies));
	CHECK(!qualifies);
	CHECK(vma_parse_line("55d0-55e0 r--p 00000000 00:00 0      [vvar_vclock]", &vma,
			     &qualifies) && !qualifies);
	CHECK(vma_parse_line("55d0-55e0 rw-s 00000000 00:01 7 /dev/zero (deleted)", &vma,
			     &qualifies) && !qualifies);
	CHECK(vma_parse_line("55d0-55e0 rw-p 00001000 fe:00 99 /usr/lib/libc.so.6", &vma,
			     &qualifies) && !qualifies);
	CHECK(!vma_parse_line("Anonymous:             0 kB", &vma, &qualifies));
}

static void test_kcore_offset(void)
{
	Elf64_Phdr phdrs[] = {
		{ .p_type = PT_NOTE, .p_memsz = 1 << 20 },
		/* The kernel's image lies in RAM that has a header of its own. */
		{ .p_type = PT_LOAD, .p_offset = 0x700000, .p_paddr = 0x2000, .p_memsz = 0x3000,
		  .p_vaddr = 0xffffffff81000000 },
		/* The vmalloc area has no one physical address. */
		{ .p_type = PT_LOAD, .p_offset = 0x1000, .p_paddr = UINT64_MAX, .p_memsz = 1 << 20 },
		{ .p_type = PT_LOAD, .p_offset = 0x200000, .p_paddr = 0x1000, .p_memsz = 0x9e000 },
		{ .p_type = PT_LOAD, .p_offset = 0x900000, .p_paddr = 0x100000, .p_memsz = 0x1000 },
	};
	size_t n = sizeof(phdrs) / sizeof(phdrs[0]);

	CHECK(kcore_offset(phdrs, n, 0x1000, 0x1000) == 0x200000);
	CHECK(kcore_offset(phdrs, n, 0x2000, 0x1000) == 0x201000);
	CHECK(kcore_offset(phdrs, n, 0x9e000, 0x1000) == 0x29d000);
	CHECK(kcore_offset(phdrs, n, 0x100000, 0x1000) == 0x900000);
	CHECK(kcore_offset(phdrs, n, 0, 0x1000) == -1);
	CHECK(kcore_offset(phdrs, n, 0x9f000, 0x1000) == -1);
	CHECK(kcore_offset(phdrs, n, 0x100000, 0x2000) == -1);
}

int main(void)
{
	state_init(1, 1);
	test_parsers();
	test_batch();
	test_crc32();
	test_kcore_offset();
	test_empty_model();
	test_model();
	puts("selftest: ok");
	return 0;
}
