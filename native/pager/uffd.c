// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "uffd.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include "log.h"
#include "pagemap_format.h"
#include "util.h"

/* Linux 6.6; Debian 12's headers do not have it. */
struct poison_arg {
	struct uffdio_range range;
	uint64_t mode;
	int64_t updated;
};

#define POISON_IOCTL _IOWR(UFFDIO, 0x08, struct poison_arg)

static enum uffd_result sort(int err, const char *what, uint64_t vaddr)
{
	switch (err) {
	case EAGAIN:
		return UFFD_BUSY;
	case EEXIST:
		return UFFD_PRESENT;
	case ENOENT:
		return UFFD_ABSENT;
	case ESRCH:
		return UFFD_EXITED;
	case ENOMEM:
	case ENOSPC:
		return UFFD_FULL;
	case EFAULT:
		return UFFD_UNREADABLE;
	default:
		log_errno(err, "%s at %#llx", what, (unsigned long long)vaddr);
		return UFFD_ERROR;
	}
}

/*
 * A range that was filled in part is reported as EAGAIN with the length done.
 * That EAGAIN says nothing about why, so the rest has to be asked for again.
 */
enum uffd_result uffd_copy(int fd, uint64_t vaddr, const void *from, uint64_t npages,
			   uint64_t *done)
{
	*done = 0;
	while (*done < npages) {
		uint64_t off = *done << PM_PAGE_SHIFT;
		struct uffdio_copy arg = {
			.dst = vaddr + off,
			.src = (uintptr_t)from + off,
			.len = (npages - *done) << PM_PAGE_SHIFT,
		};

		if (!ioctl(fd, UFFDIO_COPY, &arg)) {
			*done = npages;
			break;
		}
		if (arg.copy <= 0)
			return sort(errno, "UFFDIO_COPY", arg.dst);
		*done += (uint64_t)arg.copy >> PM_PAGE_SHIFT;
	}
	return UFFD_OK;
}

enum uffd_result uffd_zero(int fd, uint64_t vaddr, uint64_t npages, uint64_t *done)
{
	*done = 0;
	while (*done < npages) {
		struct uffdio_zeropage arg = {
			.range.start = vaddr + (*done << PM_PAGE_SHIFT),
			.range.len = (npages - *done) << PM_PAGE_SHIFT,
		};

		if (!ioctl(fd, UFFDIO_ZEROPAGE, &arg)) {
			*done = npages;
			break;
		}
		if (arg.zeropage <= 0)
			return sort(errno, "UFFDIO_ZEROPAGE", arg.range.start);
		*done += (uint64_t)arg.zeropage >> PM_PAGE_SHIFT;
	}
	return UFFD_OK;
}

void uffd_wake(int fd, uint64_t vaddr)
{
	struct uffdio_range range = { .start = vaddr, .len = PM_PAGE_SIZE };

	ioctl(fd, UFFDIO_WAKE, &range);
}

void uffd_wake_all(int fd)
{
	/* How much a process has depends on the machine; the kernel takes no more. */
	static const unsigned int bits[] = { 56, 52, 48, 47, 42, 39, 32 };
	uint64_t start;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(bits); i++) {
		/* From the lowest address that the kernel lets anybody map. */
		for (start = PM_PAGE_SIZE; start <= 1 << 20; start *= 2) {
			uint64_t end = (1ull << bits[i]) - (bits[i] == 32 ? 2 : 1) * PM_PAGE_SIZE;
			struct uffdio_range range = { .start = start, .len = end - start };

			if (!ioctl(fd, UFFDIO_WAKE, &range))
				return;
		}
	}
	log_errno(errno, "UFFDIO_WAKE");
}

bool uffd_exited(int fd)
{
	/* Nothing can be copied from address 0. */
	struct uffdio_copy arg = { .dst = 1 << 20, .len = PM_PAGE_SIZE };

	return ioctl(fd, UFFDIO_COPY, &arg) < 0 && errno == ESRCH;
}

enum uffd_result uffd_poison(int fd, uint64_t vaddr)
{
	struct poison_arg arg = { .range = { .start = vaddr, .len = PM_PAGE_SIZE } };

	return ioctl(fd, POISON_IOCTL, &arg) ? sort(errno, "UFFDIO_POISON", vaddr) : UFFD_OK;
}
