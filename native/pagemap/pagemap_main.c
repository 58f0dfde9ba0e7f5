// SPDX-License-Identifier: GPL-2.0-or-later
/* rekernel-pagemap: command line and JSON summary; see README.md. */
#define _GNU_SOURCE
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "record.h"
#include "util.h"

#define DEFAULT_BLOCK (128ull << 20)

static const char usage_text[] =
"usage: rekernel-pagemap record --region START:END[,...]|none\n"
"           (--out FILE | --out-dax PATH:OFFSET:MAXLEN)\n"
"           [--stray-out FILE --stray-max BYTES | --stray-dax PATH:OFFSET:MAXLEN]\n"
"           [--stray-base PHYS] [--block BYTES] [TREE/]PID...\n"
"       rekernel-pagemap stat --region START:END[,...]|none [--block BYTES] [--stray-chunks]\n"
"           [TREE/]PID...\n"
"\n"
"Record which physical page holds each private anonymous page of the processes.\n"
"START, END, PHYS and BYTES are bytes, decimal or 0x..., K, M, G and T allowed.\n";

struct options {
	bool stat;
	bool stray_chunks;
	struct region region;
	bool have_region;
	struct output map;
	struct output stray;
	uint64_t stray_base;
	uint64_t stray_max;
	uint64_t block;
};

static noreturn void usage(const char *why)
{
	warn_msg("%s", why);
	fputs(usage_text, stderr);
	exit(EXIT_USAGE);
}

static uint64_t bytes(const char *arg, const char *option)
{
	uint64_t v;

	if (!parse_u64_all(arg, &v) || v % PM_PAGE_SIZE)
		die(EXIT_USAGE, "%s wants whole pages in bytes, not '%s'", option, arg);
	return v;
}

