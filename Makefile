# `make run` and `make test` do everything on a fresh Debian machine. `make help` lists the rest.
.PHONY: help run build package package-here release check style test test-crates test-rust test-unit unit-tests test-unit-waiting \
        test-unit-others test-erlang test-cli test-release test-wire test-clients test-brokers test-emqx test-hostile \
        test-hostile-costs test-hostile-times lint check-types tools test-programs build-all fuzz bench clean

CARGO_FLAGS := --release --locked
NIFS := nats_gateway_nif nats_gateway_mqtt_nif
# What the package runs on: Rust's names of the platforms, and the oldest C library.
PLATFORMS := x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu
GLIBC := 2.17
# Stages of `make test` that run side by side find everything built: BUILT is of this make alone, not of what tests run.
unexport BUILT
unless_built = $(if $(BUILT),,$(1))
# AGAIN=1: a test that fails is run a second time, at most five of a stage; the output shows both runs.
PYTEST = .tools/venv/bin/pytest$(if $(AGAIN), --reruns 1 --reruns-delay 2 --max-suite-reruns 5 --rerun-show-tracebacks -rR)
# The others link with a running Erlang only.
TESTED_CRATES := -p nats-protocol -p nats_gateway_bench -p nats_gateway_fuzz

help:
	@echo "make run      install what is missing, build, start the gateway and a broker beside it"
	@echo "              NATS_PORT=4222 MQTT_PORT=1883 UPSTREAM=mqtt://host:port CONFIG=file.toml"
	@echo "              EMQX_HOME=/path/to/emqx: in that EMQX, as a plugin"
	@echo "make build    build only"
	@echo "make package  build the EMQX plugin for every Linux, _build/package/nats_gateway-<vsn>.tar.gz"
	@echo "make package-here  the same for this machine alone: faster, and all that the tests need"
	@echo "make release  build the standalone gateway with its own Erlang, for machines that have none, into _build/release:"
	@echo "              a tarball, a Debian package, their bill of materials, SHA256SUMS"
	@echo "make clean    remove all that was built, and .tools"
	@echo
	@echo "make check    while you work: style, and the tests that need no broker; needs Rust and Erlang only"
	@echo "make style    the formats and the linters alone: bin/check-text, cargo fmt, clippy, xref, ruff"
	@echo "make test     install what is missing, build, run every test: what follows, side by side"
	@echo "              KEEP_GOING=1: also what comes after a failure; AGAIN=1: a test that fails is run a second time"
	@echo "  lint          style (formats, clippy, xref, ruff), the licences and sources of crates (deny.toml), and the"
	@echo "                types where make check-types has run before"
	@echo "  test-rust     cargo test (test-crates), and each microbenchmark once"
	@echo "  test-erlang   EUnit; test-unit is the part of it that needs no broker and measures no time"
	@echo "  test-cli      make run and bin/nats_gateway"
	@echo "  test-release  what make release has made"
	@echo "  test-wire     byte for byte against a nats-server and the gateway"
	@echo "  test-clients  real NATS and MQTT clients"
	@echo "  test-brokers  the standalone gateway before other brokers, and broken ones"
	@echo "  test-emqx     in EMQX_HOME, else in every /opt/emqx-*"
	@echo "  test-hostile  what hostile clients cost, in both hosts; HOSTILE=long: the full sizes, a quarter of an hour"
	@echo
	@echo "make check-types  dialyzer; the first time some minutes, for the types of Erlang/OTP"
	@echo "make fuzz     look for input that the native code mistakes: FUZZ_SECONDS=60 for each target, or"
	@echo "              for FUZZ_TARGET=decode alone; see docs/development.md"
	@echo "make bench    measure against EMQX (EMQX_HOME, else each /opt/emqx-*), Mosquitto and nats-server; it takes long"
	@echo "              BENCH=quick: less of everything; DOCS=1: writes docs/performance.* and README.md's ratios"
	@echo "              ONLY=transports: one group of measurements alone; docs/performance.md names them"

