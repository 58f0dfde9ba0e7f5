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
#include "intake.h"
#include "log.h"
#include "loop.h"
#include "mapfile.h"
#include "notify.h"
#include "options.h"
#include "space.h"
#include "status.h"
#include "util.h"

#define TICK_US 1000000
#define STACK_BYTES (256 << 10)

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
	opt.exit_when_drained = true;
	status_expect_no_more();
	drain_begin(0);
}

static void catch_signals(struct watch *watch)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	frames_catch_sigbus();
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	/* Before any thread is started: they inherit the mask. */
	sigprocmask(SIG_BLOCK, &set, NULL);
	*watch = (struct watch){
		.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), .ready = signal_ready,
	};
	if (watch->fd < 0)
		die_errno("cannot make a signalfd");
	loop_add(watch);
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

	if (!getrlimit(RLIMIT_NOFILE, &lim)) {
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

static void report_final(void)
{
	char buf[STATUS_MAX];

	status_format(buf, sizeof(buf), &map);
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
			status_format(buf, sizeof(buf), &map);
			status_file_write(buf);
			fault_probe_exited();
			/*
			 * A space whose last page came by a fault while the drain's
			 * last claim on it was ending: nobody else closes that one.
			 */
			space_sweep();
		}
		if (!drained && status_drained()) {
			drained = true;
			/* Everything is home: the old memory can be given back. */
			intake_stop();
			fault_stop();
			drain_stop();
			frames_unmap();
			report_final();
		}
		if (drained && (opt.exit_when_drained || control_wish() == CONTROL_QUIT))
			return EXIT_OK;
		if (control_wish() != CONTROL_NONE)
			break;
		loop_once((int)(max_u64(next_tick, now + 1000) - now) / 1000);
	}
	report_final();
	return control_wish() == CONTROL_ABORT ? EXIT_ABORTED : EXIT_OK;
}

int main(int argc, char **argv)
{
	struct watch wakeup = { .ready = drop_wakeup }, signals;
	char buf[STATUS_MAX];
	int code;

	pager_options_parse(&opt, argc, argv);
	become_important(argv);
	log_open(opt.log);
	loop_init();
	space_init();
	wakeup.fd = notify_init();
	loop_add(&wakeup);
	catch_signals(&signals);

	map_file_open(&map, opt.map);
	counters.pages_total = map.pages;
	if (opt.status_file)
		status_file_open(opt.status_file);
	keep_stacks_small();
	fault_start(opt.threads, opt.window);
	drain_start(opt.drain_threads);
	/*
	 * Before the frames are mapped: locking them would read all of the old
	 * memory.  What a fault needs is in memory now and stays there.
	 */
	if (mlockall(MCL_CURRENT) < 0)
		warn_errno("cannot lock memory");
	frames_map();
	intake_start(&map, opt.listens, opt.n_listens);
	control_start(opt.control, &map);
	status_format(buf, sizeof(buf), &map);
	status_file_write(buf);
	puts("ready");
	fflush(stdout);

	code = run();
	control_stop();
	/* After an abort threads may still use what is left; exit ends them. */
	if (code == EXIT_OK && !status_spaces_left() && status_drained()) {
		space_fini();
		map_file_close(&map);
	}
	return code;
}
