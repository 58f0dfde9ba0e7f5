/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * CRIU's image files: a type, and a sequence of entries, each a length and a protobuf message
 * (https://criu.org/Images; images/ and criu/include/magic.h in CRIU's source).
 */
#ifndef REKERNEL_CRIU_IMAGE_H
#define REKERNEL_CRIU_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct criu_image {
	const char *path;	/* for messages */
	unsigned char *data;
	size_t len;
	size_t next;		/* where the entry after the last one read begins */
};

/* Reads a file of this type; ends the program if it is none. */
void image_read(struct criu_image *img, const char *path, uint32_t magic);
void image_free(struct criu_image *img);

/* The message of one entry. */
struct message {
	struct criu_image *img;
	size_t at;
	size_t end;
};

/* The next entry; false after the last one. Ends the program if it is cut off. */
bool image_next(struct criu_image *img, struct message *message);

struct field {
	uint32_t number;
	uint64_t value;		/* of a number, or the length of what else it is */
	size_t at;		/* where in the image its content is */
	size_t end;
};

/* The next field of a message; false after the last one. Ends the program if it is cut off. */
bool message_next(struct message *message, struct field *field);

/* An image that is being made. */
struct buffer {
	unsigned char *data;
	size_t len;
	size_t cap;
};

void buffer_append(struct buffer *buf, const void *data, size_t len);
/* Makes it all that the existing file contains; ends the program if that fails. */
void buffer_write(const struct buffer *buf, const char *path);

/* Each writes 20 bytes at most and returns how many: a number, or how long what follows is. */
size_t image_put_varint(unsigned char *to, uint64_t value);
size_t image_put_number(unsigned char *to, uint32_t number, uint64_t value);
size_t image_put_bytes(unsigned char *to, uint32_t number, uint64_t len);

#endif
