# What a person runs is what CI runs: .ci/run calls these targets and nothing else.
# Each sets up what is missing first; see scripts/libtorch.py for what goes where.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/amend
VENV := $(CACHE)/venv
TRL := $(CACHE)/trl
SERVERS := $(CACHE)/servers
LLAMA_CPP := $(CACHE)/llama.cpp
CARGO := cargo --locked
# A snapshot that differs fails its test; `cargo insta review` shows the new one.
export INSTA_UPDATE ?= no

.PHONY: help
help: ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

.PHONY: demo
demo: setup ## both stages of Constitutional AI on a small world, from nothing
	python3 pipelines/demo/make_world.py
	@# 3 is "done, with rejects": of some prompts both answers are the same, which is no pair to judge.
	$(CARGO) run -- run pipelines/demo.yaml || test $$? -eq 3

.PHONY: test
test: setup ## everything a commit must pass
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) check --no-default-features --all-targets
	if cargo nextest --version >/dev/null 2>&1; then \
	    $(CARGO) nextest run; \
	else \
	    $(CARGO) test --lib --bins --tests; \
	fi
	$(CARGO) test --doc
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --no-default-features

.PHONY: bench
bench: setup $(TRL)/ready $(LLAMA_CPP)/ready ## the benchmarks: transformers, llama.cpp, PyTorch and TRL beside amend, and the peers' task where their fake endpoint is
	if [ -e $(LLAMA_CPP)/ready ]; then export AMEND_BENCH_LLAMA_CPP=$(LLAMA_CPP)/bin/python; fi; \
	AMEND_BENCH_PYTHON=$(VENV)/bin/python AMEND_BENCH_TRL=$(TRL)/bin/python $(CARGO) bench --benches
	$(CARGO) build --release
	if [ -e ../shared/peers/fake_openai.py ]; then python3 benches/peers.py "$(CACHE)/target/release/amend"; fi

.PHONY: schema
schema: setup ## write schemas/ anew from the types
	UPDATE=1 $(CARGO) test --test it schemas

.PHONY: interop
interop: demo $(VENV)/ready $(TRL)/ready ## read what the demo wrote with DuckDB, Polars, pyarrow and transformers, ask its model by the openai client, train by TRL
	$(VENV)/bin/python tests/interop/check.py pipelines/demo.yaml
	$(VENV)/bin/python tests/interop/demo.py
	$(VENV)/bin/python tests/interop/families.py
	$(VENV)/bin/python tests/interop/templates.py
	$(VENV)/bin/python tests/interop/serve.py pipelines/demo.yaml rl
	$(VENV)/bin/python tests/interop/trainer.py "$(CACHE)/target/debug/amend" $(TRL)/bin/python

.PHONY: interop-servers
interop-servers: setup $(SERVERS)/ready ## one checkpoint behind real servers: amend serve, litellm's proxy, llama.cpp (a few minutes; not part of CI)
	$(CARGO) build
	$(SERVERS)/bin/python tests/interop/servers.py "$(CACHE)/target/debug/amend" tests/fixtures/llama_tiny

.PHONY: study
study: setup $(VENV)/ready ## whether learning is seen, with controls: variants of the demo over several seeds (about an hour; goes on where it was)
	$(CARGO) build
	$(VENV)/bin/python tests/study/study.py "$(CACHE)/target/debug/amend"

.PHONY: deps
deps: ## licences, versions and use of the dependencies, where the tools for it are installed
	if cargo deny --version >/dev/null 2>&1; then cargo deny check; else echo "cargo-deny is not installed"; fi
	if cargo machete --version >/dev/null 2>&1; then cargo machete; else echo "cargo-machete is not installed"; fi

.PHONY: setup
setup: ## libtorch in the cache folder, and cargo's configuration for it
	@for tool in cargo c++ python3; do \
	    command -v $$tool >/dev/null || { \
	        echo "make: $$tool is missing: apt-get install build-essential python3; cargo is at https://rustup.rs" >&2; \
	        exit 1; \
	    }; \
	done
	@python3 scripts/libtorch.py

# Up to date when it holds what requirements.txt says: a fresh clone is newer, yet says the same.
.PHONY: $(VENV)/ready
$(VENV)/ready:
	@if ! cmp -s tests/interop/requirements.txt $@; then \
	    rm -f $@; \
	    python3 -m venv $(VENV) || { \
	        echo "make: python3 cannot make a virtual environment: apt-get install python3-venv" >&2; \
	        exit 1; \
	    }; \
	    $(VENV)/bin/pip install --no-deps -r tests/interop/requirements.txt; \
	    $(VENV)/bin/python tests/interop/cpu_torch.py; \
	    cp tests/interop/requirements.txt $@; \
	fi

# TRL beside the packages of the other environment, whose torch it takes.
.PHONY: $(TRL)/ready
$(TRL)/ready: $(VENV)/ready
	@if ! cmp -s benches/requirements.txt $@; then \
	    rm -f $@; \
	    python3 -m venv $(TRL); \
	    site=$$($(TRL)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	    $(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$site/beside.pth; \
	    $(TRL)/bin/pip install --no-deps -r benches/requirements.txt; \
	    cp benches/requirements.txt $@; \
	fi

# Without it amend is measured beside transformers alone.
.PHONY: $(LLAMA_CPP)/ready
$(LLAMA_CPP)/ready:
	@if ! cmp -s benches/llama_cpp.txt $@; then \
	    rm -f $@; \
	    python3 -m venv $(LLAMA_CPP) && \
	    $(LLAMA_CPP)/bin/pip install --no-deps --only-binary :all: -r benches/llama_cpp.txt && \
	    cp benches/llama_cpp.txt $@ || \
	    echo "make: llama.cpp cannot be had here, and is not measured" >&2; \
	fi

# Real servers. One that cannot be had here is not asked.
.PHONY: $(SERVERS)/ready
$(SERVERS)/ready:
	@if ! cat tests/interop/servers.txt benches/llama_cpp.txt | cmp -s - $@; then \
	    rm -f $@; \
	    python3 -m venv $(SERVERS) && \
	    { $(SERVERS)/bin/pip install -r tests/interop/servers.txt || echo "make: litellm cannot be had here" >&2; } && \
	    { $(SERVERS)/bin/pip install --no-deps --only-binary :all: -r benches/llama_cpp.txt || \
	        echo "make: llama.cpp cannot be had here" >&2; } && \
	    cat tests/interop/servers.txt benches/llama_cpp.txt > $@; \
	fi