run:
	@bin/install-missing $(if $(EMQX_HOME),build,run)
	@$(MAKE) --no-print-directory $(if $(EMQX_HOME),package-here,build)
	@bin/$(if $(EMQX_HOME),run-in-emqx,run)

build:
	@bin/install-missing build
	cargo build $(CARGO_FLAGS) $(addprefix -p ,$(NIFS))
	@TERM=dumb rebar3 compile
	@# A running node has the library mapped: it is replaced, never overwritten.
	@directory=priv/$$(erl -noinput -boot start_clean -pa _build/default/lib/nats_gateway/ebin -eval ' \
	    io:put_chars(nats_gateway_nif:platform(erlang:system_info(system_architecture))), halt().') && \
	mkdir -p $$directory && \
	for nif in $(NIFS); do \
	    cmp -s target/release/lib$$nif.so $$directory/$$nif.so || { \
	        cp target/release/lib$$nif.so $$directory/$$nif.so.new && \
	        mv $$directory/$$nif.so.new $$directory/$$nif.so; }; \
	done

# Zig links, because it can link with any version of the C library.
package: build
	@bin/install-missing package $(PLATFORMS)
	PATH=$(CURDIR)/.tools/zig/bin:$$PATH cargo zigbuild $(CARGO_FLAGS) -p nats_gateway_nif \
	    $(foreach platform,$(PLATFORMS),--target $(platform).$(GLIBC))
	@bin/package $(GLIBC) $(PLATFORMS)

package-here: build
	@bin/install-missing package-here
	@bin/package

release: build
	@bin/install-missing release
	@bin/release

# The inner loop: no broker, no client, no download.
check: style unit-tests
	@$(MAKE) --no-print-directory --jobs=3 --output-sync=target test-unit-waiting test-unit-others test-crates

# What measures runs alone, at the end. Those of --waiting leave the processors to the others most of the time; they stand
# behind the others, so that a lane which becomes free goes to one that computes.
# Two of cargo with one directory would wait for each other: test-programs, test-rust and lint come one after the other.
test:
	@bin/install-missing test-packages
	@BUILT=1 MAKE='$(MAKE)' bin/stages $(if $(KEEP_GOING),--keep-going) \
	    --waiting test-erlang,test-brokers,test-hostile-costs,test-release \
	    build-all tools test-programs test-clients:build-all,tools,test-programs test-rust:test-programs \
	    test-cli:build-all,tools test-wire:build-all,tools lint:tools,test-rust \
	    test-brokers:build-all,tools,test-programs test-erlang:build-all test-release:build-all,tools test-hostile-costs:build-all,tools \
	    -- test-emqx test-hostile-times

tools:
	@bin/install-missing test

# The programs in Rust of test-clients and test-brokers, which take long to compile and share crates with our own tests.
test-programs:
	cargo build --locked --manifest-path test/Cargo.toml --target-dir target

build-all: package-here release

test-crates:
	+cargo test --locked $(TESTED_CRATES)

test-rust: test-crates
	@# Each microbenchmark once, so that they never rot; as it is built for the tests, which is enough.
	cargo test --locked $(TESTED_CRATES) --bench codec

fuzz:
	@bin/install-missing fuzz
	@bin/fuzz

# A scheduler that waits busily uses up its share of a busy machine: then each file that is looked
# for when a module is loaded takes milliseconds, and a test runs into EUnit's 5 seconds.
EUNIT = TERM=dumb ERL_FLAGS="+sbwt none +sbwtdcpu none +sbwtdio none" rebar3 eunit

test-erlang: $(call unless_built,build)
	@$(EUNIT)$(if $(AGAIN), || { echo "--- EUnit has failed: once more ---"; $(EUNIT); })

# Without the modules that start a Mosquitto, measure CPU time, or wait for half a minute by the clock.
UNIT_TESTS = $(shell grep -rLE 'with_mosquitto|^-module.*_(scaling|refusals)_tests' --include='*_tests.erl' test/unit | \
    xargs -n 1 basename -s .erl)
