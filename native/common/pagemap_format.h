/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The page map: which physical page holds which virtual page.
 *
 * Written on the old kernel by rekernel-pagemap while every carried process is
 * frozen, read on the new kernel by rekernel-pager.  It is part of the handover
 * contract: little-endian, versioned, mirrored by tests/unit/native/pagemap.py.
 *
 *   offset 0            struct pm_header
 *   sizeof(pm_header)   struct pm_space[n_spaces]
 *   after that          struct pm_run[n_runs]
 *
 * The runs of a space are consecutive, sorted by virtual address and do not
 * overlap.  A run never crosses the border of the mapping it was found in, so
 * that one UFFDIO_COPY can serve it whole.
 */
#ifndef REKERNEL_PAGEMAP_FORMAT_H
#define REKERNEL_PAGEMAP_FORMAT_H

#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the page map is little-endian and is written without conversion"
#endif

#define PM_MAGIC	"RKPGMAP1"
#define PM_MAGIC_LEN	8
#define PM_VERSION	1u
#define PM_PAGE_SHIFT	12
#define PM_PAGE_SIZE	4096u

/* pm_header.flags: none is defined yet; a reader refuses what it does not know. */
#define PM_FLAGS_KNOWN	0ull

/* pm_space.kind: what a space's addresses mean. */
enum pm_kind {
	/* The private anonymous pages of one address space. */
	PM_KIND_ANON = 0,
	/*
	 * Reserved for shared memory objects (memfd, tmpfs file, SysV
	 * segment): vaddr will be the offset in the object.  A reader that does
	 * not know a kind leaves the space alone.
	 */
	PM_KIND_SHMEM = 1,
};

/* pm_run.flags */
#define PM_RUN_STRAY	1u	/* pfn is in the stray area, not where the page was */
#define PM_RUN_KNOWN	PM_RUN_STRAY

struct pm_header {
	char magic[PM_MAGIC_LEN];
	uint32_t version;
	uint32_t page_size;
	uint32_t n_spaces;
	uint32_t crc32;		/* IEEE, of the file from offset 24 to the last run */
	uint64_t n_runs;
	uint64_t flags;
};

/* Offset where the checksummed part begins: right behind pm_header.crc32. */
#define PM_CRC_START	24

struct pm_space {
	uint32_t pid;		/* in the initial PID namespace */
	uint32_t nspid;		/* in its own: what CRIU announces on the socket */
	uint32_t kind;		/* enum pm_kind */
	uint32_t tree;		/* caller's number of the process tree, 0 if unused */
	uint64_t first_run;
	uint64_t n_runs;
	uint64_t pages;
};

struct pm_run {
	uint64_t vaddr;
	uint64_t pfn;
	uint32_t npages;
	uint32_t flags;
};

_Static_assert(sizeof(struct pm_header) == 40, "pm_header is 40 bytes on disk");
_Static_assert(sizeof(struct pm_space) == 40, "pm_space is 40 bytes on disk");
_Static_assert(sizeof(struct pm_run) == 24, "pm_run is 24 bytes on disk");

#endif
