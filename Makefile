# Two commands for a new user: `make run` sets everything up and shows the main job, `make test` proves it.
# Both work as root and as a user who may use sudo, and both may be run again.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
PYTHON := $(VENV)/bin/python
# Only root's own files run as root, so these are used as root or through sudo.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

PREFIX := /usr/local
LIBDIR := $(PREFIX)/lib/telehandler
CONFDIR := /etc/telehandler
GROUP := telehandler
SUDOERS := /etc/sudoers.d/telehandler

# Further names and addresses of the server, for its certificate: make certs CERT_HOSTS="build.example 10.0.0.7"
CERT_HOSTS :=

# What tests/vm boots a machine with, and the kernel that it keeps. Only Debian has that kernel; virtiofsd is a
# package of its own from Debian 13 on.
VM_PACKAGES := $(if $(shell grep -sx ID=debian /etc/os-release),qemu-system-x86 busybox-static kmod systemd e2fsprogs \
    $(shell apt-cache --names-only search '^virtiofsd$$' 2>/dev/null | cut -d' ' -f1))
VM_CACHE := /var/cache/telehandler-vm

# A job's init, where there is a compiler; elsewhere the helper's own code is the init.
INIT := $(if $(shell command -v gcc),helper/init)

PROTO := proto/telehandler/v1/telehandler.proto

.PHONY: help
help:  ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

.PHONY: build
build: $(VENV)/.built $(INIT)  ## .venv/bin/telehandler, with what it needs from apt and PyPI

# The distribution's python3, because its python3-prctl and python3-cap-ng, which the helper uses, are built for it.
$(VENV)/.built: pyproject.toml contrib/apt-packages.sh
	contrib/apt-packages.sh python3-venv python3-prctl python3-cap-ng
	test -x $(VENV)/bin/pip || /usr/bin/python3 -m venv --clear --system-site-packages $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# Every job's user executes it: whatever the umask.
helper/init: contrib/telehandler-init.c
	gcc -std=c11 -Os -Wall -Wextra -Werror -ffreestanding -fno-stack-protector -fno-pie -static -no-pie -nostdlib \
	    -Wl,--build-id=none,-z,noexecstack -o $@.new $<
	chmod 755 $@.new
	mv $@.new $@

.PHONY: certs
certs: build  ## ssl/: root, server, client, bubba and admin pairs; keeps what is there
	$(PYTHON) -m telehandler.certs ssl $(CERT_HOSTS:%=--host %)

.PHONY: proto
proto: build  ## telehandler/pb/ from proto/
	$(PYTHON) -m grpc_tools.protoc -Itelehandler/pb=$(dir $(PROTO)) --python_out=. --pyi_out=. $(PROTO)

.PHONY: seccomp
seccomp: build  ## helper/seccomp.bpf from helper/seccomp.toml
	$(PYTHON) contrib/seccomp_filter.py >helper/seccomp.bpf.new
	mv helper/seccomp.bpf.new helper/seccomp.bpf

.PHONY: run
run: build certs  ## set up, start a server, run a job, stop another, say what happened
	contrib/apt-packages.sh procps
	contrib/demo.sh

.PHONY: test
test: build lint test-packages  ## everything: lint, then all tests
	$(MAKE) --no-print-directory helper/init
	$(PYTHON) -m pytest

.PHONY: test-vm
test-vm: build test-packages  ## limits in full, in a virtual machine with pure cgroup v2
	$(PYTHON) -m pytest tests/vm

.PHONY: test-packages
test-packages:
	contrib/apt-packages.sh sudo gcc libc6-dev git make curl tar strace e2fsprogs iproute2 procps bubblewrap openssh-client $(VM_PACKAGES)

.PHONY: test-full
test-full: build test-packages  ## tests/faults at full size: 10,000 jobs, 1,000 at once, 10 GiB, a line of 1 GiB
	TELEHANDLER_FULL=1 $(PYTHON) -m pytest tests/faults/test_many_jobs.py tests/faults/test_output_integrity.py

FUZZ_SECONDS := 300

.PHONY: fuzz
fuzz: build  ## a long run of tests/fuzz: make fuzz FUZZ_SECONDS=3600
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(PYTHON) -m pytest tests/fuzz

MUTANTS_FILES :=
MUTANTS_SAMPLE := 0
MUTANTS_SEED := 1
MUTANTS_JOBS := $(shell nproc)

# The tool that changes the code is not among what `make build` installs: only this uses it.
MUTANTS = $(SUDO) env PYTHONPATH=tests $(PYTHON) -B -m mutants --jobs $(MUTANTS_JOBS)