# These wait for timers most of the time, and take half of the time of all: a run of their own beside the others.
WAITING_TESTS = $(patsubst %,nats_gateway_%_tests,connection emqx_presence emqx_stored passwords)
comma := ,
empty :=
modules = $(subst $(empty) ,$(comma),$(strip $(1)))

test-unit: unit-tests
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-unit-waiting test-unit-others

unit-tests: build
	@TERM=dumb rebar3 as test compile

test-unit-waiting:
	@$(EUNIT) --module=$(call modules,$(WAITING_TESTS))

test-unit-others:
	@$(EUNIT) --module=$(call modules,$(filter-out $(WAITING_TESTS),$(UNIT_TESTS)))

# They wait most of the time, so several run side by side.
test-cli: $(call unless_built,build)
	$(PYTEST) -n 3 --dist loadfile test/cli

test-release: $(call unless_built,release package-here)
	$(PYTEST) test/release

test-wire: $(call unless_built,build)
	$(PYTEST) -n 4 --dist worksteal test/wire

test-clients: $(call unless_built,build)
	$(PYTEST) -n 3 --dist loadfile test/clients

test-brokers: $(call unless_built,build)
	$(PYTEST) test/brokers

# Against real nodes: EMQX_HOME alone, else every /opt/emqx-*; where there is none it says so at the end.
test-emqx: $(call unless_built,package-here)
	$(PYTEST) test/emqx

# HOSTILE=long: the full sizes.
test-hostile: $(call unless_built,package-here)
	HOSTILE=$(HOSTILE) $(PYTEST) test/hostile

# The same in two parts: what is judged by memory and CPU time, and what is by the clock.
test-hostile-costs: $(call unless_built,package-here)
	HOSTILE=$(HOSTILE) $(PYTEST) -m 'not by_the_clock' test/hostile

test-hostile-times: $(call unless_built,package-here)
	HOSTILE=$(HOSTILE) $(PYTEST) -m by_the_clock test/hostile

style:
	@bin/check-text
	@# Not every Rust comes with them.
	@if cargo fmt --version >/dev/null 2>&1; then cargo fmt --all --check; \
	    else echo "skipped: cargo fmt is not installed"; fi
	@if cargo clippy --version >/dev/null 2>&1; then \
	    cargo clippy --locked --all-targets -- -D warnings; \
	    else echo "skipped: cargo clippy is not installed"; fi
	@TERM=dumb rebar3 xref
	@if [ -x .tools/venv/bin/ruff ]; then .tools/venv/bin/ruff check -q test; \
	    else echo "skipped: ruff is not installed; make test installs it"; fi

# cargo-deny is not installed here, because its build takes minutes; a job of the workflows runs it.
lint: style
	@if cargo deny --version >/dev/null 2>&1; then \
	    cargo deny --locked --log-level error check bans licenses sources; \
	    else echo "skipped: cargo-deny is not installed (cargo install --locked cargo-deny)"; fi
	@if ls _build/default/*_plt >/dev/null 2>&1; then $(MAKE) --no-print-directory check-types; \
	    else echo "skipped: dialyzer; make check-types runs it"; fi

# The first run needs minutes for the types of Erlang/OTP, which it keeps in _build and rebar3's cache.
check-types:
	@bin/install-missing types
	@TERM=dumb rebar3 dialyzer

# Ratios to EMQX's own MQTT listener and built-in NATS gateway, where there is an EMQX; see docs/performance.md.
bench: package-here
	@bin/install-missing test
	cargo build $(CARGO_FLAGS) -p nats_gateway_bench
	@cd test && ../.tools/venv/bin/python -m bench $(if $(filter quick,$(BENCH)),--quick) $(if $(DOCS),--docs) $(if $(ONLY),--only $(ONLY))

clean:
	rm -rf target _build priv/*/ .tools
