// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * rekernel-hook: CRIU's action script.  CRIU runs it at many points; at two of
 * them, when a tree is dumped and just before it resumes, it asks whoever
 * listens on $REKERNEL_HOOK and holds CRIU until the answer comes:
 *
 *   -> "post-dump IMAGE_DIR INIT_PID\n"
 *   <- "go\n"       exit code 0; anything else, or nothing: 1
 *
 * It reports through errno messages on stderr, which CRIU logs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int fail(const char *what)
{
	fprintf(stderr, "rekernel-hook: %s: %s\n", what, strerror(errno));
	return 1;
}

static int ask(const char *path, const char *line, size_t len)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	char answer[16];
	size_t have = 0;
	int fd;

	if (strlen(path) >= sizeof(addr.sun_path)) {
		errno = ENAMETOOLONG;
		return fail(path);
	}
	strcpy(addr.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		return fail(path);
	while (len) {
		ssize_t n = send(fd, line, len, MSG_NOSIGNAL);

		if (n < 0 && errno != EINTR)
			return fail("send");
		if (n > 0) {
			line += n;
			len -= (size_t)n;
		}
	}
	while (have < sizeof(answer) && !memchr(answer, '\n', have)) {
		ssize_t n = read(fd, answer + have, sizeof(answer) - have);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return fail("read");
		if (!n)
			break;
		have += (size_t)n;
	}
	return have == 3 && !memcmp(answer, "go\n", 3) ? 0 : 1;
}

int main(void)
{
	const char *action = getenv("CRTOOLS_SCRIPT_ACTION");
	const char *images = getenv("CRTOOLS_IMAGE_DIR");
	const char *pid = getenv("CRTOOLS_INIT_PID");
	const char *path = getenv("REKERNEL_HOOK");
	char line[8192];
	int n;

	if (!action || (strcmp(action, "post-dump") && strcmp(action, "pre-resume")))
		return 0;
	if (!path) {
		fprintf(stderr, "rekernel-hook: REKERNEL_HOOK is not set\n");
		return 1;
	}
	n = snprintf(line, sizeof(line), "%s %s %s\n", action, images ? images : "-",
		     pid ? pid : "-");
	if (n >= (int)sizeof(line)) {
		errno = ENAMETOOLONG;
		return fail("image directory");
	}
	return ask(path, line, (size_t)n);
}