.PHONY: mutants
mutants: build  ## which changes of the code no test notices, for hours: make mutants MUTANTS_SAMPLE=100
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[mutants]'
	$(MUTANTS) --sample $(MUTANTS_SAMPLE) --seed $(MUTANTS_SEED) $(MUTANTS_FILES)

.PHONY: mutants-named
mutants-named: build  ## changes for each row of security.md and reliability.md, which its tests must notice
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[mutants]'
	$(MUTANTS) --named $(MUTANTS_FILES)

ARGS :=

# As root, for a server with a helper of its own.
.PHONY: bench
bench: build  ## throughput, latency and memory, beside raw TLS: make bench ARGS=--quick for two minutes
	contrib/apt-packages.sh iproute2 bubblewrap crun dbus $(VM_PACKAGES)
	$(SUDO) env PYTHONPATH=tests PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m bench $(ARGS)

.PHONY: bench-docs
bench-docs: build  ## the tables and plots of docs/performance.md, from bench/results
	$(PYTHON) -m bench.docs $(ARGS)

SOAK_MINUTES := 10
SOAK_FAULTS := api,hup,helper,certs
SOAK_SEED :=

.PHONY: soak
soak: build  ## jobs under random faults, and an observer: make soak SOAK_MINUTES=60
	$(SUDO) env PYTHONPATH=tests $(PYTHON) -B -m soak --minutes $(SOAK_MINUTES) --faults $(SOAK_FAULTS) \
	    $(SOAK_SEED:%=--seed %)

.PHONY: lint
lint: build  ## ruff, mypy --strict, and the contracts of imports between folders
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict
	$(VENV)/bin/lint-imports

.PHONY: install-helper
install-helper: $(INIT)  ## the helper and a policy, root's own, for use through sudo
	$(SUDO) install -d -m 755 $(LIBDIR) $(LIBDIR)/helper $(CONFDIR)
	$(SUDO) install -m 644 helper/*.py helper/*.toml helper/*.bpf $(LIBDIR)/helper
	$(SUDO) rm -f $(LIBDIR)/helper/init
	test ! -e helper/init || $(SUDO) install -m 755 helper/init $(LIBDIR)/helper
	$(SUDO) install -m 644 contrib/policy-no-limits.toml $(LIBDIR)
	test -e $(CONFDIR)/policy.toml || $(SUDO) install -m 644 contrib/policy.toml $(CONFDIR)

# The group is ours to remove only when we made it: that is what the mark is for.
.PHONY: install-group
install-group: install-helper
	getent group $(GROUP) >/dev/null || { $(SUDO) groupadd --system $(GROUP); $(SUDO) touch $(LIBDIR)/group-made; }

.PHONY: install
install: install-group  ## install-helper, and the setuid wrapper for members of the group telehandler
	contrib/apt-packages.sh gcc libc6-dev
	$(MAKE) --no-print-directory helper/init
	$(SUDO) install -m 755 helper/init $(LIBDIR)/helper
	built=$$(mktemp) && trap 'rm -f "$$built"' EXIT && \
	gcc -std=c11 -O2 -Wall -Wextra -Werror -fstack-protector-strong -D_FORTIFY_SOURCE=2 -fPIE -pie -Wl,-z,relro,-z,now \
	    -DHELPER='"$(LIBDIR)/helper"' -o "$$built" contrib/telehandler-helper.c && \
	$(SUDO) install -o root -g $(GROUP) -m 4750 "$$built" $(LIBDIR)/telehandler-helper
	@echo "Members of the group $(GROUP) may now run jobs: sudo usermod --append --groups $(GROUP) USER, who logs in anew"

.PHONY: install-sudoers
install-sudoers: install-group  ## the sudo rule, instead of the wrapper
	contrib/apt-packages.sh sudo
	$(SUDO) visudo --check --quiet --file=contrib/telehandler.sudoers
	$(SUDO) install -m 440 contrib/telehandler.sudoers $(SUDOERS)

.PHONY: uninstall
uninstall:  ## removes every trace of the install targets, the policy and the group among them
	test ! -e $(LIBDIR)/group-made || ! getent group $(GROUP) >/dev/null || $(SUDO) groupdel $(GROUP)
	$(SUDO) rm -rf $(LIBDIR) $(CONFDIR) $(SUDOERS)

.PHONY: clean
clean:  ## removes what was built here and the kernel of tests/vm; ssl/ stays
	rm -rf $(VENV) helper/init build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	test ! -e $(VM_CACHE) || $(SUDO) rm -rf $(VM_CACHE)
