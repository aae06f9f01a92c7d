# `make run` needs Python >= 3.11, make and a package index; nothing else.
PYTHON ?= python3
PORT ?= 7070

.PHONY: run
run: ## check this machine, install, start everything, take the tour, keep serving
	@command -v $(PYTHON) > /dev/null || { echo "MISSING  Python 3.11 or newer: install python3 (Debian, Ubuntu: apt install python3 python3-venv), or name one: make run PYTHON=/path/to/python3" >&2; exit 1; }
	@python=$$($(PYTHON) sidecache/preflight.py --port $(PORT)) \
		&& "$$python" sidecache/install.py cpu \
		&& exec .venv/bin/sidecache up --tour --port $(PORT) $(ARGS)
