# SPDX-License-Identifier: GPL-2.0-or-later
#
#   make setup    what is needed to build and test: .cache/venv, host packages
#   make demo     the main job in a virtual machine, from nothing
#   make deb      the Debian package in .cache/dist/
#   make test     lint, native, unit, vm; or each by itself
#   make test-all the slow VM tests, too (JOBS=1: one VM at a time)
#   make bench    blackout at several sizes, against reboots and the floor
#   make clean    build results (make clean-all: all caches, too)

.DEFAULT_GOAL := setup
SHELL := /bin/sh

BIN := .cache/venv/bin
# Everything for sh, wherever it is.
SCRIPTS = $(shell grep -rIlE '^\#!/bin/(ba)?sh' --exclude='*.py' --exclude='*.md' \
	.ci packaging lab native/tests tests)
# Programs in Python without its ending: what runs in guests, and their clients.
PROGRAMS = $(shell grep -rIlE '^\#!.*python' --exclude='*.py' --exclude='*.md' lab packaging tests)
PYTEST := $(BIN)/pytest --quiet -p no:cacheprovider

venv:
	@packaging/setup-venv

setup: venv
	@$(BIN)/rekernel-lab setup-host

native:
	@$(MAKE) --no-print-directory -C native

native-check:
	@$(MAKE) --no-print-directory -C native check

deb:
	@packaging/build-deb

lint: lint-check lint-format lint-types lint-imports lint-sh
lint-check: venv
	$(BIN)/ruff check --quiet . $(PROGRAMS)
lint-format: venv
	$(BIN)/ruff format --quiet --check . $(PROGRAMS)
lint-types: venv
	$(BIN)/mypy
	@# One by one, as each is a program; guests have a newer Python than the oldest we run on.
	@printf '%s\n' $(PROGRAMS) | xargs -n 1 $(BIN)/mypy --no-error-summary --python-version 3.13
# The layers, as pyproject.toml has them.
lint-imports: venv
	@$(BIN)/lint-imports --no-logo --cache-dir .cache/import-linter
lint-sh: venv
	@if command -v shellcheck >/dev/null; then shellcheck $(SCRIPTS); \
		else echo "shellcheck is not installed: skipped"; fi

unit: venv
	$(PYTEST) tests/unit

vm: setup deb
	$(BIN)/python -m rekernel_lab.testfiles $(JOBS:%=--jobs=%) -m "not slow"

vm-slow: setup deb
	$(BIN)/python -m rekernel_lab.testfiles $(JOBS:%=--jobs=%) -m slow

# The guest of the VM tests is made meanwhile; whoever needs it waits for it.
PREPARE := PYTHONPATH=tests setpriv --pdeathsig TERM $(BIN)/python -m vm.prepare \
	>.cache/vm-prepare.log 2>&1 </dev/null &

test: setup
	@$(PREPARE) MAKE="$(MAKE)" packaging/run-tests lint native-check unit vm

test-all: setup
	@$(PREPARE) MAKE="$(MAKE)" packaging/run-tests lint native-check unit vm vm-slow

demo: setup deb
	@$(BIN)/rekernel-lab run lab/scenarios/demo

bench: setup deb
	@$(BIN)/rekernel-lab bench blackout

clean:
	@$(MAKE) --no-print-directory -C native clean
	rm -rf .cache/build .cache/dist

clean-all: clean
	@! test -x $(BIN)/rekernel-lab || $(BIN)/rekernel-lab clean --all
	rm -rf .cache

.PHONY: venv setup native native-check deb lint lint-check lint-format lint-types \
	lint-imports lint-sh unit vm vm-slow test test-all demo bench clean clean-all
