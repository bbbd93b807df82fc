# People and CI use the same targets. Every target runs from a clean checkout: scripts/tools.sh finds or installs missing
# tools and changes nothing else. With NO_INSTALL=1, it prints the installation commands instead, and the target fails.

TOOL := scripts/tools.sh
TARGET := $(or $(CARGO_TARGET_DIR),target)
# $(call at_first,FILE,TEXT) prints TEXT if FILE is not in TARGET yet.
at_first = @[ -e "$(TARGET)/$(1)" ] || echo "$(2)"
BUILD_HINT := building the release binary: about 5 minutes on two cores the first time
SCRIPTS := .ci/run $(wildcard scripts/*.sh scripts/*/*/*.sh deploy/*/*.sh deploy/*/*/*.sh)

.DEFAULT_GOAL := help
.PHONY: help build demo test test-long test-postgres test-postgres-quick soak simulate model mutants fuzz fuzz-quick image image-inside image-test compose-test bench bench-quick bench-build check advisories deb \
	package-test clean

help: ## print this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo 'With NO_INSTALL=1, a target prints the commands that install missing tools, and fails.'

build: ## build the server: target/release/nico-rewrap
	@$(TOOL) rust cc >/dev/null
	$(call at_first,release/nico-rewrap,$(BUILD_HINT))
	cargo build --release --locked --bin nico-rewrap
	@! grep -q REWRAP_TEST_FAILPOINT $(TARGET)/release/nico-rewrap || { echo 'the binary has failpoints of the tests'; exit 1; }

demo: ## do a complete rotation on a throwaway site with 1,000 organizations
	@$(TOOL) rust cc openssl $(if $(DATABASE_URL),psql,postgres) grpcurl >/dev/null
	$(call at_first,release/nico-rewrap,$(BUILD_HINT))
	cargo build --release --locked --bin nico-rewrap --example seed
	@scripts/demo.sh

test: ## run all tests, with a real Postgres, PgBouncer, Prometheus, Chromium and grpcurl
	@$(TOOL) rust cc openssl postgres pgbouncer prometheus chromium grpcurl kubectl bao bench-python >/dev/null
	$(call at_first,debug/nico-rewrap,building the tests: about 4 minutes on two cores the first time)
	@PG_BIN=$$($(TOOL) postgres) && PGBOUNCER=$$($(TOOL) pgbouncer) && GRPCURL=$$($(TOOL) grpcurl) && \
		KUBECTL=$$($(TOOL) kubectl) && BAO=$$($(TOOL) bao) && PROMETHEUS=$$($(TOOL) prometheus) && \
		CHROMIUM=$$($(TOOL) chromium) && PYTHON=$$($(TOOL) bench-python) && \
		export PG_BIN PGBOUNCER GRPCURL KUBECTL BAO PROMETHEUS CHROMIUM PYTHON && \
		threads=$${RUST_TEST_THREADS:-$$(($$(nproc) + 1))} && echo "RUST_TEST_THREADS=$$threads cargo test --locked" && RUST_TEST_THREADS=$$threads cargo test --locked

test-long: ## run the tests that take minutes and that `make test` leaves out: a million failures, one round of the soak
	@$(TOOL) rust cc openssl postgres grpcurl >/dev/null
	@PG_BIN=$$($(TOOL) postgres) && GRPCURL=$$($(TOOL) grpcurl) && export PG_BIN GRPCURL && \
		cargo test --locked --test it -- --ignored

# The tests that depend most on the version of the database.
DATABASE_TESTS := runs:: live_writers:: visibility:: durability:: censuses:: census_faults:: verdicts:: failpoints:: simulation:: \
	locks_and_retries:: old_schema:: unreadable:: state_schema:: least_privilege::
QUICK_TESTS := runs:: durability:: visibility:: locks_and_retries:: unreadable:: state_schema:: least_privilege::
# These need the collations of ICU, which the builds of PyPI lack.
ICU_TESTS := pages_of_any_size an_index_with_another_order

test-postgres: ## run the tests of the database with another PostgreSQL: VERSION=14, 16, 17 or 18
	@$(TOOL) rust cc openssl grpcurl postgres-$(VERSION) >/dev/null
	@PG_BIN=$$($(TOOL) postgres-$(VERSION)) && GRPCURL=$$($(TOOL) grpcurl) && export PG_BIN GRPCURL && \
		cargo test --locked --test it -- $(DATABASE_TESTS) $(addprefix --skip ,$(ICU_TESTS))

test-postgres-quick: ## run some of these tests with PostgreSQL 18
	@$(MAKE) --no-print-directory test-postgres VERSION=18 DATABASE_TESTS="$(QUICK_TESTS)"

