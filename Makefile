# make demo   a teacher made on the spot, a search for two budgets, a compressed model that writes a line
# make test   the whole test suite
# make check  formatting, lint, types, import contracts, the compose file
# make lock   resolve requirements.lock anew (on the oldest supported Python)
# make clean  remove everything that these commands made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := 2.13.0

# Every test process is one of several: one thread each is what two cores can carry.
test: export OMP_NUM_THREADS ?= 1

.PHONY: demo test check lock clean venv

demo: $(STAMP)
	$(BIN)/espalier demo

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

venv: $(STAMP)

# The stamp is younger than the lock and pyproject.toml exactly when what they ask for is installed.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Espalier needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	         "Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --requirement requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
	touch $@

# pip-tools in a place of its own: the lock must not depend on the lock. torch is pinned by its public version and
# without its CUDA packages, so that whichever build the index offers satisfies the pin.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet pip-tools
	echo 'torch==$(TORCH)' > build/lock/constraints.txt
	build/lock/bin/pip-compile --quiet --upgrade --extra workers --extra harness --extra dev --strip-extras \
	    --allow-unsafe --no-header --no-annotate --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
	    --constraint build/lock/constraints.txt \
	    --output-file build/lock/resolved.txt pyproject.toml
	sed --regexp-extended --expression '/^(#|--|$$)/d' --expression '/^(nvidia|cuda|triton)/d' \
	    --expression 's/^(torch==[0-9.]+)\+.*/\1/' build/lock/resolved.txt \
	    | LC_ALL=C sort > build/lock/requirements.lock
	mv build/lock/requirements.lock requirements.lock

clean:
	rm -rf $(VENV) build dist .espalier .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
