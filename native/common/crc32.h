/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef REKERNEL_CRC32_H
#define REKERNEL_CRC32_H

#include <stddef.h>
#include <stdint.h>

/*
 * CRC-32 as zlib and Python's zlib.crc32 compute it (IEEE 802.3, reflected).
 * Start with crc = 0 and feed the result back for more data.
 */
uint32_t crc32_update(uint32_t crc, const void *data, size_t len);

#endif
