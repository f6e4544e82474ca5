# Everything sets itself up: `make run` and `make test` work in a fresh clone with Python 3.11 (Debian: python3.11-venv).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: run test slow lint audit setup clean

run: $(STAMP)
	$(BIN)/python eval/t2i_robustness.py

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/typecheck.py

# known vulnerabilities of the tested versions; says so where the database cannot be reached
audit: $(STAMP)
	@if $(BIN)/python -c 'import urllib.request as u; u.urlopen("https://pypi.org/pypi/pillow/12.3.0/json", timeout=10)' 2>/dev/null; then \
		$(PYTHON) -m venv build/audit && build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit && \
		build/audit/bin/python -m pip_audit --strict --requirement constraints.txt --no-deps --disable-pip; \
	else echo "SKIPPED: the audit of the dependencies, as the database of vulnerabilities cannot be reached"; fi

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, found: $(PYTHON)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "Python's venv module is missing (Debian: apt-get install python3.11-venv)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