soak: ## run two instances for four hours under tenants, rotations, reloads and faults, and see that nothing grows; TIME=seconds
	@$(TOOL) rust cc openssl postgres grpcurl >/dev/null
	@PG_BIN=$$($(TOOL) postgres) && GRPCURL=$$($(TOOL) grpcurl) && export PG_BIN GRPCURL && \
		SOAK_SECONDS=$(or $(TIME),14400) cargo test --locked --test it -- --ignored --nocapture soak::

simulate: ## simulate a site with random faults for an hour; settings: TIME=seconds, SEED=number; `make test` does it for a minute
	@$(TOOL) rust cc openssl postgres grpcurl >/dev/null
	@PG_BIN=$$($(TOOL) postgres) && GRPCURL=$$($(TOOL) grpcurl) && export PG_BIN GRPCURL && \
		SIMULATE_SECONDS=$(or $(TIME),3600) $(if $(SEED),SIMULATE_SEED=$(SEED)) \
		cargo test --locked --test it -- --nocapture simulation::

model: ## show how an old key can be removed too early, and that the verdict prevents it
	@$(TOOL) rust cc >/dev/null
	cargo test --locked --test it -- --nocapture model::

mutants: ## make each change of cargo-mutants to src/domain, to see whether a unit test fails; takes hours; ONLY=files, OPTIONS=…
	@$(TOOL) rust cc >/dev/null
	@mutants=$$($(TOOL) cargo-mutants) && scripts/mutants.sh "$$mutants" $(or $(ONLY),core) $(OPTIONS)

fuzz: ## fuzz each target for five minutes; settings: TIME=seconds, TARGETS=names; see fuzz/README.md
	@scripts/fuzz.sh $(or $(TIME),300) $(TARGETS)

fuzz-quick: ## fuzz each target for five seconds, as in CI
	@scripts/fuzz.sh 5

image: ## build the image nico-rewrap:latest with a binary that is compiled on this machine; needs Docker
	@$(TOOL) docker >/dev/null
	scripts/image.sh

image-inside: ## build the same image with a binary that is compiled in the image RUST_IMAGE; needs Docker
	@$(TOOL) docker >/dev/null
	scripts/base-images.sh $${RUST_IMAGE:-rust:1.95-slim-bookworm}
	scripts/image.sh inside

image-test: ## build an image as image-inside does, with BuildKit, and check it; needs Docker
	@$(TOOL) docker >/dev/null
	scripts/base-images.sh $${RUST_IMAGE:-rust:1.95-slim-bookworm}
	@scripts/image_test.sh

compose-test: image ## test the run-book, network faults and the sidecar in containers; needs Docker
	@$(TOOL) compose >/dev/null
	scripts/base-images.sh $${POSTGRES_IMAGE:-postgres:15}
	scripts/runner_image.sh
	@scripts/compose_test.sh

bench: bench-build ## compare the speed with other programs; settings: ROWS="20000 200000", REPEAT=3; see scripts/bench.sh
	cargo bench --locked --bench field
	@MICRO=1 scripts/bench.sh

bench-quick: bench-build ## test the benchmark in a minute; its figures mean nothing
	@ROWS=2000 REPEAT=1 scripts/bench.sh

bench-build:
	@$(TOOL) rust cc >/dev/null
	cargo build --release --locked --bin nico-rewrap --example seed --example bench_rivals

check: ## check formatting, lints, rustdoc, dependencies, scripts, the systemd unit and the manifests
	@$(TOOL) rust rust-lints cc >/dev/null
	cargo fmt --check && cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked
	@deny=$$($(TOOL) cargo-deny) && \
		echo "cargo deny check bans licenses sources" && "$$deny" --locked check bans licenses sources
	@shellcheck=$$($(TOOL) shellcheck) && \
		echo "shellcheck $(SCRIPTS)" && "$$shellcheck" $(SCRIPTS)
	scripts/tools_test.sh
	@scripts/check_deploy.sh

advisories: ## check dependencies for known vulnerabilities; downloads the advisory database
	@deny=$$($(TOOL) cargo-deny) && \
		echo "cargo deny check advisories" && "$$deny" --locked check advisories

deb: build ## build the Debian package: target/debian/nico-rewrap_….deb
	@rm -rf target/pages && $(TARGET)/release/nico-rewrap man --dir target/pages/man
	@for shell in bash zsh fish; do \
		$(TARGET)/release/nico-rewrap completion $$shell >target/pages/nico-rewrap.$$shell || exit; \
	done
	@deb=$$($(TOOL) cargo-deb) && rm -rf target/debian && \
		echo "cargo deb" && "$$deb" -q --no-build --locked --output target/debian/

package-test: deb ## install the Debian package in a container with systemd and test it; needs Docker
	@$(TOOL) docker >/dev/null
	scripts/base-images.sh debian:bookworm-slim
	@scripts/package_test.sh target/debian/*.deb

clean: ## remove target/, including the installed tools
	cargo clean
