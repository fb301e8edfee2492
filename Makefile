# SPDX-License-Identifier: GPL-2.0-only
#
# `make help` lists what there is. Everything is built in the lab (build/lab), a Debian 13 tree that
# needs nothing of this machine. Only with KDIR, or for a running kernel that is supported but not Debian's, the module
# is built with this machine's own compiler (selftests/lab/target).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

top := $(CURDIR)
build := build
enter := selftests/lab/enter
target := x86_64-unknown-linux-gnu
tool := $(build)/tool/$(target)/release/pacifica
# Warnings are errors if CI=true.
strict = $(if $(filter true,$(CI)),W=e CONFIG_OBJTOOL_WERROR=y)

.PHONY: all
all: module tool

.PHONY: help
help:
	@awk '/^[a-z-]+[a-z -]*:.*##/ {name = text = $$0; sub(/:.*/, "", name); sub(/.*## */, "", text); printf "  make %-14s %s\n", name, text}' Makefile
	@echo '  KDIR=DIR            build the module on this machine, for the kernel whose build directory that is'
	@echo '  SERIES=X.Y          the kernel of the lab and of its emulated host (default: the newest on the mirror)'
	@echo '  RELEASE=NAME        the same, exactly, as uname -r prints it: any flavour'
	@echo '  MIRROR=URL          Debian mirror for the lab (default: the one that apt uses)'

# The lab's scripts look for these in their environment.
export SERIES RELEASE MIRROR

.PHONY: lab
lab: ## prepare the lab: compiler, kernel and emulator, under build/lab
	@selftests/lab/prepare
.PHONY: lab-update
lab-update: ## ask the mirror again which kernels there are, and take the newest
	@selftests/lab/prepare --update

# ---- build ---------------------------------------------------------------------------------------

# Sources of all crates that Cargo.lock names: for the module's two, and for builds without network.
$(build)/vendor/.stamp: Cargo.lock
	@$(MAKE) lab
	@selftests/lab/vendor

.PHONY: module lab-module
ifdef KDIR
module: $(build)/vendor/.stamp
	@packaging/module '$(KDIR)' $(strict)
else
module: lab $(build)/vendor/.stamp ## build pacifica.ko for the running kernel if it is a supported one, else for the lab's
	@read -r where release < <(selftests/lab/target); \
	if [ "$$where" = lab ]; then RELEASE=$$release $(MAKE) lab-module; else packaging/module "$$where" $(strict); fi
endif
lab-module: lab $(build)/vendor/.stamp ## build pacifica.ko for the kernel of the emulated host
	@selftests/lab/module $(strict)

cargo_lab = $(enter) env RUSTFLAGS='-C target-feature=+crt-static' cargo --config /pacifica/selftests/lab/cargo.toml

.PHONY: tool
tool: lab $(build)/vendor/.stamp ## build the program `pacifica`
	@$(cargo_lab) build --quiet --release --locked --offline -p pacifica \
		--target $(target) --target-dir build/tool

# ---- run -----------------------------------------------------------------------------------------

.PHONY: demo
ifeq ($(HOST),local)
demo: module tool ## launch a stock Debian kernel as a guest (HOST=local: on this machine's own AMD-V)
	@selftests/lab/demo --local
else
demo: lab-module tool
	@selftests/lab/demo
endif

.PHONY: fuzz-demo
fuzz-demo: lab-module tool ## a fuzzer finds the bugs of a guest, each run from a snapshot, in the emulated host (SEED=...)
	@selftests/lab/fuzz-demo $(if $(filter file,$(origin SEED)),,$(SEED))

.PHONY: lab-shell
lab-shell: lab-module tool ## a shell in the emulated AMD-V host, with the module loaded
	@selftests/lab/boot --interactive

.PHONY: load unload
load: ## load the module on this machine (root); with KVM_NODE=1 it is /dev/kvm, too
	@selftests/lab/local load $(if $(KVM_NODE),kvm_node=1)
unload: ## take it out again
	@selftests/lab/local unload

# ---- check ---------------------------------------------------------------------------------------

.PHONY: check
check: lab-module tool ## all tests: crates, self-tests in the emulated host, the kernel's KVM selftests
	@selftests/check $(if $(BRIEF),--brief)

T ?=

.PHONY: test
test: lab $(build)/vendor/.stamp ## one test, of any kind, by its name: T=NAME
	@selftests/test '$(T)'

# The random tests take the same way each time, so that a red run says something about the change;
# `make check-crates SEED=$$RANDOM` looks elsewhere.
SEED ?= 1

.PHONY: check-crates
check-crates: lab $(build)/vendor/.stamp ## the tests of the pure crates and of the tool
	@$(enter) env PROPTEST_RNG_SEED=$(SEED) cargo --config /pacifica/selftests/lab/cargo.toml test --quiet --locked --offline \
		--no-fail-fast --workspace --target-dir build/crates

SECONDS ?= 600

.PHONY: fuzz
fuzz: lab-module tool ## hostile ioctls and guests for SECONDS=600, and the random tests of the crates (SEED=...)
	@selftests/fuzz $(SECONDS) $(if $(filter file,$(origin SEED)),$$RANDOM,$(SEED))

