// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A service whose memory has every kind of page, and that knows what each byte must be.
 *
 * Line protocol on TCP port 7100:
 *   next    the next number
 *   verify  compares every byte of every mapping, in all processes; then writes some pages anew
 *   churn   what a pager must follow: fork, move, discard and grow mappings
 * The last two answer "ok ..." or "bad ...". Content is a function of (seed, page, generation).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "content.h"

#define PORT 7100
#define CLIENTS 8
#define CHILDREN 3
#define DATA_FILE "/var/lib/pages/private.data"
#define SHM_FILE "/dev/shm/pages"
#define CHUNK 1000
#define CHUNKS 24000
#define RESERVED_SIZE (8UL << 40)

#ifndef MADV_HUGEPAGE
#define MADV_HUGEPAGE 14
#endif

enum {
	HEAP, HUGE, COW, LOCKED, SHARED, MEMFD, SHM, SPARSE, RESERVED, GUARDED, PRIVATE, MOVING,
	AREAS
};

static struct area areas[AREAS];
static char *chunks[CHUNKS];
static int memfd;
static int child_fd[CHILDREN];
static unsigned long counter, rounds, churns;

static struct area *describe(int which, const char *name, char *base, unsigned long size)
{
	struct area *a = &areas[which];

	if (base == MAP_FAILED)
		die(name);
	a->name = name;
	a->seed = which + 1;
	a->base = base;
	a->pages = size / PAGE;
	a->generation = malloc(a->pages);
	memset(a->generation, HOLE, a->pages);
	return a;
}

static void fill_all(struct area *a)
{
	unsigned long page;

	for (page = 0; page < a->pages; page++)
		fill(a, page, 0);
}

static char *anonymous(unsigned long size, int flags)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);
}

static char *of_file(int fd, unsigned long size, int flags)
{
	char *base;

	if (fd < 0 || ftruncate(fd, size))
		die("file");
	base = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
	return base;
}

static void make_huge(void)
{
	unsigned long size = 64 * MIB, huge = 2 * MIB;
	char *base = anonymous(size + huge, MAP_PRIVATE);

	base = (char *)(((unsigned long)base + huge - 1) & ~(huge - 1));
	/* A page that is shared is split when it is written: these belong to one process. */
	if (madvise(base, size, MADV_HUGEPAGE) || madvise(base, size, MADV_DONTFORK))
		die("madvise");
	fill_all(describe(HUGE, "huge pages", base, size));
}

/* Data, a guard page that never had any, data again, and data behind PROT_NONE. */
static void make_guarded(void)
{
	unsigned long size = 64 * PAGE;
	struct area *a = describe(GUARDED, "guarded", anonymous(size, MAP_PRIVATE), size);

	fill_all(a);
	a->hidden = 1;
	madvise(a->base + 31 * PAGE, PAGE, MADV_DONTNEED);
	a->generation[31] = HOLE;
	if (mprotect(a->base, size, PROT_NONE))
		die("mprotect");
}

/* Every third page of a file's private mapping is changed; the others come from the file. */
static void make_private(void)
{
	unsigned long size = 4 * MIB, page;
	int fd = open(DATA_FILE, O_RDWR | O_CREAT | O_TRUNC, 0600);
	struct area *a = describe(PRIVATE, "private file", of_file(fd, size, MAP_SHARED), size);

	fill_all(a);
	if (msync(a->base, size, MS_SYNC) || munmap(a->base, size))
		die("msync");
	a->base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	if (a->base == MAP_FAILED)
		die("private file");
	for (page = 0; page < a->pages; page += 3)
		fill(a, page, 1);
	close(fd);
}

static void make_sparse(void)
{
	unsigned long size = 1024 * MIB, page, step;
	struct area *a;
	volatile char sink;

	a = describe(SPARSE, "sparse", anonymous(size, MAP_PRIVATE | MAP_NORESERVE), size);
	madvise(a->base, size, 15 /* MADV_NOHUGEPAGE */);
	for (page = 3, step = 1; page < a->pages; step = step * 5 % 251, page += 1 + step)
		fill(a, page, 0);
	/* The zero page is mapped where something was only read. */
	for (page = 0; page < a->pages; page += 1024)
		sink = a->base[page * PAGE];
	(void)sink;
}

