// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Plays the processes on both sides of the kexec for the tests.
 *
 *   uffd-client fill ADDR PAGES PATTERN
 *       The old one: maps memory at ADDR, fills the pages PATTERN chooses, says
 *       "ready" and waits for the end of its input.
 *   uffd-client carry ADDR PAGES PATTERN GO_FILE
 *       For the real CRIU: fills, has a child and a thread, and when GO_FILE
 *       appears all of them check everything; "ok" is the last word.
 *   uffd-client SCENARIO SOCKET PID ADDR PAGES PATTERN [SEED]
 *       The restored one: maps fresh memory there, hands its userfaultfd to the
 *       pager as CRIU does, and checks every byte it sees.
 *
 * PATTERN: all, even (every other page, the rest only read), sparse (a page in
 * 97), blocks (16 pages in 48), none.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ull
#define WORDS (PAGE / 8)

static uint64_t base, pages, seed;
static const char *pattern;

#define FAIL(...)						\
	do {							\
		fprintf(stderr, "uffd-client %d: ", getpid());	\
		fprintf(stderr, __VA_ARGS__);			\
		fputc('\n', stderr);				\
		_exit(1);					\
	} while (0)

static uint64_t mix(uint64_t x)
{
	x ^= x >> 31;
	x *= 0x7fb5d329728ea185ull;
	x ^= x >> 27;
	x *= 0x81dadef4bc2dd44dull;
	return x ^ x >> 33;
}

static uint64_t rnd(uint64_t *state, uint64_t below)
{
	*state += 0x9e3779b97f4a7c15ull;
	return mix(*state) % below;
}

/* What a page holds: 0 for zeros, else the identity of its contents. */
static uint64_t content(uint64_t page)
{
	if (!strcmp(pattern, "all") || (!strcmp(pattern, "even") && page % 2 == 0) ||
	    (!strcmp(pattern, "sparse") && page % 97 == 0) ||
	    (!strcmp(pattern, "blocks") && page % 48 < 16))
		return page + 1;
	return 0;
}

static void write_page(void *at, uint64_t id)
{
	uint64_t *p = at, w;

	for (w = 0; w < WORDS; w++)
		p[w] = id ? mix(id * WORDS + w) : 0;
}

static void check_page(const void *at, uint64_t id, const char *what)
{
	const volatile uint64_t *p = at;
	uint64_t w;

	for (w = 0; w < WORDS; w++)
		if (p[w] != (id ? mix(id * WORDS + w) : 0))
			FAIL("%s: page %#llx word %llu is %#llx, wanted contents %llu", what,
			     (unsigned long long)(uintptr_t)at, (unsigned long long)w,
			     (unsigned long long)p[w], (unsigned long long)id);
}

static char *page_at(uint64_t page)
{
	return (char *)(uintptr_t)(base + page * PAGE);
}

static void *map_at(uint64_t addr, uint64_t npages)
{
	void *p = mmap((void *)(uintptr_t)addr, npages * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (p != (void *)(uintptr_t)addr)
		FAIL("cannot map %#llx: %s", (unsigned long long)addr, strerror(errno));
	return p;
}

static void say(const char *line)
{
	puts(line);
	fflush(stdout);
}

static void await_line(void)
{
	char c;

	while (read(0, &c, 1) == 1 && c != '\n')
		;
}

static int do_fill(void)
{
	volatile char *p;
	uint64_t i;

	map_at(base, pages);
	for (i = 0; i < pages; i++) {
		if (content(i))
			write_page(page_at(i), content(i));
		else if (!strcmp(pattern, "even")) {
			p = page_at(i);
			(void)*p;
		}
	}
	say("ready");
	await_line();
	return 0;
}

static void check_all(const char *what);

static void await_file(const char *path)
{
	while (access(path, F_OK))
		usleep(5000);
}

static void *carried_thread(void *arg)
{
	await_file(arg);
	check_all("carried thread");
	return NULL;
}

static int do_carry(char *go)
{
	pthread_t thread;
	pid_t child, late;
	int status;
	uint64_t i;

	map_at(base, pages);
	for (i = 0; i < pages; i++)
		if (content(i))
			write_page(page_at(i), content(i));
	child = fork();
	if (!child) {
		/* Half its pages are its own, half are shared with the parent. */
		for (i = 0; i < pages / 2; i++)
			if (content(i))
				write_page(page_at(i), content(i));
		await_file(go);
		check_all("carried child");
		_exit(0);
	}
	pthread_create(&thread, NULL, carried_thread, go);
	say("ready");
	await_file(go);
	late = fork();
	if (!late) {
		check_all("late child");
		_exit(0);
	}
	check_all("carried");
	pthread_join(thread, NULL);
	for (i = 0; i < 2; i++)
		if (wait(&status) < 0 || status)
			FAIL("child ended with %#x", status);
	if (mremap(page_at(0), pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
		   page_at(2 * pages)) == MAP_FAILED)
		FAIL("mremap: %s", strerror(errno));
	for (i = 0; i < pages; i++)
		check_page(page_at(2 * pages + i), content(i), "moved after all");
	say("ok");
	return 0;
}

/* ---- the restored side ---- */

static int sock = -1;

static void send_all(const void *data, size_t len)
{
	if (send(sock, data, len, 0) != (ssize_t)len)
		FAIL("send: %s", strerror(errno));
}

static int open_uffd(void)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP |
			    UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP,
	};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0)
		FAIL("userfaultfd: %s", strerror(errno));
	return fd;
}

