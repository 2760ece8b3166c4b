# Two commands do everything on a fresh Debian machine: `make demo` shows the main job, `make test` passes the tests.
VENV   := .venv
PYTHON := $(VENV)/bin/python
SHOAL  := $(VENV)/bin/shoal
READY  := $(VENV)/.ready

.PHONY: help setup model demo run test lint interop providers browser clients nat gpu fuzz chaos swarm bench bench-local durability clean
.DEFAULT_GOAL := help

help:           ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## ?/|/' | awk -F'|' '{ printf "  make %-10s %s\n", $$1, $$2 }'

$(READY): pyproject.toml constraints.txt scripts/setup.sh
	@VENV=$(VENV) ./scripts/setup.sh

setup: $(READY) ## make .venv ready (done by every target that needs it)

model: $(READY) ## fetch and convert the embedded model, once (93 MB)
	@$(SHOAL) models add smollm2

demo: $(READY) model ## two nodes, one swarm, one question: answered by a peer, then from the cache, then verified
	@$(PYTHON) scripts/demo.py

run: $(READY)   ## run a node with your own configuration
	@$(SHOAL) run

test: $(READY) model ## unit, property, two-node and end-to-end tests
	@$(PYTHON) -m pytest -q -m "not interop and not providers and not browser and not clients and not nat and not gpu" $(ARGS)

lint: $(READY)  ## ruff, and mypy --strict on the built wheel
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	@# trio-typing, which libp2p brings, ships stubs older than trio's own types; mypy would believe them
	@rm -rf build/lint $(VENV)/lib/python3*/site-packages/trio-stubs && $(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --target build/lint .
	@MYPYPATH=build/lint $(VENV)/bin/mypy --strict -p shoal

interop: $(READY) ## against other implementations: Kubo, Helia, js-ipfs and js-libp2p (needs npm)
	@./tests/interop/install.sh
	@$(PYTHON) -m pytest -q -m interop tests/interop tests/interop_js $(ARGS)

providers: $(READY) model ## the real command-line tools (installed into build/providers, 1.2 GB), and real servers (llama.cpp: built once, 15 CPU minutes)
	@./scripts/install_providers.sh
	@./scripts/install_backends.sh
	@./scripts/install_llama_cpp.sh
	@$(PYTHON) -m pytest -q -m providers tests/providers_real $(ARGS)
	@$(PYTHON) -m tests.providers_real.figures

browser: $(READY) ## the dashboard in a headless Chromium (installs Debian's)
	@./tests/browser/install.sh
	@$(PYTHON) -m pytest -q -m browser tests/browser $(ARGS)

clients: $(READY) ## other programs' clients, Claude Code and Codex among them, against a real node; schemathesis
	@./tests/clients/install.sh
	@./scripts/install_providers.sh
	@$(PYTHON) -m pytest -q -m clients tests/clients $(ARGS)

nat: $(READY)   ## real nodes behind NATs, in network namespaces: relays, punching, cut lines (needs root or user namespaces)
	@./tests/nat/enter.sh $(PYTHON) -m pytest -q -m nat tests/nat $(ARGS)

fuzz: $(READY)  ## a million random inputs for the HTTP parsers, and for all that reads a peer's bytes; ARGS="--count 1000 --seed 1"
	@$(PYTHON) -m tests.protocols.http_fuzz $(ARGS)
	@$(PYTHON) -m tests.swarm.fuzz $(ARGS)

gpu: $(READY) model ## the local model on a GPU: its engines beside transformers' generate, and the figures; skipped without one
	@$(PYTHON) -m pytest -q -m gpu tests/gpu $(ARGS)
	@$(PYTHON) -m benchmarks gpu

chaos: $(READY)  ## callers who leave, one answer for five nodes, and ten nodes for ten minutes, killed and started again; ARGS="--nodes 4 --seconds 60"
	@$(PYTHON) -m tests.chaos.cancels
	@$(PYTHON) -m tests.chaos.together
	@$(PYTHON) -m tests.chaos $(ARGS)

durability: $(READY) ## a writing node is killed a hundred times, and every block and index entry checked (40 s)
	@SHOAL_TEST_KILLS=$(or $(KILLS),100) $(PYTHON) -m pytest -q tests/cache/test_store_killed.py

swarm: $(READY) ## N real nodes find each other and idle: join, spread, memory, CPU, traffic
	@$(PYTHON) -m benchmarks.swarm $(or $(N),20)

bench: $(READY) model ## the figures, in tables, beside LiteLLM's proxy (installed into build/litellm, 740 MB)
	@./scripts/install_litellm.sh
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt libipld==3.5.0 dag-cbor==0.3.3
	@$(PYTHON) -m benchmarks

bench-local: $(READY) model ## the local model beside transformers and llama.cpp: speed, memory, answers; 1,000 continuations
	@./scripts/install_llama_cpp.sh
	@$(PYTHON) -m benchmarks local continuation answers

clean:          ## remove what was built; keeps downloaded models
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
