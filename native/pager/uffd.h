/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The userfaultfd ioctls, with their many ways to fail sorted into few. */
#ifndef REKERNEL_UFFD_H
#define REKERNEL_UFFD_H

#include <stdbool.h>
#include <stdint.h>

enum uffd_result {
	UFFD_OK,
	UFFD_BUSY,	/* the process is changing its mappings: read its events first */
	UFFD_PRESENT,	/* there is a page already */
	UFFD_ABSENT,	/* no registered mapping there, or the range leaves it */
	UFFD_EXITED,	/* there is no process any more */
	UFFD_FULL,	/* no memory, in the machine or in the cgroup of the process */
	UFFD_UNREADABLE,	/* the source cannot be read */
	UFFD_ERROR,	/* anything else, logged */
};

/*
 * Both return what stopped them, and in *done how many pages were put in place
 * before that.  They wake the threads that wait for those pages.
 */
enum uffd_result uffd_copy(int fd, uint64_t vaddr, const void *from, uint64_t npages,
			   uint64_t *done);
enum uffd_result uffd_zero(int fd, uint64_t vaddr, uint64_t npages, uint64_t *done);

/* Makes the thread that waits for this page try again. */
void uffd_wake(int fd, uint64_t vaddr);
/* The same for all threads that wait for any page. */
void uffd_wake_all(int fd);
/* Is there no process behind it any more? */
bool uffd_exited(int fd);
/* From now on whoever touches the page gets SIGBUS; UFFD_ERROR before Linux 6.6. */
enum uffd_result uffd_poison(int fd, uint64_t vaddr);

#endif
