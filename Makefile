# People and CI use the same targets. Every target works from a clean checkout. scripts/tools.sh finds or installs missing
# tools and does not change tools that are already installed.

TOOL := scripts/tools.sh
SCRIPTS := .ci/run $(wildcard scripts/*.sh scripts/*/*/*.sh deploy/*/*.sh deploy/*/*/*.sh)

.DEFAULT_GOAL := help
.PHONY: help build demo test fuzz fuzz-quick image image-inside image-test compose-test bench bench-quick bench-build check advisories deb \
	package-test clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

build: ## build the service: target/release/nico-rewrap
	@$(TOOL) rust cc >/dev/null
	cargo build --release --locked --bin nico-rewrap

demo: ## run the whole procedure on a throwaway site with 1,000 organizations
	@$(TOOL) rust cc >/dev/null
	cargo build --release --locked --bin nico-rewrap --example seed
	@scripts/demo.sh

test: ## run all tests, with a real Postgres, PgBouncer and grpcurl
	@$(TOOL) rust cc openssl >/dev/null
	@PG_BIN=$$($(TOOL) postgres) && PGBOUNCER=$$($(TOOL) pgbouncer) && GRPCURL=$$($(TOOL) grpcurl) && \
		KUBECTL=$$($(TOOL) kubectl) && BAO=$$($(TOOL) bao) && \
		export PG_BIN PGBOUNCER GRPCURL KUBECTL BAO && \
		echo "cargo test --locked" && cargo test --locked

fuzz: ## fuzz each target for five minutes; TIME=seconds, TARGETS=names; see fuzz/README.md
	@scripts/fuzz.sh $(or $(TIME),300) $(TARGETS)

fuzz-quick: ## fuzz each target for five seconds, as CI does
	@scripts/fuzz.sh 5

image: ## build the container image nico-rewrap:latest with a binary compiled on this machine
	@$(TOOL) docker >/dev/null
	scripts/image.sh

image-inside: ## build the container image, and compile the binary in RUST_IMAGE
	@$(TOOL) docker >/dev/null
	scripts/base-images.sh $${RUST_IMAGE:-rust:1.95-slim-bookworm}
	scripts/image.sh inside

image-test: ## build the image from sources with BuildKit, and check it; needs Docker
	@$(TOOL) docker >/dev/null
	scripts/base-images.sh $${RUST_IMAGE:-rust:1.95-slim-bookworm}
	@scripts/image_test.sh

compose-test: image ## test the run-book, network faults and the sidecar in containers; needs Docker
	@$(TOOL) compose >/dev/null
	scripts/base-images.sh $${POSTGRES_IMAGE:-postgres:15}
	scripts/runner_image.sh
	@scripts/compose_test.sh

bench: bench-build ## measure the speed, compared with other ways; ROWS="20000 200000" REPEAT=3; see scripts/bench.sh
	cargo bench --locked --bench field
	@MICRO=1 scripts/bench.sh

bench-quick: bench-build ## check in a minute that the benchmark works; its figures have no meaning
	@ROWS=2000 REPEAT=1 scripts/bench.sh

bench-build:
	@$(TOOL) rust cc >/dev/null
	cargo build --release --locked --bin nico-rewrap --example seed --example bench_rivals

check: ## check format, lints, documentation, dependencies, scripts, unit and manifests
	@$(TOOL) rust rust-lints cc >/dev/null
	cargo fmt --check && cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked
	@deny=$$($(TOOL) cargo-deny) && \
		echo "cargo deny check bans licenses sources" && "$$deny" --locked check bans licenses sources
	@shellcheck=$$($(TOOL) shellcheck) && \
		echo "shellcheck $(SCRIPTS)" && "$$shellcheck" $(SCRIPTS)
	@scripts/check_deploy.sh

advisories: ## check dependencies for known vulnerabilities; downloads a database
	@deny=$$($(TOOL) cargo-deny) && \
		echo "cargo deny check advisories" && "$$deny" --locked check advisories

deb: build ## build the Debian package: target/debian/nico-rewrap_….deb
	@deb=$$($(TOOL) cargo-deb) && rm -rf target/debian && \
		echo "cargo deb" && "$$deb" -q --no-build --locked --output target/debian/

package-test: deb ## install and run the package in a container with systemd; needs Docker
	@$(TOOL) docker >/dev/null
	scripts/base-images.sh debian:bookworm-slim
	@scripts/package_test.sh target/debian/*.deb

clean: ## remove target/, including the tools in it
	cargo clean
