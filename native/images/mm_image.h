/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Numbers in CRIU's image of an address space: criu/include/magic.h, images/mm.proto, vma.proto. */
#ifndef REKERNEL_MM_IMAGE_H
#define REKERNEL_MM_IMAGE_H

#define MM_MAGIC	0x57492820u
enum { MM_VMAS = 14 };
enum { VMA_START = 1, VMA_END = 2, VMA_PGOFF = 3, VMA_FLAGS = 6, VMA_STATUS = 7 };

#endif
