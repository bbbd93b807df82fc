# The same words for people and for CI. Every target runs from a clean checkout: scripts/tools.sh finds or installs what the
# machine lacks, and leaves everything else alone. With NO_INSTALL=1 it prints the commands instead, and the target fails.

TOOL := scripts/tools.sh
TARGET := $(or $(CARGO_TARGET_DIR),target)
# $(call at_first,FILE,TEXT) says TEXT unless FILE is in TARGET already.
at_first = @[ -e "$(TARGET)/$(1)" ] || echo "$(2)"
BUILD_HINT := building the release binary: about 5 minutes on two cores the first time
SCRIPTS := .ci/run $(wildcard scripts/*.sh scripts/*/*/*.sh deploy/*/*.sh deploy/*/*/*.sh)

.DEFAULT_GOAL := help
.PHONY: help build demo test fuzz fuzz-quick image image-inside image-test compose-test bench bench-quick bench-build check advisories deb \
	package-test clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo 'With NO_INSTALL=1, a target prints the commands that install missing tools, and fails.'

build: ## the service: target/release/nico-rewrap
	@$(TOOL) rust cc >/dev/null
	$(call at_first,release/nico-rewrap,$(BUILD_HINT))
	cargo build --release --locked --bin nico-rewrap

demo: ## the whole procedure on a throwaway site, with 1,000 organizations
	@$(TOOL) rust cc openssl $(if $(DATABASE_URL),psql,postgres) grpcurl >/dev/null
	$(call at_first,release/nico-rewrap,$(BUILD_HINT))
	cargo build --release --locked --bin nico-rewrap --example seed
	@scripts/demo.sh

test: ## every test, on a real Postgres, with a real PgBouncer and a real grpcurl
	@$(TOOL) rust cc openssl postgres pgbouncer grpcurl kubectl bao >/dev/null
	$(call at_first,debug/nico-rewrap,building the tests: about 4 minutes on two cores the first time)
	@PG_BIN=$$($(TOOL) postgres) && PGBOUNCER=$$($(TOOL) pgbouncer) && GRPCURL=$$($(TOOL) grpcurl) && \
		KUBECTL=$$($(TOOL) kubectl) && BAO=$$($(TOOL) bao) && \
		export PG_BIN PGBOUNCER GRPCURL KUBECTL BAO && \
		echo "cargo test --locked" && cargo test --locked

fuzz: ## hostile inputs, five minutes for each target; TIME=seconds, TARGETS=, see fuzz/README.md
	@scripts/fuzz.sh $(or $(TIME),300) $(TARGETS)

fuzz-quick: ## the same for a few seconds: CI's look for what is easily found
	@scripts/fuzz.sh 5

image: ## the container image, around a binary that is built here: nico-rewrap:latest
	@$(TOOL) docker >/dev/null
	scripts/image.sh

image-inside: ## the same, compiled in the image, in RUST_IMAGE
	@$(TOOL) docker >/dev/null
	scripts/base-images.sh $${RUST_IMAGE:-rust:1.95-slim-bookworm}
	scripts/image.sh inside

image-test: ## compiles in an image with BuildKit, and looks at what becomes of it; needs Docker
	@$(TOOL) docker >/dev/null
	scripts/base-images.sh $${RUST_IMAGE:-rust:1.95-slim-bookworm}
	@scripts/image_test.sh

compose-test: image ## the run-book, faults between hosts, and the sidecar, in containers; fails without a Docker engine
	@$(TOOL) compose >/dev/null
	scripts/base-images.sh $${POSTGRES_IMAGE:-postgres:15}
	scripts/runner_image.sh
	@scripts/compose_test.sh

bench: bench-build ## how fast it is beside other ways; ROWS="20000 200000" REPEAT=3 and more, see scripts/bench.sh
	cargo bench --locked --bench field
	@MICRO=1 scripts/bench.sh

bench-quick: bench-build ## the same in a minute: does it work? Its figures say nothing
	@ROWS=2000 REPEAT=1 scripts/bench.sh

bench-build:
	@$(TOOL) rust cc >/dev/null
	cargo build --release --locked --bin nico-rewrap --example seed --example bench_rivals

check: ## format, lints, documentation, dependencies, scripts, unit and manifests
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

advisories: ## known vulnerabilities; apart, as it fetches a database
	@deny=$$($(TOOL) cargo-deny) && \
		echo "cargo deny check advisories" && "$$deny" --locked check advisories

deb: build ## the Debian package: target/debian/nico-rewrap_….deb
	@deb=$$($(TOOL) cargo-deb) && rm -rf target/debian && \
		echo "cargo deb" && "$$deb" -q --no-build --locked --output target/debian/

package-test: deb ## that package installed and run in a container, under systemd; needs Docker
	@$(TOOL) docker >/dev/null
	scripts/base-images.sh debian:bookworm-slim
	@scripts/package_test.sh target/debian/*.deb

clean: ## remove target/, the tools in it included
	cargo clean
