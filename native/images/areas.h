/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Areas of address space that are larger than what CRIU can fill again. */
#ifndef REKERNEL_AREAS_H
#define REKERNEL_AREAS_H

#include <sys/types.h>

/*
 * In the images in the directory: areas of the process become several, each of less than 8 TiB.
 * Ends the program if that cannot be.
 */
void split_areas(const char *directory, pid_t pid);

#endif
