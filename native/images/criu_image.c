// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "criu_image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util.h"

#define COMMON_MAGIC 0x54564319u

enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

static uint32_t u32_at(const struct criu_image *img, size_t at)
{
	uint32_t v;

	memcpy(&v, img->data + at, sizeof(v));
	return v;
}

void image_read(struct criu_image *img, const char *path, uint32_t magic)
{
	struct stat st;
	size_t done = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	memset(img, 0, sizeof(*img));
	img->path = path;
	if (fd < 0 || fstat(fd, &st) < 0)
		die_errno("cannot read %s", path);
	img->len = st.st_size;
	img->data = xcalloc(img->len + 1, 1);
	while (done < img->len) {
		ssize_t n = read(fd, img->data + done, img->len - done);

		if (n < 0)
			die_errno("cannot read %s", path);
		if (!n)
			break;
		done += n;
	}
	close(fd);
	if (done != img->len || img->len < 8 || u32_at(img, 0) != COMMON_MAGIC ||
	    u32_at(img, 4) != magic)
		die(EXIT_FAILED, "%s is not the image that it should be", path);
	img->next = 8;
}

void image_free(struct criu_image *img)
{
	free(img->data);
	memset(img, 0, sizeof(*img));
}

static noreturn void cut_off(const struct criu_image *img)
{
	die(EXIT_FAILED, "%s is cut off", img->path);
}

bool image_next(struct criu_image *img, struct message *message)
{
	uint32_t len;

	if (img->next == img->len)
		return false;
	if (img->len - img->next < sizeof(len))
		cut_off(img);
	len = u32_at(img, img->next);
	img->next += sizeof(len);
	if (img->len - img->next < len)
		cut_off(img);
	*message = (struct message){ img, img->next, img->next + len };
	img->next += len;
	return true;
}

static uint64_t varint(struct message *message)
{
	uint64_t value = 0;
	unsigned int shift;

	for (shift = 0; shift < 64; shift += 7) {
		unsigned char byte;

		if (message->at == message->end)
			break;
		byte = message->img->data[message->at++];
		value |= (uint64_t)(byte & 0x7f) << shift;
		if (byte < 0x80)
			return value;
	}
	cut_off(message->img);
}

bool message_next(struct message *message, struct field *field)
{
	uint64_t key, len;

	if (message->at == message->end)
		return false;
	key = varint(message);
	field->number = key >> 3;
	field->value = 0;
	switch (key & 7) {
	case VARINT:
		field->at = message->at;
		field->value = varint(message);
		field->end = message->at;
		return true;
	case BYTES:
		field->value = len = varint(message);
		break;
	case FIXED64:
		len = 8;
		break;
	case FIXED32:
		len = 4;
		break;
	default:
		cut_off(message->img);
	}
	if (len > message->end - message->at)
		cut_off(message->img);
	field->at = message->at;
	message->at += len;
	field->end = message->at;
	return true;
}

void buffer_append(struct buffer *buf, const void *data, size_t len)
{
	if (buf->cap - buf->len < len) {
		buf->cap = 2 * buf->cap + len + 4096;
		buf->data = xrealloc(buf->data, buf->cap, 1);
	}
	memcpy(buf->data + buf->len, data, len);
	buf->len += len;
}

void buffer_write(const struct buffer *buf, const char *path)
{
	int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);

	if (fd < 0 || write(fd, buf->data, buf->len) != (ssize_t)buf->len)
		die_errno("cannot write %s", path);
	close(fd);
}

size_t image_put_varint(unsigned char *to, uint64_t value)
{
	size_t n = 0;

	for (; value >= 0x80; value >>= 7)
		to[n++] = value | 0x80;
	to[n++] = value;
	return n;
}

size_t image_put_number(unsigned char *to, uint32_t number, uint64_t value)
{
	size_t n = image_put_varint(to, number << 3 | VARINT);

	return n + image_put_varint(to + n, value);
}

size_t image_put_bytes(unsigned char *to, uint32_t number, uint64_t len)
{
	size_t n = image_put_varint(to, number << 3 | BYTES);

	return n + image_put_varint(to + n, len);
}
