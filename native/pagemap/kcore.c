// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "kcore.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pagemap_format.h"
#include "util.h"

/* Documentation/arch/x86/x86_64/mm.rst: the image's own mapping; all RAM is in another, too. */
#define KERNEL_IMAGE 0xffffffff80000000ull

int64_t kcore_offset(const void *phdrs, size_t n, uint64_t physical, uint64_t len)
{
	const Elf64_Phdr *p = phdrs;
	size_t i;

	for (i = 0; i < n; i++) {
		if (p[i].p_type != PT_LOAD || p[i].p_paddr == UINT64_MAX)
			continue;
		/* The kernel's image, parts of which are freed, and unmapped there. */
		if (p[i].p_vaddr >= KERNEL_IMAGE)
			continue;
		if (physical < p[i].p_paddr || physical - p[i].p_paddr >= p[i].p_memsz)
			continue;
		if (p[i].p_memsz - (physical - p[i].p_paddr) >= len)
			return (int64_t)(p[i].p_offset + (physical - p[i].p_paddr));
	}
	return -1;
}

/* Rare enough to be opened for every frame: memory that comes or goes changes the headers. */
bool kcore_read_frame(uint64_t pfn, void *to)
{
	int fd = open("/proc/kcore", O_RDONLY | O_CLOEXEC);
	Elf64_Ehdr head;
	void *phdrs = NULL;
	int64_t offset = -1;
	size_t size;
	bool done;

	if (fd < 0)
		return false;
	if (pread(fd, &head, sizeof(head), 0) == sizeof(head) &&
	    !memcmp(head.e_ident, ELFMAG, SELFMAG) && head.e_phentsize == sizeof(Elf64_Phdr)) {
		size = head.e_phnum * sizeof(Elf64_Phdr);
		phdrs = xcalloc(head.e_phnum, sizeof(Elf64_Phdr));
		if (pread(fd, phdrs, size, (off_t)head.e_phoff) == (ssize_t)size)
			offset = kcore_offset(phdrs, head.e_phnum, pfn * PM_PAGE_SIZE, PM_PAGE_SIZE);
	}
	free(phdrs);
	errno = ENXIO;
	done = offset >= 0 && pread(fd, to, PM_PAGE_SIZE, (off_t)offset) == PM_PAGE_SIZE;
	close(fd);
	return done;
}