static void send_uffd(int fd)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	char dummy = 0;
	struct iovec iov = { .iov_base = &dummy, .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
	if (sendmsg(sock, &msg, 0) != 1)
		FAIL("sendmsg: %s", strerror(errno));
}

static void dial(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	strncpy(addr.sun_path, path, sizeof(addr.sun_path) - 1);
	sock = socket(AF_UNIX, SOCK_STREAM, 0);
	if (connect(sock, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		FAIL("connect %s: %s", path, strerror(errno));
}

static void restore(const char *path, int32_t pid, int finish)
{
	struct uffdio_register reg = {
		.range = { .start = base, .len = pages * PAGE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int32_t zombie = -4000000;
	uint32_t end = 0x52535446;
	int fd;

	dial(path);
	fd = open_uffd();
	send_all(&zombie, sizeof(zombie));
	send_all(&pid, sizeof(pid));
	send_uffd(fd);
	map_at(base, pages);
	/* CRIU has put the pages with the stack pointers there by itself. */
	if (content(pages - 1) && strcmp(pattern, "none"))
		write_page(page_at(pages - 1), content(pages - 1));
	if (ioctl(fd, UFFDIO_REGISTER, &reg) < 0)
		FAIL("UFFDIO_REGISTER: %s", strerror(errno));
	close(fd);
	if (finish)
		send_all(&end, sizeof(end));
}

static void check_all(const char *what)
{
	uint64_t i, state = seed;

	/* In no order first, then every page. */
	for (i = 0; i < pages; i++) {
		uint64_t p = rnd(&state, pages);

		check_page(page_at(p), content(p), what);
	}
	for (i = 0; i < pages; i++)
		check_page(page_at(i), content(i), what);
}

static int wait_child(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) < 0)
		FAIL("waitpid: %s", strerror(errno));
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		FAIL("child ended with %#x", status);
	return 0;
}

static int do_read(void)
{
	check_all("read");
	return 0;
}

static int do_sequential(void)
{
	uint64_t i;

	for (i = 0; i < pages; i++)
		check_page(page_at(i), content(i), "sequential");
	return 0;
}

static void *reader(void *arg)
{
	uint64_t i, state = seed + (uintptr_t)arg;

	for (i = 0; i < 2 * pages; i++) {
		uint64_t p = rnd(&state, pages);

		check_page(page_at(p), content(p), "threads");
	}
	return NULL;
}

static int do_threads(void)
{
	pthread_t t[8];
	size_t i;

	for (i = 0; i < 8; i++)
		pthread_create(&t[i], NULL, reader, (void *)i);
	for (i = 0; i < 8; i++)
		pthread_join(t[i], NULL);
	check_all("threads");
	return 0;
}

/* A child, its child, and the parent see the same and do not disturb each other. */
static int do_fork(void)
{
	uint64_t i;
	pid_t child;

	for (i = 0; i < pages; i += 3)
		check_page(page_at(i), content(i), "before fork");
	write_page(page_at(1), 1000001);
	child = fork();
	if (!child) {
		pid_t grandchild;

		check_page(page_at(1), 1000001, "child");
		write_page(page_at(1), content(1));
		if (madvise(page_at(2), PAGE, MADV_DONTNEED))
			FAIL("madvise: %s", strerror(errno));
		check_page(page_at(2), 0, "child dontneed");
		grandchild = fork();
		if (!grandchild) {
			check_page(page_at(2), 0, "grandchild");
			write_page(page_at(2), content(2));
			check_all("grandchild");
			_exit(0);
		}
		write_page(page_at(2), content(2));
		check_all("child");
		wait_child(grandchild);
		_exit(0);
	}
	check_page(page_at(2), content(2), "parent");
	write_page(page_at(1), content(1));
	check_all("parent");
	return wait_child(child);
}

/* Many short-lived children, as a shell has. */
static int do_forkexec(void)
{
	int i;

	for (i = 0; i < 200; i++) {
		pid_t child = fork();

		if (!child) {
			check_page(page_at(i % pages), content(i % pages), "short child");
			execl("/bin/true", "true", NULL);
			_exit(1);
		}
		wait_child(child);
	}
	say("ready");
	await_line();
	check_all("after children");
	return 0;
}

static int do_mremap(void)
{
	uint64_t half = pages / 2, i, to = base + 2 * pages * PAGE;
	void *p;

	check_page(page_at(3), content(3), "before mremap");
	p = mremap(page_at(half), (pages - half) * PAGE, (pages - half) * PAGE,
		   MREMAP_MAYMOVE | MREMAP_FIXED, (void *)(uintptr_t)to);
	if (p == MAP_FAILED)
		FAIL("mremap: %s", strerror(errno));
	for (i = half; i < pages; i++)
		check_page((char *)p + (i - half) * PAGE, content(i), "moved");
	for (i = 0; i < half; i++)
		check_page(page_at(i), content(i), "stayed");
	/* Growth shows zeros, not what the map has for those addresses. */
	if (mremap(page_at(0), half * PAGE, (half + 4) * PAGE, 0) == MAP_FAILED)
		FAIL("mremap: %s", strerror(errno));
	for (i = half; i < half + 4; i++)
		check_page(page_at(i), 0, "grown");
	/* And back. */
	p = mremap(p, (pages - half) * PAGE, (pages - half) * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
		   page_at(half + 4));
	if (p == MAP_FAILED)
		FAIL("mremap: %s", strerror(errno));
	for (i = half; i < pages; i++)
		check_page((char *)p + (i - half) * PAGE, content(i), "moved back");
	return 0;
}

static int do_dontneed(void)
{
	uint64_t i;

	check_page(page_at(8), content(8), "before");
	if (madvise(page_at(4), 8 * PAGE, MADV_DONTNEED))
		FAIL("madvise: %s", strerror(errno));
	if (madvise(page_at(20), 2 * PAGE, MADV_DONTNEED))
		FAIL("madvise: %s", strerror(errno));
	for (i = 0; i < pages; i++) {
		int gone = (i >= 4 && i < 12) || (i >= 20 && i < 22);

		check_page(page_at(i), gone ? 0 : content(i), "dontneed");
	}
	return 0;
}

static int do_munmap(void)
{
	uint64_t i, a = pages / 4, b = pages / 2;

	check_page(page_at(a), content(a), "before");
	if (munmap(page_at(a), (b - a) * PAGE))
		FAIL("munmap: %s", strerror(errno));
	map_at(base + a * PAGE, b - a);
	for (i = 0; i < pages; i++)
		check_page(page_at(i), i >= a && i < b ? 0 : content(i), "munmap");
	/* A neighbour that grows into the hole sees zeros as well. */
	munmap(page_at(a), (b - a) * PAGE);
	if (mremap(page_at(0), a * PAGE, b * PAGE, 0) == MAP_FAILED)
		FAIL("mremap: %s", strerror(errno));
	for (i = a; i < b; i++)
		check_page(page_at(i), 0, "grown into the hole");
	return 0;
}

/* The mapping in many pieces: windows and drain chunks meet borders everywhere. */
static int do_mprotect(void)
{
	uint64_t i;

	for (i = 0; i + 3 < pages; i += 7)
		if (mprotect(page_at(i), 3 * PAGE, PROT_READ))
			FAIL("mprotect: %s", strerror(errno));
	check_all("mprotect");
	return 0;
}

static uint64_t resident(void)
{
	unsigned char *vec = malloc(pages);
	uint64_t i, n = 0;

	if (mincore(page_at(0), pages * PAGE, vec))
		FAIL("mincore: %s", strerror(errno));
	for (i = 0; i < pages; i++)
		n += vec[i] & 1;
	free(vec);
	return n;
}

/* Touches nothing until told to: what is there then is the drain's work. */
static int do_hold(void)
{
	char line[64];

	say("ready");
	await_line();
	snprintf(line, sizeof(line), "resident %llu", (unsigned long long)resident());
	say(line);
	check_all("hold");
	return 0;
}

/* The same with a child. */
static int do_fork_hold(void)
{
	pid_t child = fork();

	if (!child) {
		await_line();
		check_all("child");
		_exit(0);
	}
	say("ready");
	await_line();
	check_all("parent");
	return wait_child(child);
}

/* Reads while the pager drains. */
static int do_busy(void)
{
	uint64_t i, state = seed;

	say("ready");
	for (i = 0; i < 4 * pages; i++) {
		uint64_t p = rnd(&state, pages);

		check_page(page_at(p), content(p), "busy");
	}
	say("done");
	await_line();
	check_all("busy");
	return 0;
}

/* Leaves with faults of other threads pending. */
static int do_exit(void)
{
	pthread_t t[4];
	size_t i;

	for (i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, reader, (void *)i);
	usleep(500);
	_exit(0);
}

static sigjmp_buf after_sigbus;

static void on_sigbus(int sig)
{
	(void)sig;
	siglongjmp(after_sigbus, 1);
}

/* Counts the pages that raise SIGBUS; the others must be right. */
static int do_sigbus(void)
{
	volatile uint64_t i, lost = 0;
	char line[64];

	say("ready");
	await_line();
	signal(SIGBUS, on_sigbus);
	for (i = 0; i < pages; i++) {
		if (sigsetjmp(after_sigbus, 1)) {
			lost++;
			continue;
		}
		check_page(page_at(i), content(i), "sigbus");
	}
	snprintf(line, sizeof(line), "lost %llu", (unsigned long long)lost);
	say(line);
	await_line();
	return 0;
}

static int do_bench(void)
{
	struct timespec a, b;
	uint64_t i, sum = 0;
	char line[128];

	say("ready");
	await_line();
	clock_gettime(CLOCK_MONOTONIC, &a);
	/* A stride that is odd visits every page once, in no helpful order. */
	for (i = 0; i < pages; i++)
		sum += *(volatile uint64_t *)page_at(i * 40503 % pages);
	clock_gettime(CLOCK_MONOTONIC, &b);
	snprintf(line, sizeof(line), "%.6f seconds %llu",
		 (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) / 1e9,
		 (unsigned long long)sum);
	say(line);
	await_line();
	return 0;
}

/* ---- stress: threads that move, drop and write, children that check ---- */

#define WORKERS 4

static uint64_t *want;		/* contents of every page of today */
static pthread_rwlock_t quiet = PTHREAD_RWLOCK_INITIALIZER;
static uint64_t rounds = 400;

static void stress_step(uint64_t first, uint64_t n, uint64_t *state)
{
	uint64_t len = 1 + rnd(state, 24), a = rnd(state, n - len), b, i;
	static uint64_t generation = 1ull << 40;

	a += first;
	switch (rnd(state, 7)) {
	case 0:
	case 1:
		for (i = a; i < a + len; i++)
			check_page(page_at(i), want[i], "stress read");
		break;
	case 2:
		for (i = a; i < a + len; i += 5) {
			want[i] = __atomic_add_fetch(&generation, 1, __ATOMIC_RELAXED);
			write_page(page_at(i), want[i]);
		}
		break;
	case 3:
		if (madvise(page_at(a), len * PAGE, MADV_DONTNEED))
			FAIL("madvise: %s", strerror(errno));
		memset(&want[a], 0, len * sizeof(*want));
		break;
	case 4:
		/* Other threads' mmap may not get the hole, so replace it in one go. */
		if (mmap(page_at(a), len * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
			FAIL("mmap: %s", strerror(errno));
		memset(&want[a], 0, len * sizeof(*want));
		break;
	default:
		b = first + rnd(state, n - len);
		if (b < a + len && a < b + len)
			break;
		if (mremap(page_at(a), len * PAGE, len * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
			   page_at(b)) == MAP_FAILED) {
			/* Across mappings; the target may be gone already. */
			if (mmap(page_at(b), len * PAGE, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
				FAIL("mmap: %s", strerror(errno));
			memset(&want[b], 0, len * sizeof(*want));
			/* A kernel that moves across mappings may have moved some. */
			if (mmap(page_at(a), len * PAGE, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
				FAIL("mmap: %s", strerror(errno));
			memset(&want[a], 0, len * sizeof(*want));
			break;
		}
		memcpy(&want[b], &want[a], len * sizeof(*want));
		memset(&want[a], 0, len * sizeof(*want));
		if (mmap(page_at(a), len * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
			FAIL("mmap: %s", strerror(errno));
		break;
	}
}

static void *stress_worker(void *arg)
{
	uint64_t i, k = (uintptr_t)arg, n = pages / WORKERS, state = seed * 77 + k;

	for (i = 0; i < rounds; i++) {
		pthread_rwlock_rdlock(&quiet);
		stress_step(k * n, n, &state);
		pthread_rwlock_unlock(&quiet);
	}
	return NULL;
}

static void check_want(const char *what)
{
	uint64_t i;

	for (i = 0; i < pages; i++)
		check_page(page_at(i), want[i], what);
}

static int do_stress(void)
{
	pthread_t t[WORKERS];
	pid_t child[4];
	uint64_t i;

	want = malloc(pages * sizeof(*want));
	for (i = 0; i < pages; i++)
		want[i] = content(i);
	say("ready");
	for (i = 0; i < WORKERS; i++)
		pthread_create(&t[i], NULL, stress_worker, (void *)(uintptr_t)i);
	for (i = 0; i < 4; i++) {
		usleep(1000 + 2000 * i);
		pthread_rwlock_wrlock(&quiet);
		child[i] = fork();
		if (!child[i]) {
			uint64_t k, state = seed + i;

			for (k = 0; k < 100; k++)
				stress_step(0, pages, &state);
			check_want("stress child");
			_exit(0);
		}
		pthread_rwlock_unlock(&quiet);
	}
	for (i = 0; i < WORKERS; i++)
		pthread_join(t[i], NULL);
	check_want("stress end");
	for (i = 0; i < 4; i++)
		wait_child(child[i]);
	return 0;
}

static const struct {
	const char *name;
	int (*run)(void);
	int unfinished;		/* the restore dies without a word */
} scenarios[] = {
	{ "read", do_read, 0 },
	{ "sequential", do_sequential, 0 },
	{ "threads", do_threads, 0 },
	{ "fork", do_fork, 0 },
	{ "forkexec", do_forkexec, 0 },
	{ "mremap", do_mremap, 0 },
	{ "dontneed", do_dontneed, 0 },
	{ "munmap", do_munmap, 0 },
	{ "mprotect", do_mprotect, 0 },
	{ "hold", do_hold, 0 },
	{ "hold-unfinished", do_hold, 1 },
	{ "fork-hold", do_fork_hold, 0 },
	{ "busy", do_busy, 0 },
	{ "exit", do_exit, 0 },
	{ "sigbus", do_sigbus, 0 },
	{ "stress", do_stress, 0 },
	{ "bench", do_bench, 0 },
};

int main(int argc, char **argv)
{
	size_t i;

	/* Some machines fill a fault's neighbours, too: the tests count single pages. */
	if (prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0))
		FAIL("PR_SET_THP_DISABLE: %s", strerror(errno));
	if (argc == 5 && !strcmp(argv[1], "fill")) {
		base = strtoull(argv[2], NULL, 0);
		pages = strtoull(argv[3], NULL, 0);
		pattern = argv[4];
		return do_fill();
	}
	if (argc == 6 && !strcmp(argv[1], "carry")) {
		base = strtoull(argv[2], NULL, 0);
		pages = strtoull(argv[3], NULL, 0);
		pattern = argv[4];
		return do_carry(argv[5]);
	}
	if (argc < 7)
		FAIL("usage");
	base = strtoull(argv[4], NULL, 0);
	pages = strtoull(argv[5], NULL, 0);
	pattern = argv[6];
	seed = argc > 7 ? strtoull(argv[7], NULL, 0) : 1;
	alarm(120);
	for (i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++) {
		if (strcmp(argv[1], scenarios[i].name))
			continue;
		restore(argv[2], atoi(argv[3]), !scenarios[i].unfinished);
		if (scenarios[i].unfinished)
			close(sock);
		return scenarios[i].run();
	}
	FAIL("no scenario %s", argv[1]);
}
