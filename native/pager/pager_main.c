// SPDX-License-Identifier: GPL-2.0-or-later
/* rekernel-pager: setting up, the main loop, and the way out; see README.md. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "control.h"
#include "drain.h"
#include "fault.h"
#include "frames.h"
#include "guard.h"
#include "intake.h"
#include "log.h"
#include "loop.h"
#include "mapfile.h"
#include "notify.h"
#include "options.h"
#include "recover.h"
#include "address_space.h"
#include "state.h"
#include "status.h"
#include "util.h"

#define TICK_US 1000000
#ifdef __SANITIZE_THREAD__
#define STACK_BYTES (4 << 20)	/* it keeps its own things there */
#else
#define STACK_BYTES (256 << 10)
#endif
#define DESCRIPTORS (1 << 20)

static struct pager_options opt;
static struct map_file map;

static void drop_wakeup(struct watch *watch)
{
	char buf[sizeof(struct signalfd_siginfo)];

	if (read(watch->fd, buf, sizeof(buf)) < 0)
		return;
}

/*
 * A signal to end must not lose pages: it makes the drain go as fast as it can,
 * and the program leaves when all is home.  It does not wait for restores that
 * have not begun.
 */
static void signal_ready(struct watch *watch)
{
	drop_wakeup(watch);
	log_line("asked to end: draining first");
	state->exit_when_drained = true;
	status_expect_no_more();
	drain_begin(0);
}

/* Whoever reads the descriptor gets its own signals, so all processes can have it. */
static void catch_signals(void)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	frames_catch_sigbus();
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	/* Before any thread or process is started: they inherit the mask. */
	sigprocmask(SIG_BLOCK, &set, NULL);
	state->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (state->signals < 0)
		die_errno("cannot make a signalfd");
}

/* If this program dies, so do the processes it serves. */
static void become_important(char **argv)
{
	struct rlimit lim;
	int fd;

	/*
	 * systemd spares processes with such a name when it kills everything
	 * on the way out of the initrd (systemd.io/ROOT_STORAGE_DAEMONS).
	 */
	argv[0][0] = '@';
	prctl(PR_SET_NAME, "rekernel-pager");

	fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "-1000", 5) < 0)
		warn_errno("cannot exempt this process from the OOM killer");
	if (fd >= 0)
		close(fd);

	/* Two for each address space; more than the usual limit, if that is allowed. */
	lim.rlim_cur = lim.rlim_max = DESCRIPTORS;
	if (setrlimit(RLIMIT_NOFILE, &lim) < 0 && !getrlimit(RLIMIT_NOFILE, &lim)) {
		lim.rlim_cur = lim.rlim_max;
		setrlimit(RLIMIT_NOFILE, &lim);
	}
}

/* They are locked in memory: the usual eight megabytes each take a second to come. */
static void keep_stacks_small(void)
{
	pthread_attr_t attr;

	if (pthread_attr_init(&attr))
		return;
	if (pthread_attr_setstacksize(&attr, STACK_BYTES) ||
	    pthread_setattr_default_np(&attr))
		warn_msg("the stacks of threads keep their size");
	pthread_attr_destroy(&attr);
}

/*
 * Before the frames are mapped: locking them would read all of the old memory.
 * What a fault needs is in memory now and stays there.
 */
static void lock_memory(void)
{
	if (mlockall(MCL_CURRENT) < 0)
		warn_errno("cannot lock memory");
}

static void report_final(void)
{
	char buf[STATUS_MAX];

	status_format(buf, sizeof(buf));
	status_file_write(buf);
	control_tell(buf);
	log_raw(buf);
}

/* Returns the exit code. */
static int run(void)
{
	uint64_t next_tick = now_us() + TICK_US;
	bool drained = false;
	char buf[STATUS_MAX];

	for (;;) {
		uint64_t now = now_us();

		if (now >= next_tick) {
			next_tick = now + TICK_US;
			status_format(buf, sizeof(buf));
			status_file_write(buf);
			guard_check();
			fault_probe_exited();
			/*
			 * A space whose last page came by a fault while the drain's
			 * last claim on it was ending: nobody else closes that one.
			 */
			space_sweep();
		}
		if (!drained && status_drained()) {
			drained = true;
			state->drained = true;
			/* Everything is home: the old memory can be given back. */
			intake_stop();
			fault_stop();
			drain_stop();
			frames_unmap();
			report_final();
		}
		if (drained && (state->exit_when_drained || control_wish() == CONTROL_QUIT))
			return EXIT_OK;
		if (control_wish() != CONTROL_NONE)
			break;
		loop_once((int)(max_u64(next_tick, now + 1000) - now) / 1000);
	}
	report_final();
	return control_wish() == CONTROL_ABORT ? EXIT_ABORTED : EXIT_OK;
}

/* Another process than the one that has set everything up, and maybe not the first. */
static int worker(void)
{
	struct watch wakeup = { .ready = drop_wakeup }, signals = { .ready = signal_ready };
	bool first = !state->ready;
	char buf[STATUS_MAX];
	int code;

	recover_look();
	loop_init();
	space_init();
	wakeup.fd = notify_init();
	loop_add(&wakeup);
	signals.fd = state->signals;
	loop_add(&signals);
	keep_stacks_small();
	fault_start(opt.threads);
	drain_start(opt.drain_threads);
	lock_memory();
	frames_map();
	recover(&map);
	space_serve();
	intake_start();
	control_start();
	if (state->drain_wanted)
		drain_begin(state->rate);
	guard_ready();
	status_format(buf, sizeof(buf));
	status_file_write(buf);
	if (first) {
		puts("ready");
		fflush(stdout);
	}

	code = run();
	control_stop();
	state->code = code;
	state->over = true;
	/* After an abort threads may still use what is left; exit ends them. */
	if (code == EXIT_OK && !status_spaces_left() && status_drained()) {
		space_fini();
		map_file_close(&map);
	}
	return code;
}

static void last_words(void)
{
	const struct status_held nothing = { 0 };
	char buf[STATUS_MAX];

	status_format_held(buf, sizeof(buf), &nothing);
	status_file_write(buf);
	log_raw(buf);
	intake_unlink();
	unlink(opt.control);
}

int main(int argc, char **argv)
{
	pager_options_parse(&opt, argc, argv);
	become_important(argv);
	log_open(opt.log);
	map_file_open(&map, opt.map);
	state_init(opt.n_listens, map.n_spaces);
	state->window = opt.window;
	state->exit_when_drained = opt.exit_when_drained;
	state->counters.pages_total = map.pages;
	state->proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (state->proc < 0)
		die_errno("cannot open /proc");
	catch_signals();
	status_init(&map);
	if (opt.status_file)
		status_file_open(opt.status_file);
	frames_open();
	intake_open(&map, opt.listens, opt.n_listens);
	control_open(opt.control);
	recover_keep();
	lock_memory();
	guard_run(worker, last_words);
}
