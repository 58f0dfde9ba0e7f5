// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "record.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "crc32.h"
#include "kcore.h"
#include "parallel.h"
#include "util.h"

/*
 * One thread must not be left with a big process while the others have nothing
 * to do; terabytes of reserved address space must not make millions of slices.
 */
#define SLICE_BYTES	(256ull << 20)
#define SLICES_PER_VMA	256u
#define CHUNK_BYTES	(2ull << 20)

static void gone(const struct record *rec, pid_t pid)
{
	if (rec->scanner.frozen)
		die(EXIT_VANISHED, "process %d is gone", pid);
}

static void read_space(void *ctx, void *scratch, size_t i)
{
	struct record *rec = ctx;
	struct space *space = &rec->spaces[i];
	size_t k, cap = 0;

	(void)scratch;
	if (!vma_list_read(&space->vmas, space->pid, !rec->scanner.has_pagemap_scan))
		gone(rec, space->pid);
	for (k = 0; k < space->vmas.n; k++) {
		const struct vma *vma = &space->vmas.v[k];
		uint64_t step, start;

		step = max_u64(SLICE_BYTES, align_up((vma->end - vma->start) / SLICES_PER_VMA,
						     SLICE_BYTES));
		for (start = vma->start; start < vma->end; start += min_u64(step, vma->end - start)) {
			if (space->n_slices == cap) {
				cap = cap ? 2 * cap : 64;
				space->slices = xrealloc(space->slices, cap, sizeof(*space->slices));
			}
			space->slices[space->n_slices++] = (struct slice){
				.start = start,
				.end = start + min_u64(step, vma->end - start),
				.continues = start != vma->start,
			};
		}
	}
}

static void *buffer_new(void)
{
	struct scan_buffer *buf = xcalloc(1, sizeof(*buf));

	scan_buffer_init(buf);
	return buf;
}

static void buffer_free(void *scratch)
{
	scan_buffer_free(scratch);
	free(scratch);
}

static void scan_one(void *ctx, void *scratch, size_t i)
{
	struct record *rec = ctx;
	pid_t pid = rec->work[i].space->pid;

	if (!scan_slice(&rec->scanner, scratch, pid, rec->work[i].slice))
		gone(rec, pid);
}

static void sum_up(struct record *rec)
{
	size_t i, k;

	rec->n_runs = 0;
	rec->pages = 0;
	rec->stray_pages = 0;
	rec->swapped_pages = 0;
	for (i = 0; i < rec->n_spaces; i++) {
		struct space *space = &rec->spaces[i];

		space->n_runs = 0;
		space->pages = 0;
		space->stray_pages = 0;
		space->swapped_pages = 0;
		for (k = 0; k < space->n_slices; k++) {
			space->n_runs += space->slices[k].runs.n;
			space->pages += space->slices[k].pages;
			space->stray_pages += space->slices[k].stray_pages;
			space->swapped_pages += space->slices[k].swapped_pages;
		}
		rec->n_runs += space->n_runs;
		rec->pages += space->pages;
		rec->stray_pages += space->stray_pages;
		rec->swapped_pages += space->swapped_pages;
	}
}

void record_scan(struct record *rec)
{
	size_t i, k;

	parallel_run(&(struct parallel){ .fn = read_space, .ctx = rec, .n = rec->n_spaces });
	for (i = 0; i < rec->n_spaces; i++)
		rec->n_work += rec->spaces[i].n_slices;
	rec->work = xcalloc(rec->n_work, sizeof(*rec->work));
	rec->n_work = 0;
	for (i = 0; i < rec->n_spaces; i++)
		for (k = 0; k < rec->spaces[i].n_slices; k++)
			rec->work[rec->n_work++] = (struct work){
				&rec->spaces[i], &rec->spaces[i].slices[k],
			};
	parallel_run(&(struct parallel){
		.fn = scan_one, .ctx = rec, .n = rec->n_work,
		.scratch_new = buffer_new, .scratch_free = buffer_free,
	});
	sum_up(rec);
}

struct stray_copy {
	struct record *rec;
	char *data;
	uint64_t base_pfn;
};

/* Slow, but reads what its owner may not: a page without read permission. */
static bool copy_by_mem(pid_t pid, uint64_t vaddr, char *to, size_t len)
{
	char path[64];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	while (len) {
		n = pread(fd, to, len, (off_t)vaddr);
		if (n <= 0)
			break;
		to += n;
		vaddr += n;
		len -= n;
	}
	close(fd);
	return !len;
}

/*
 * Slower still. Since Linux 6.12 a kernel can be built so that /proc/PID/mem keeps to the
 * permissions of a mapping for all but a tracer (PROC_MEM_FORCE_PTRACE; Debian's 7.x is), and the
 * tracer is criu. Then a page without read permission is read by its frame.
 */