static void parse_options(struct options *opt, int argc, char **argv)
{
	static const struct option table[] = {
		{ "region", required_argument, NULL, 'r' },
		{ "out", required_argument, NULL, 'o' },
		{ "out-dax", required_argument, NULL, 'O' },
		{ "stray-out", required_argument, NULL, 's' },
		{ "stray-dax", required_argument, NULL, 'S' },
		{ "stray-base", required_argument, NULL, 'b' },
		{ "stray-max", required_argument, NULL, 'm' },
		{ "block", required_argument, NULL, 'k' },
		{ "stray-chunks", no_argument, NULL, 'c' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	int c;

	opt->block = DEFAULT_BLOCK;
	while ((c = getopt_long(argc, argv, "", table, NULL)) != -1) {
		switch (c) {
		case 'r':
			if (!region_parse(&opt->region, optarg))
				die(EXIT_USAGE, "bad --region '%s'", optarg);
			opt->have_region = true;
			break;
		case 'o':
			output_set_file(&opt->map, optarg, UINT64_MAX);
			break;
		case 'O':
			if (!output_set_window(&opt->map, optarg))
				die(EXIT_USAGE, "bad --out-dax '%s'", optarg);
			break;
		case 's':
			output_set_file(&opt->stray, optarg, 0);
			break;
		case 'S':
			if (!output_set_window(&opt->stray, optarg))
				die(EXIT_USAGE, "bad --stray-dax '%s'", optarg);
			break;
		case 'b':
			opt->stray_base = bytes(optarg, "--stray-base");
			break;
		case 'm':
			opt->stray_max = bytes(optarg, "--stray-max");
			break;
		case 'k':
			opt->block = bytes(optarg, "--block");
			break;
		case 'c':
			opt->stray_chunks = true;
			break;
		case 'h':
			fputs(usage_text, stdout);
			exit(EXIT_OK);
		default:
			usage("bad option");
		}
	}
	if (!opt->have_region)
		usage("--region is needed");
	if (!opt->block)
		usage("--block must not be 0");
	if (!opt->stat && !opt->map.path)
		usage("--out or --out-dax is needed");
	if (opt->stray.path && !opt->stray.window)
		opt->stray.max = opt->stray_max;
	if (optind == argc)
		usage("no process given");
}

static void parse_space(struct space *space, const char *arg)
{
	uint64_t tree = 0, pid;
	const char *p = arg;

	if (!parse_u64(p, &p, &pid))
		die(EXIT_USAGE, "bad process '%s'", arg);
	if (*p == '/') {
		tree = pid;
		if (!parse_u64(p + 1, &p, &pid))
			die(EXIT_USAGE, "bad process '%s'", arg);
	}
	if (*p || !pid || pid > INT32_MAX || tree > UINT32_MAX)
		die(EXIT_USAGE, "bad process '%s'", arg);
	space->pid = (pid_t)pid;
	space->tree = (uint32_t)tree;
}

static void print_summary(const struct record *rec, const struct options *opt, uint64_t micros,
			  const char *error, uint64_t needed)
{
	const char *sep = "";
	size_t i;

	printf("{\"schema\":1,\"spaces\":[");
	for (i = 0; i < rec->n_spaces; i++) {
		const struct space *s = &rec->spaces[i];

		printf("%s{\"pid\":%d,\"nspid\":%d,\"tree\":%u,\"pages\":%llu,"
		       "\"stray_pages\":%llu,\"swapped_pages\":%llu,\"runs\":%llu",
		       sep, s->pid, s->vmas.nspid, s->tree, (unsigned long long)s->pages,
		       (unsigned long long)s->stray_pages, (unsigned long long)s->swapped_pages,
		       (unsigned long long)s->n_runs);
		if (opt->stray_chunks)
			record_print_stray_chunks(s, stdout);
		putchar('}');
		sep = ",";
	}
	printf("],\"pages\":%llu,\"stray_pages\":%llu,\"swapped_pages\":%llu,\"runs\":%llu,"
	       "\"bytes\":%llu,\"stray_bytes\":%llu,\"pagemap_scan\":%s",
	       (unsigned long long)rec->pages, (unsigned long long)rec->stray_pages,
	       (unsigned long long)rec->swapped_pages, (unsigned long long)rec->n_runs,
	       (unsigned long long)record_map_bytes(rec),
	       (unsigned long long)rec->stray_pages * PM_PAGE_SIZE,
	       rec->scanner.has_pagemap_scan ? "true" : "false");
	/* The next kernel must map the blocks that hold pages, and may use the others at once. */
	record_print_blocks(rec, opt->block, stdout);
	if (error)
		printf(",\"error\":\"%s\",\"needed_bytes\":%llu", error,
		       (unsigned long long)needed);
	printf(",\"micros\":%llu}\n", (unsigned long long)micros);
	if (fflush(stdout))
		die_errno("cannot write the summary");
}

/* Returns an exit code; *error and *needed are for the summary. */
static int write_record(struct record *rec, struct options *opt, const char **error,
			uint64_t *needed)
{
	uint64_t stray_bytes = rec->stray_pages * PM_PAGE_SIZE;

	if (rec->swapped_pages) {
		*error = "swapped";
		*needed = rec->swapped_pages * PM_PAGE_SIZE;
		warn_msg("%llu pages are in swap or being migrated; turn swap off first",
			 (unsigned long long)rec->swapped_pages);
		return EXIT_SWAPPED;
	}
	if (stray_bytes > opt->stray.max) {
		*error = "strays";
		*needed = stray_bytes;
		warn_msg("stray area too small: %llu bytes needed, %llu given",
			 (unsigned long long)stray_bytes, (unsigned long long)opt->stray.max);
		return EXIT_STRAYS;
	}
	/* The map can only shrink by the strays' move, so its size is checked before. */
	if (record_map_bytes(rec) > opt->map.max) {
		*error = "map";
		*needed = record_map_bytes(rec);
		warn_msg("page map does not fit: %llu bytes needed, %llu given",
			 (unsigned long long)*needed, (unsigned long long)opt->map.max);
		return EXIT_MAP_SPACE;
	}
	if (opt->stray.path)
		output_open(&opt->stray, stray_bytes);
	if (stray_bytes)
		record_copy_strays(rec, &opt->stray, opt->stray_base);
	output_open(&opt->map, record_map_bytes(rec));
	record_write_map(rec, opt->map.data);
	output_close(&opt->map);
	output_close(&opt->stray);
	return EXIT_OK;
}

int main(int argc, char **argv)
{
	/* Static: never freed, for the kernel does that faster than we could. */
	static struct record rec;
	static struct options opt;
	const char *error = NULL;
	uint64_t needed = 0, begin = now_us();
	int code = EXIT_OK;
	size_t i;

	if (argc < 2)
		usage("no command given");
	if (!strcmp(argv[1], "--help")) {
		fputs(usage_text, stdout);
		return EXIT_OK;
	}
	opt.stat = !strcmp(argv[1], "stat");
	if (!opt.stat && strcmp(argv[1], "record"))
		usage("the command is record or stat");
	parse_options(&opt, argc - 1, argv + 1);

	rec.n_spaces = argc - 1 - optind;
	rec.spaces = xcalloc(rec.n_spaces, sizeof(*rec.spaces));
	for (i = 0; i < rec.n_spaces; i++)
		parse_space(&rec.spaces[i], argv[1 + optind + i]);

	scanner_init(&rec.scanner, &opt.region, !opt.stat);
	record_scan(&rec);
	if (!opt.stat)
		code = write_record(&rec, &opt, &error, &needed);
	print_summary(&rec, &opt, now_us() - begin, error, needed);
	return code;
}
