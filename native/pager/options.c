// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fault.h"
#include "frames.h"
#include "util.h"

static const char usage_text[] =
"usage: rekernel-pager --map FILE[:OFFSET:LEN] --frames PATH:OFFSET:PHYS_START:LEN...\n"
"           --listen [TREE=]SOCKET... --control SOCKET [--status-file PATH] [--log FILE]\n"
"           [--window PAGES] [--threads N] [--drain-threads N] [--exit-when-drained]\n"
"\n"
"Give processes restored by \"criu restore --lazy-pages\" the pages that stayed in RAM.\n"
"PATH shows the old physical memory [PHYS_START, PHYS_START + LEN) at OFFSET.\n"
"Control commands, one per line: status, drain [BYTES_PER_SECOND], quit, abort.\n";

static noreturn void usage(const char *why)
{
	warn_msg("%s", why);
	fputs(usage_text, stderr);
	exit(EXIT_USAGE);
}

static unsigned int number(const char *arg, const char *option, unsigned int min, unsigned int max)
{
	uint64_t v;

	if (!parse_u64_all(arg, &v) || v < min || v > max)
		die(EXIT_USAGE, "%s wants %u to %u, not '%s'", option, min, max, arg);
	return (unsigned int)v;
}

static void add_listen(struct pager_options *opt, const char *arg)
{
	struct listen_option l = { .path = arg, .any_tree = true };
	const char *end;
	uint64_t tree;

	if (parse_u64(arg, &end, &tree) && *end == '=') {
		if (tree > UINT32_MAX)
			die(EXIT_USAGE, "bad --listen '%s'", arg);
		l = (struct listen_option){ .path = end + 1, .tree = (uint32_t)tree };
	}
	opt->listens = xrealloc(opt->listens, opt->n_listens + 1, sizeof(*opt->listens));
	opt->listens[opt->n_listens++] = l;
}

void pager_options_parse(struct pager_options *opt, int argc, char **argv)
{
	static const struct option table[] = {
		{ "map", required_argument, NULL, 'm' },
		{ "frames", required_argument, NULL, 'f' },
		{ "listen", required_argument, NULL, 'l' },
		{ "control", required_argument, NULL, 'c' },
		{ "log", required_argument, NULL, 'L' },
		{ "status-file", required_argument, NULL, 's' },
		{ "window", required_argument, NULL, 'w' },
		{ "threads", required_argument, NULL, 't' },
		{ "drain-threads", required_argument, NULL, 'd' },
		{ "exit-when-drained", no_argument, NULL, 'x' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	int c;

	memset(opt, 0, sizeof(*opt));
	opt->window = 16;
	opt->threads = (unsigned int)(cpus < 1 ? 1 : cpus > 4 ? 4 : cpus);
	opt->drain_threads = cpus > 2 ? 2 : 1;
	while ((c = getopt_long(argc, argv, "", table, NULL)) != -1) {
		switch (c) {
		case 'm':
			opt->map = optarg;
			break;
		case 'f':
			if (!frames_add(optarg))
				die(EXIT_USAGE, "bad --frames '%s'", optarg);
			opt->n_frames++;
			break;
		case 'l':
			add_listen(opt, optarg);
			break;
		case 'c':
			opt->control = optarg;
			break;
		case 'L':
			opt->log = optarg;
			break;
		case 's':
			opt->status_file = optarg;
			break;
		case 'w':
			opt->window = number(optarg, "--window", 1, FAULT_WINDOW_MAX);
			break;
		case 't':
			opt->threads = number(optarg, "--threads", 1, 16);
			break;
		case 'd':
			opt->drain_threads = number(optarg, "--drain-threads", 1, 8);
			break;
		case 'x':
			opt->exit_when_drained = true;
			break;
		case 'h':
			fputs(usage_text, stdout);
			exit(EXIT_OK);
		default:
			usage("bad option");
		}
	}
	if (optind != argc)
		usage("arguments after the options");
	if (!opt->map || !opt->n_listens || !opt->control)
		usage("--map, --listen and --control are needed");
}