static bool copy_by_frame(pid_t pid, uint64_t vaddr, char *to, size_t len)
{
	char path[64];
	bool done = true;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	for (; done && len; to += PM_PAGE_SIZE, vaddr += PM_PAGE_SIZE, len -= PM_PAGE_SIZE) {
		uint64_t entry = 0;

		/* admin-guide/mm/pagemap.rst: present in bit 63, the frame in bits 0-54. */
		errno = EIO;
		done = pread(fd, &entry, sizeof(entry), (off_t)(vaddr / PM_PAGE_SIZE * 8)) ==
			       sizeof(entry) &&
		       entry >> 63 && kcore_read_frame(entry & ((1ull << 55) - 1), to);
	}
	close(fd);
	return done;
}

static void copy_slice(void *ctx, void *scratch, size_t i)
{
	struct stray_copy *copy = ctx;
	pid_t pid = copy->rec->work[i].space->pid;
	struct run_list *runs = &copy->rec->work[i].slice->runs;
	size_t k;

	(void)scratch;
	for (k = 0; k < runs->n; k++) {
		struct pm_run *run = &runs->v[k];
		size_t len = (size_t)run->npages * PM_PAGE_SIZE;
		struct iovec local, remote;

		if (!(run->flags & PM_RUN_STRAY))
			continue;
		local.iov_base = copy->data + (run->pfn - copy->base_pfn) * PM_PAGE_SIZE;
		local.iov_len = len;
		remote.iov_base = (void *)(uintptr_t)run->vaddr;
		remote.iov_len = len;
		if (process_vm_readv(pid, &local, 1, &remote, 1, 0) == (ssize_t)len)
			continue;
		if (!copy_by_mem(pid, run->vaddr, local.iov_base, len) &&
		    !copy_by_frame(pid, run->vaddr, local.iov_base, len)) {
			if (kill(pid, 0) && errno == ESRCH)
				die(EXIT_VANISHED, "process %d is gone", pid);
			die_errno("cannot read process %d at %#llx", pid,
				  (unsigned long long)run->vaddr);
		}
	}
}

void record_copy_strays(struct record *rec, struct output *stray, uint64_t base)
{
	struct stray_copy copy = {
		.rec = rec, .data = stray->data, .base_pfn = base >> PM_PAGE_SHIFT,
	};
	uint64_t next = copy.base_pfn;
	size_t i, k;

	/* In the stray area neighbours become neighbours, so runs grow together. */
	for (i = 0; i < rec->n_work; i++) {
		struct slice *slice = rec->work[i].slice;
		struct run_list moved = { 0 };

		if (!slice->stray_pages)
			continue;
		for (k = 0; k < slice->runs.n; k++) {
			struct pm_run run = slice->runs.v[k];

			if (run.flags & PM_RUN_STRAY) {
				run.pfn = next;
				next += run.npages;
			}
			run_list_add(&moved, run.vaddr, run.pfn, run.npages, run.flags);
		}
		free(slice->runs.v);
		slice->runs = moved;
	}
	parallel_run(&(struct parallel){ .fn = copy_slice, .ctx = &copy, .n = rec->n_work });
	sum_up(rec);
}

uint64_t record_map_bytes(const struct record *rec)
{
	return sizeof(struct pm_header) + rec->n_spaces * sizeof(struct pm_space) +
	       rec->n_runs * sizeof(struct pm_run);
}

void record_write_map(const struct record *rec, void *data)
{
	struct pm_header *header = data;
	struct pm_space *spaces = (struct pm_space *)(header + 1);
	struct pm_run *runs = (struct pm_run *)(spaces + rec->n_spaces);
	uint64_t n_runs = 0;
	size_t i, k;

	for (i = 0; i < rec->n_spaces; i++) {
		const struct space *space = &rec->spaces[i];

		spaces[i] = (struct pm_space){
			.pid = space->pid,
			.nspid = space->vmas.nspid,
			.kind = PM_KIND_ANON,
			.tree = space->tree,
			.first_run = n_runs,
			.n_runs = space->n_runs,
			.pages = space->pages + space->stray_pages,
		};
		for (k = 0; k < space->n_slices; k++) {
			const struct run_list *list = &space->slices[k].runs;

			if (list->n)
				memcpy(&runs[n_runs], list->v, list->n * sizeof(*runs));
			n_runs += list->n;
		}
	}
	*header = (struct pm_header){
		.magic = PM_MAGIC,
		.version = PM_VERSION,
		.page_size = PM_PAGE_SIZE,
		.n_spaces = rec->n_spaces,
		.n_runs = n_runs,
	};
	header->crc32 = crc32_update(0, (char *)data + PM_CRC_START,
				     record_map_bytes(rec) - PM_CRC_START);
}