/* Far more address space than there is memory, as databases reserve it to grow into. */
static void make_reserved(void)
{
	unsigned long size = 4 * MIB;
	char *base = anonymous(RESERVED_SIZE, MAP_PRIVATE | MAP_NORESERVE);

	/* What cannot be written is not counted, and may never be. */
	if (base == MAP_FAILED ||
	    mmap(NULL, RESERVED_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
		die("reserved");
	/* At its start, from where more pages follow than an int can count. */
	fill_all(describe(RESERVED, "reserved", base, size));
}

static void make_chunks(void)
{
	unsigned long number;

	for (number = 0; number < CHUNKS; number++) {
		chunks[number] = malloc(CHUNK);
		memset(chunks[number], number * 7 % 251, CHUNK);
	}
}

static int check_chunks(void)
{
	static char expected[CHUNK];
	unsigned long number;

	for (number = 0; number < CHUNKS; number++) {
		memset(expected, number * 7 % 251, CHUNK);
		if (memcmp(chunks[number], expected, CHUNK))
			return bad("chunk %lu on the heap has changed", number);
	}
	return 0;
}

static int check_area(struct area *a)
{
	unsigned long page;

	if (a->hidden) {
		int pipe_fd[2], refused;

		if (pipe(pipe_fd))
			return bad("pipe: %s", strerror(errno));
		refused = write(pipe_fd[1], a->base, 1) < 0 && errno == EFAULT;
		close(pipe_fd[0]);
		close(pipe_fd[1]);
		if (!refused)
			return bad("%s: can be read", a->name);
		if (mprotect(a->base, a->pages * PAGE, PROT_READ))
			return bad("%s: mprotect: %s", a->name, strerror(errno));
	}
	for (page = 0; page < a->pages; page++) {
		/* Reading all of 1 GB of holes would map it: every 61st will do. */
		if (a == &areas[SPARSE] && a->generation[page] == HOLE && page % 61)
			continue;
		if (check(a, page))
			return -1;
	}
	if (a->hidden && mprotect(a->base, a->pages * PAGE, PROT_NONE))
		return bad("%s: mprotect: %s", a->name, strerror(errno));
	return 0;
}

static int check_memfd(void)
{
	static char content[PAGE];
	struct area *a = &areas[MEMFD];
	unsigned long page;

	for (page = 0; page < a->pages; page++) {
		if (pread(memfd, content, PAGE, page * PAGE) != (ssize_t)PAGE)
			return bad("memfd: short read");
		if (memcmp(content, a->base + page * PAGE, PAGE))
			return bad("memfd: page %lu differs from its mapping", page);
	}
	return 0;
}

static int check_locked(void)
{
	char line[256];
	FILE *file = fopen("/proc/self/status", "r");
	long locked = -1;

	while (file && fgets(line, sizeof(line), file))
		sscanf(line, "VmLck: %ld kB", &locked);
	if (file)
		fclose(file);
	if (locked < (long)(areas[LOCKED].pages * PAGE / 1024))
		return bad("locked: only %ld kB are", locked);
	return 0;
}

static int check_everything(void)
{
	int which;

	for (which = 0; which < AREAS; which++)
		if (check_area(&areas[which]))
			return -1;
	return check_chunks() || check_memfd();
}

static void mark(struct area *a, unsigned long page, unsigned generation)
{
	a->generation[page] = generation;
}

/* Pages of shared mappings that are written in this round: all processes know which. */
static void for_shared(void (*write_page)(struct area *, unsigned long, unsigned))
{
	unsigned long page;
	int which;

	for (which = 0; which < AREAS; which++)
		for (page = rounds % 7; areas[which].shared && page < areas[which].pages; page += 7)
			write_page(&areas[which], page, 100 + rounds % 100);
}

/* A child shares its pages with everyone, but for those that it has written itself. */
static void child(int number, int fd)
{
	struct area *cow = &areas[COW];
	unsigned long page;
	char word;

	areas[HUGE].pages = 0;
	for (page = number; page < cow->pages; page += 5 + number)
		fill(cow, page, 10 + number);
	if (write(fd, "+", 1) != 1)
		_exit(1);
	while (read(fd, &word, 1) == 1) {
		problem[0] = 0;
		if (word == 'w') {
			rounds++;
			for_shared(mark);
			continue;
		}
		if (check_everything())
			dprintf(fd, "child %d: %s\n", number, problem);
		else
			dprintf(fd, "ok\n");
	}
	_exit(0);
}

static void fork_children(void)
{
	struct area *cow = &areas[COW];
	unsigned long page;
	int number, other, pair[2];
	char word;

	for (number = 0; number < CHILDREN; number++) {
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
			die("socketpair");
		switch (fork()) {
		case -1:
			die("fork");
			break;
		case 0:
			close(pair[0]);
			for (other = 0; other < number; other++)
				close(child_fd[other]);
			child(number, pair[1]);
		}
		close(pair[1]);
		child_fd[number] = pair[0];
		if (read(pair[0], &word, 1) != 1)
			die("child");
	}
	for (page = 4; page < cow->pages; page += 11)
		fill(cow, page, 20);
}

static int ask_children(void)
{
	char answer[256];
	int number;
	ssize_t length;

	for (number = 0; number < CHILDREN; number++)
		if (write(child_fd[number], "?", 1) != 1)
			return bad("child %d is gone", number);
	for (number = 0; number < CHILDREN; number++) {
		length = read(child_fd[number], answer, sizeof(answer) - 1);
		if (length <= 0)
			return bad("child %d does not answer", number);
		answer[length] = 0;
		if (strcmp(answer, "ok\n"))
			bad("%.*s", (int)strcspn(answer, "\n"), answer);
	}
	return problem[0] ? -1 : 0;
}

static void write_anew(void)
{
	unsigned long page, generation = 30 + rounds % 200;
	int which;

	for (which = 0; which < AREAS; which++) {
		struct area *a = &areas[which];

		if (a->shared || a->hidden)
			continue;
		for (page = rounds % 13; page < a->pages; page += 13)
			if (a->generation[page] != HOLE)
				fill(a, page, generation);
	}
	for_shared(fill);
	for (which = 0; which < CHILDREN; which++)
		if (write(child_fd[which], "w", 1) != 1)
			bad("child %d is gone", which);
}

static void verify(int fd)
{
	problem[0] = 0;
	if (check_everything() || check_locked() || ask_children()) {
		dprintf(fd, "bad %s\n", problem);
		return;
	}
	rounds++;
	write_anew();
	dprintf(fd, "ok round %lu\n", rounds);
}

/* A grandchild sees what we see, and what it writes nobody else does. */
static int churn_fork(void)
{
	struct area *a = &areas[HEAP];
	unsigned long page, first = churns * 97 % a->pages;
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		for (page = first; page < a->pages; page += 509) {
			if (check(a, page))
				_exit(1);
			fill(a, page, 250);
			if (check(a, page))
				_exit(2);
		}
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		return bad("fork: the grandchild ended with %#x", status);
	for (page = first; page < a->pages; page += 509)
		if (check(a, page))
			return -1;
	return 0;
}

/* The area moves to another address, loses some pages, and they are zero from then on. */
static int churn_move(void)
{
	struct area *a = &areas[MOVING];
	unsigned long page = churns * 16 % (a->pages - 32), size = a->pages * PAGE, i;
	char *target = anonymous(size, MAP_PRIVATE);
	char *moved = mremap(a->base, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, target);

	if (moved == MAP_FAILED)
		return bad("mremap: %s", strerror(errno));
	a->base = moved;
	if (madvise(a->base + page * PAGE, 16 * PAGE, MADV_DONTNEED))
		return bad("madvise: %s", strerror(errno));
	memset(a->generation + page, HOLE, 16);
	for (i = page; i < page + 32; i++)
		if (check(a, i))
			return -1;
	for (i = page; i < page + 8; i++)
		fill(a, i, 40);
	return 0;
}

/*
 * Unmapped and mapped again: nothing of the old content may come back. Not in an area that is
 * moved: mremap takes one mapping, and while pages are on their way a new one stays apart.
 */
static int churn_unmap(void)
{
	struct area *a = &areas[COW];
	unsigned long page = churns * 31 % a->pages;

	if (munmap(a->base + page * PAGE, PAGE) ||
	    mmap(a->base + page * PAGE, PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		return bad("munmap: %s", strerror(errno));
	a->generation[page] = HOLE;
	return check(a, page);
}

static void churn(int fd)
{
	problem[0] = 0;
	churns++;
	if (churn_fork() || churn_move() || churn_unmap())
		dprintf(fd, "bad %s\n", problem);
	else
		dprintf(fd, "ok churn %lu\n", churns);
}

static void set_up(void)
{
	struct area *a;

	fill_all(describe(HEAP, "heap", anonymous(168 * MIB, MAP_PRIVATE), 168 * MIB));
	make_huge();
	fill_all(describe(COW, "copy on write", anonymous(16 * MIB, MAP_PRIVATE), 16 * MIB));
	a = describe(LOCKED, "locked", anonymous(4 * MIB, MAP_PRIVATE), 4 * MIB);
	if (mlock(a->base, 4 * MIB))
		die("mlock");
	fill_all(a);
	a = describe(SHARED, "shared", anonymous(8 * MIB, MAP_SHARED), 8 * MIB);
	fill_all(a);
	a->shared = 1;
	memfd = memfd_create("pages", 0);
	a = describe(MEMFD, "memfd", of_file(memfd, 4 * MIB, MAP_SHARED), 4 * MIB);
	fill_all(a);
	a->shared = 1;
	a = describe(SHM, "tmpfs file",
		     of_file(open(SHM_FILE, O_RDWR | O_CREAT | O_TRUNC, 0600), 2 * MIB, MAP_SHARED),
		     2 * MIB);
	fill_all(a);
	a->shared = 1;
	make_sparse();
	make_reserved();
	make_guarded();
	make_private();
	fill_all(describe(MOVING, "moving", anonymous(4 * MIB, MAP_PRIVATE), 4 * MIB));
	make_chunks();
	fork_children();
}

/* Returns 0 when the client has gone. */
static int serve(int fd)
{
	char line[64];
	ssize_t length = read(fd, line, sizeof(line) - 1);

	if (length <= 0)
		return 0;
	/* A client waits for the answer before it sends more: one read, one line. */
	line[length] = 0;
	if (!strcmp(line, "next\n"))
		dprintf(fd, "%lu\n", ++counter);
	else if (!strcmp(line, "verify\n"))
		verify(fd);
	else if (!strcmp(line, "churn\n"))
		churn(fd);
	else
		dprintf(fd, "bad request\n");
	return 1;
}

int main(void)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_port = htons(PORT),
	};
	struct pollfd polled[CLIENTS + 1];
	int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1, count = 1, i;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 8))
		die("listen");
	set_up();
	printf("ready\n");
	fflush(stdout);
	polled[0].fd = listener;
	for (;;) {
		for (i = 0; i < count; i++)
			polled[i].events = count <= CLIENTS || i ? POLLIN : 0;
		if (poll(polled, count, -1) < 0 && errno != EINTR)
			die("poll");
		for (i = count - 1; i > 0; i--) {
			if (!polled[i].revents || serve(polled[i].fd))
				continue;
			close(polled[i].fd);
			polled[i] = polled[--count];
		}
		if (polled[0].revents) {
			polled[count].fd = accept(listener, NULL, NULL);
			if (polled[count].fd >= 0)
				count++;
		}
	}
}
