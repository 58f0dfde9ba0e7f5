// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "guard.h"

#include <errno.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hold.h"
#include "log.h"
#include "state.h"
#include "util.h"

/* So many workers in a row may die before they serve, the later ones after a pause. */
#define STILLBORN_MAX	16
#define STILLBORN_QUICK	4
#define PAUSE_US	10000
#define PAUSE_MAX_US	1000000

static int (*run_worker)(void);
static void (*run_last_words)(void);

/* Whatever process it is of; the kernel has another error for one that has ended. */
static bool is_pidfd(int fd)
{
	return fd >= 0 && (!syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0) || errno != EBADF);
}

/*
 * The kernel writes a number down before it looks for a signal: if that kills who
 * clones, the number is nobody's, and soon somebody else's.
 */
static void forget_stale(void)
{
	int i;

	for (i = 0; i < N_ROLES; i++)
		if (!is_pidfd(state->pidfd[i]))
			state->pidfd[i] = -1;
}

static bool is_of_another(int fd, enum role role)
{
	int i;

	for (i = 0; i < N_ROLES; i++)
		if (i != (int)role && state->pidfd[i] == fd)
			return true;
	return false;
}

static long send_signal(enum role role, int sig)
{
	return syscall(SYS_pidfd_send_signal, state->pidfd[role], sig, NULL, 0);
}

/* The number in the state may be one that a clone that failed had in mind. */
static bool alive(enum role role)
{
	struct pollfd pfd = { .fd = state->pidfd[role], .events = POLLIN };

	if (pfd.fd < 0 || send_signal(role, 0) < 0)
		return false;
	return poll(&pfd, 1, 0) == 0;
}

/*
 * The kernel writes the descriptor down before the child runs, where everybody
 * sees it: no worker is ever at work that nobody knows of.
 */
static void spawn(enum role role, void (*run)(void))
{
	int old = state->pidfd[role];
	long pid;

	state->pidfd[role] = -1;
	in_order();
	if (is_pidfd(old) && !is_of_another(old, role))
		close(old);
	pid = syscall(SYS_clone, CLONE_FILES | CLONE_PIDFD | SIGCHLD, 0, &state->pidfd[role], 0, 0);
	if (pid < 0) {
		state->pidfd[role] = -1;
		log_errno(errno, "cannot start a process");
	}
	if (pid) {
		state->pid[role] = (int)pid;
		return;
	}
	state->pid[role] = getpid();
	run();
	_exit(EXIT_FAILED);
}

static void reap(enum role role, int *status)
{
	*status = 0;
	/* Not ours if its parent has died. */
	if (state->pid[role] > 0)
		waitpid(state->pid[role], status, WNOHANG);
}

static noreturn void leave(int code)
{
	struct pollfd pfd;
	int status;

	state->code = code;
	in_order();
	state->over = true;
	if (alive(ROLE_WITNESS)) {
		pfd = (struct pollfd){ .fd = state->pidfd[ROLE_WITNESS], .events = POLLIN };
		send_signal(ROLE_WITNESS, SIGKILL);
		poll(&pfd, 1, -1);
	}
	reap(ROLE_WITNESS, &status);
	_exit(code);
}

static void worker(void)
{
	exit(run_worker());
}

static void start_worker(void)
{
	unsigned int late;
	int status;

	reap(ROLE_WORKER, &status);
	if (state->over)
		leave(state->code);
	if (state->drained) {
		run_last_words();
		leave(EXIT_OK);
	}
	if (state->pid[ROLE_WORKER] && !state->ready)
		/* It has said why, and nobody depends on it yet. */
		leave(WIFEXITED(status) && WEXITSTATUS(status) ? WEXITSTATUS(status) : EXIT_FAILED);
	if (state->pid[ROLE_WORKER]) {
		count(&state->counters.restarts, 1);
		log_line("worker %d is gone (status %#x): the next one goes on",
			 state->pid[ROLE_WORKER], status);
		if (state->stillborn >= STILLBORN_MAX)
			hold();
		if (state->stillborn > STILLBORN_QUICK) {
			late = state->stillborn - STILLBORN_QUICK;
			usleep((useconds_t)min_u64((uint64_t)PAUSE_US << late, PAUSE_MAX_US));
		}
		state->stillborn++;
	}
	spawn(ROLE_WORKER, worker);
}

