/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What CRIU has left out of the images of one process. */
#ifndef REKERNEL_COMPLETE_H
#define REKERNEL_COMPLETE_H

#include <sys/types.h>

/*
 * In the images in the directory, of a process that still stands where it was dumped: of the pages
 * that are said to be in the images of a dump before, those that the pager serves are marked as
 * lazy, and the others are written down. Ends the program if that cannot be.
 */
void complete(const char *directory, pid_t pid);

#endif