.PHONY: diff
diff: lab-module tool ## the same random questions to kvm_amd and to the module, for SECONDS=600 (SEED=...)
	@selftests/diff $(SECONDS) $(if $(filter file,$(origin SEED)),$$RANDOM,$(SEED))

TIMES ?= 10

.PHONY: soak
soak: lab-module tool ## a guest with 4 vCPUs under load and CPU hotplug for SECONDS=60, TIMES=10 in a row
	@selftests/soak $(TIMES) $(if $(filter file,$(origin SECONDS)),60,$(SECONDS))

.PHONY: soak-snapshots
soak-snapshots: lab-module tool ## resets and forks of memory that the host swaps, merges and moves, for SECONDS=120 each
	@selftests/build
	@selftests/lab/boot --name soak-snapshots --machine milan --cpus 2 --timeout 7200 -- \
		env DEVICE=/dev/pacifica SNAPSHOT_SECONDS=$(if $(filter file,$(origin SECONDS)),120,$(SECONDS)) \
		/selftests/bin/snapshot moves brought killed

.PHONY: check-hosts
check-hosts: lab-module tool ## the self-tests on every emulated host
	@selftests/run --all

.PHONY: check-debug
check-debug: lab ## the self-tests on a kernel with KASAN, lockdep and failing allocations
	@selftests/run --debug

.PHONY: bench
bench: lab-module tool ## what exits, interrupts and machines cost, beside kvm_amd (docs/performance.md)
	@selftests/bench/run

.PHONY: docs
docs: lab-module tool ## the figures of docs/status.md and docs/performance.md, measured anew: an hour
	@selftests/status write
	@selftests/bench/run

.PHONY: check-upstream-all
check-upstream-all: lab-module tool ## all of the kernel's own KVM selftests, the slow ones too
	@selftests/upstream --all

.PHONY: check-kernels
check-kernels: lab-module tool ## builds the module for every kernel and compiler that it supports, and prints a table
	@selftests/kernels --all

.PHONY: doc
doc: lab-module ## rustdoc of all crates, the module's too: build/doc/doc/index.html
	@selftests/doc

.PHONY: rust-project
rust-project: lab-module ## writes rust-project.json, with which rust-analyzer works in rust/
	@selftests/rust-project

.PHONY: lint
lint: lab $(build)/vendor/.stamp ## formatting, clippy, and warnings of compiler and objtool as errors
	@selftests/lint

# ---- packages ------------------------------------------------------------------------------------

.PHONY: debs
debs: tool ## Debian packages of the program and, for DKMS, of the module: build/debs
	@packaging/build-debs $(build)/debs

.PHONY: check-packages
check-packages: lab-module debs ## installs the packages into a Debian system, boots it, upgrades its kernel, removes them
	@selftests/packages

# ---- install -------------------------------------------------------------------------------------

# The kernel that `make module` builds for.
ifdef KDIR
release = $(shell sed -nE 's/^.define UTS_RELEASE "(.*)"$$/\1/p' '$(KDIR)/include/generated/utsrelease.h')
else
release = $(lastword $(shell selftests/lab/target))
endif
prefix ?= /usr/local

.PHONY: install
install: ## install what `make` has built: module, program, udev rule and man page (root)
	@test -e $(build)/module/$(release)/pacifica.ko && test -e $(tool) || \
		{ echo 'make: nothing is built for kernel $(release): first, as yourself, make$(if $(KDIR), KDIR=$(KDIR))' >&2; exit 1; }
	@test -n '$(DESTDIR)' || test '$(release)' = "$$(uname -r)" || \
		{ echo "make: the module was built for $(release), and this kernel is $$(uname -r): see docs/install.md" >&2; exit 1; }
	install -D -m 644 $(build)/module/$(release)/pacifica.ko $(DESTDIR)/lib/modules/$(release)/updates/pacifica.ko
	install -D -m 755 $(tool) $(DESTDIR)$(prefix)/bin/pacifica
	install -D -m 644 packaging/60-pacifica.rules $(DESTDIR)/etc/udev/rules.d/60-pacifica.rules
	install -d $(DESTDIR)$(prefix)/share/man/man1
	$(tool) man >$(DESTDIR)$(prefix)/share/man/man1/pacifica.1
	install -d $(DESTDIR)$(prefix)/share/bash-completion/completions
	$(tool) completions bash >$(DESTDIR)$(prefix)/share/bash-completion/completions/pacifica
	$(if $(DESTDIR),,depmod $(release))

.PHONY: clean distclean
clean: ## remove what was built, but not the lab
	rm -rf $(build)/module $(build)/tool $(build)/crates $(build)/selftests $(build)/selftests-target \
		$(build)/logs $(build)/lint $(build)/clippy $(build)/doc $(build)/kernels $(build)/kdir $(build)/debs \
		$(build)/debug $(build)/upstream $(build)/kvm-ioctls $(build)/bench $(build)/status target
distclean: ## remove the lab, too
	rm -rf $(build) target