static void forward_signals(void)
{
	struct signalfd_siginfo info;

	if (read(state->signals, &info, sizeof(info)) == sizeof(info))
		send_signal(ROLE_WORKER, SIGTERM);
}

static void witness(void);

static noreturn void supervise(void)
{
	for (;;) {
		struct pollfd pfd[3];
		int status;

		/* Before a new descriptor gets such a number. */
		forget_stale();
		if (!alive(ROLE_WITNESS)) {
			reap(ROLE_WITNESS, &status);
			spawn(ROLE_WITNESS, witness);
		}
		if (!alive(ROLE_WORKER))
			start_worker();
		pfd[0] = (struct pollfd){ .fd = state->pidfd[ROLE_WORKER], .events = POLLIN };
		pfd[1] = (struct pollfd){ .fd = state->pidfd[ROLE_WITNESS], .events = POLLIN };
		pfd[2] = (struct pollfd){ .fd = state->signals, .events = POLLIN };
		/* The limit is for a clone that failed: there is nothing to wait for then. */
		if (poll(pfd, ARRAY_SIZE(pfd), 1000) > 0 && pfd[2].revents)
			forward_signals();
	}
}

static void witness(void)
{
	struct pollfd pfd;

	/* Whoever kills by name does not mean this one. */
	prctl(PR_SET_NAME, "rekernel-keeper");
	for (;;) {
		pfd = (struct pollfd){ .fd = state->pidfd[ROLE_SUPERVISOR], .events = POLLIN };
		poll(&pfd, 1, -1);
		if (!alive(ROLE_SUPERVISOR))
			break;
	}
	if (state->over && !alive(ROLE_WORKER))
		_exit(state->code);
	log_line("supervisor %d is gone: %d takes its place", state->pid[ROLE_SUPERVISOR],
		 getpid());
	close(state->pidfd[ROLE_SUPERVISOR]);
	state->pid[ROLE_SUPERVISOR] = getpid();
	state->pidfd[ROLE_SUPERVISOR] = state->pidfd[ROLE_WITNESS];
	in_order();
	state->pidfd[ROLE_WITNESS] = -1;
	prctl(PR_SET_NAME, "rekernel-pager");
	supervise();
}

/* It was made by a worker with threads: nothing here may allocate. */
static void bystander(void)
{
	struct pollfd pfd = { .fd = state->pidfd[ROLE_WORKER], .events = POLLIN };

	prctl(PR_SET_NAME, "rekernel-keeper");
	while (alive(ROLE_WORKER))
		poll(&pfd, 1, -1);
	if (state->over || state->drained)
		_exit(state->code);
	hold();
}

void guard_ready(void)
{
	state->stillborn = 0;
	state->ready = true;
}

void guard_check(void)
{
	int status;

	/* In this order: the witness may be taking the other one's place just now. */
	if (alive(ROLE_WITNESS) || alive(ROLE_SUPERVISOR))
		return;
	forget_stale();
	reap(ROLE_WITNESS, &status);
	log_line("supervisor and witness are gone: a new witness");
	spawn(ROLE_WITNESS, bystander);
}

void guard_run(int (*worker_main)(void), void (*last_words)(void))
{
	run_worker = worker_main;
	run_last_words = last_words;
	state->pid[ROLE_SUPERVISOR] = getpid();
	state->pidfd[ROLE_SUPERVISOR] = (int)syscall(SYS_pidfd_open, getpid(), 0);
	if (state->pidfd[ROLE_SUPERVISOR] < 0)
		die_errno("cannot open a descriptor of this process");
	supervise();
}
