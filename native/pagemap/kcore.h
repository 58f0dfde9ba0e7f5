/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Page frames by way of /proc/kcore: what no mapping gives access to. */
#ifndef REKERNEL_KCORE_H
#define REKERNEL_KCORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Where the bytes of a frame lie in /proc/kcore, or -1: from its program headers (n of them at
 * phdrs, Elf64_Phdr). Those of RAM say their physical address, others -1.
 */
int64_t kcore_offset(const void *phdrs, size_t n, uint64_t physical, uint64_t len);

/* Reads one frame. False, with errno set, if the kernel does not give it away. */
bool kcore_read_frame(uint64_t pfn, void *to);

#endif
