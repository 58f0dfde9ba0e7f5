/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The old kernel's physical memory, as far as devices show it.
 *
 * Reading it may fail where the memory itself does (hardware poison), and then
 * the reader gets SIGBUS.  So nobody here reads it but the kernel, which reports
 * EFAULT from UFFDIO_COPY, and frames_read(), which survives the signal.
 */
#ifndef REKERNEL_FRAMES_H
#define REKERNEL_FRAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* "PATH:OFFSET:PHYS_START:LEN"; false if malformed.  Call before frames_map(). */
bool frames_add(const char *spec);
/* Opens all of them, for workers to come; their paths may mean something else then. */
void frames_open(void);
/* Maps all of them; ends the program if one cannot be mapped. */
void frames_map(void);
void frames_unmap(void);

/* Is every one of these frames shown by some device? */
bool frames_cover(uint64_t pfn, uint64_t npages);

/*
 * Address of a frame that is covered; *npages is lowered to the number of
 * frames that follow it in the same mapping.
 */
const void *frames_address(uint64_t pfn, uint64_t *npages);

/* Copies one page out; false if the memory cannot be read. */
bool frames_read(void *to, const void *from);
/* Installs the SIGBUS handler frames_read() needs. */
void frames_catch_sigbus(void);

#endif