struct chunk {
	uint64_t start;
	uint64_t pages;
	uint64_t strays;
};

static void print_chunk(const struct chunk *chunk, const char **sep, FILE *f)
{
	if (!chunk->strays || chunk->pages * PM_PAGE_SIZE * 10 < CHUNK_BYTES * 9)
		return;
	fprintf(f, "%s%llu", *sep, (unsigned long long)chunk->start);
	*sep = ",";
}

void record_print_stray_chunks(const struct space *space, FILE *f)
{
	struct chunk chunk = { 0 };
	const char *sep = "";
	size_t i, k;

	fputs(",\"stray_chunks\":[", f);
	for (k = 0; k < space->n_slices; k++) {
		for (i = 0; i < space->slices[k].runs.n; i++) {
			const struct pm_run *run = &space->slices[k].runs.v[i];
			uint64_t at = run->vaddr, next;
			uint64_t end = at + (uint64_t)run->npages * PM_PAGE_SIZE;

			for (; at < end; at = next) {
				if (align_down(at, CHUNK_BYTES) != chunk.start) {
					print_chunk(&chunk, &sep, f);
					chunk = (struct chunk){ align_down(at, CHUNK_BYTES), 0, 0 };
				}
				next = min_u64(end, chunk.start + CHUNK_BYTES);
				chunk.pages += (next - at) / PM_PAGE_SIZE;
				if (run->flags & PM_RUN_STRAY)
					chunk.strays += (next - at) / PM_PAGE_SIZE;
			}
		}
	}
	print_chunk(&chunk, &sep, f);
	fputc(']', f);
}

static void set_bits(uint64_t *map, uint64_t from, uint64_t to)
{
	while (from < to) {
		uint64_t n = min_u64(64 - from % 64, to - from);

		map[from / 64] |= (n == 64 ? ~0ull : (1ull << n) - 1) << from % 64;
		from += n;
	}
}

static uint64_t count_bits(const uint64_t *map, uint64_t from, uint64_t to)
{
	uint64_t total = 0;

	while (from < to) {
		uint64_t n = min_u64(64 - from % 64, to - from);
		uint64_t mask = (n == 64 ? ~0ull : (1ull << n) - 1) << from % 64;

		total += __builtin_popcountll(map[from / 64] & mask);
		from += n;
	}
	return total;
}

/* Pages shared after a fork are in several spaces, but take one frame. */
static void mark_frames(const struct record *rec, uint64_t **used)
{
	const struct region *region = rec->scanner.region;
	size_t i, k, r;

	for (i = 0; i < rec->n_work; i++) {
		const struct run_list *list = &rec->work[i].slice->runs;

		for (k = 0; k < list->n; k++) {
			const struct pm_run *run = &list->v[k];

			for (r = 0; !(run->flags & PM_RUN_STRAY) && r < region->n; r++) {
				const struct pfn_range *range = &region->ranges[r];
				uint64_t from = max_u64(run->pfn, range->first);
				uint64_t to = min_u64(run->pfn + run->npages, range->end);

				if (from < to)
					set_bits(used[r], from - range->first, to - range->first);
			}
		}
	}
}

void record_print_blocks(const struct record *rec, uint64_t block_bytes, FILE *f)
{
	const struct region *region = rec->scanner.region;
	uint64_t block = block_bytes >> PM_PAGE_SHIFT;
	uint64_t total = 0, pfn, used, start;
	uint64_t **maps = xcalloc(region->n, sizeof(*maps));
	const char *sep = "";
	size_t r;

	for (r = 0; r < region->n; r++)
		maps[r] = xcalloc((region->ranges[r].end - region->ranges[r].first) / 64 + 1,
				  sizeof(**maps));
	mark_frames(rec, maps);
	fprintf(f, ",\"block_bytes\":%llu,\"blocks\":[", (unsigned long long)block_bytes);
	for (r = 0; r < region->n; r++) {
		const struct pfn_range *range = &region->ranges[r];

		for (pfn = range->first; pfn < range->end;) {
			start = pfn - pfn % block;
			pfn = min_u64(range->end, start + block);
			used = count_bits(maps[r], max_u64(start, range->first) - range->first,
					  pfn - range->first);
			fprintf(f, "%s{\"start\":%llu,\"used_pages\":%llu}", sep,
				(unsigned long long)start << PM_PAGE_SHIFT,
				(unsigned long long)used);
			sep = ",";
			total += used;
		}
		free(maps[r]);
	}
	free(maps);
	fprintf(f, "],\"distinct_pages\":%llu", (unsigned long long)total);
}
