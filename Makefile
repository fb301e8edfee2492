# SPDX-License-Identifier: GPL-2.0-only
#
# `make help` lists what there is. Without KDIR everything is built in the lab (build/lab), a
# Debian 13 tree that needs nothing of this machine; with KDIR the module is built on this
# machine against that kernel.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

top := $(CURDIR)
build := build
enter := selftests/lab/enter
jobs ?= $(shell nproc)
target := x86_64-unknown-linux-gnu
tool := $(build)/tool/$(target)/release/pacifica
module := $(build)/module/pacifica.ko
# Warnings are errors when V=e or in CI.
strict = $(if $(filter true,$(CI)),W=e CONFIG_OBJTOOL_WERROR=y)

.PHONY: all
all: module tool

.PHONY: help
help:
	@awk -F': *## *' '/^[a-z-]+:.*##/ {sub(/:.*/, "", $$1); printf "  make %-14s %s\n", $$1, $$2}' Makefile
	@echo '  KDIR=DIR            build the module against that kernel, on this machine'
	@echo '  MIRROR=URL          Debian mirror for the lab (default: the one that apt uses)'

.PHONY: lab
lab: ## prepare the lab: compiler, kernel and emulator, under build/lab
	@selftests/lab/prepare

# ---- build ---------------------------------------------------------------------------------------

# Sources of all crates that Cargo.lock names: for the module's two, and for builds without network.
$(build)/vendor/.stamp: Cargo.lock
	@$(MAKE) lab
	@echo '  VENDOR  crates of Cargo.lock'
	@rm -rf $(build)/vendor
	@$(enter) cargo vendor --quiet --locked build/vendor >/dev/null
	@touch $@

.PHONY: module
ifdef KDIR
module: $(build)/vendor/.stamp
	@selftests/lab/check-kdir '$(KDIR)'
	@mkdir -p $(build)/module
	@$(MAKE) -C '$(KDIR)' M='$(top)' MO='$(top)/$(build)/module' $(strict) modules
else
module: lab $(build)/vendor/.stamp ## build pacifica.ko
	@mkdir -p $(build)/module
	@$(enter) make -s -j$(jobs) -C /usr/src/linux M=/pacifica MO=/pacifica/build/module $(strict) modules
endif

cargo_lab = $(enter) env RUSTFLAGS='-C target-feature=+crt-static' cargo --config /pacifica/selftests/lab/cargo.toml

.PHONY: tool
tool: lab $(build)/vendor/.stamp ## build the program `pacifica`
	@$(cargo_lab) build --quiet --release --locked --offline -p pacifica \
		--target $(target) --target-dir build/tool
