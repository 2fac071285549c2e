# `make app` opens the dashboard, `make test` runs every test; both set up what they need in .venv, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: app test fuzz stress check lint docs default-model clean

# PORT=8600 chooses the port; with CI set no browser is opened.
app: $(VENV)/.app
	$(BIN)/python -m streamlit run app/main.py --server.showEmailPrompt=false --browser.gatherUsageStats=false \
		$(if $(CI),--server.headless=true) $(if $(PORT),--server.port=$(PORT))

# ARGS='-k digits' goes to pytest. Two tests at a time with one thread each: most of them keep one busy and no more. In order of
# their names, so that the browser's few and long tests do not come last, when the other process has nothing left to do.
test: $(VENV)/.dev
	bash tests/browser/install_chromium.sh
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# Ten minutes of damaged files; the last line printed names a mutant that killed the process. SECONDS=60 for less.
fuzz: $(VENV)/.dev
	MODHIFI_FUZZ_SECONDS=$(or $(SECONDS),600) OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -s tests/fuzz \
		-k for_a_while --timeout=0

# Ten people, twenty moves each, and a server that is killed twice.
stress: $(VENV)/.dev
	bash tests/browser/install_chromium.sh
	MODHIFI_SESSIONS=10 MODHIFI_MOVES=20 $(BIN)/python -m pytest tests/browser/test_sessions.py --timeout=0

# Before every commit: lint, types, layers and the fast tests, in about a minute.
check: lint
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 -q -m fast

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# The documentation site, in build/site; a warning is an error.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

default-model: $(VENV)/.app
	$(BIN)/python assets/digits_resnet20.py --out assets --seed 0

clean:
	rm -rf $(VENV) build dist artifacts .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is \
	needed, $(PYTHON) is not; install it, or name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no module venv; install it \
	(Debian, Ubuntu: apt-get install python3-venv) and run make again" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.app: requirements.txt | $(VENV)/.made
	@echo "Installing what the app needs into $(VENV); this happens once and takes some minutes."
	$(PIP) -r requirements.txt
	@touch $@

# Requirements for development include those of the app, so that one call of pip serves both.
$(VENV)/.dev: requirements-dev.txt requirements.txt | $(VENV)/.made
	@echo "Installing what the tests need into $(VENV); this happens once and takes some minutes."
	$(PIP) -r requirements-dev.txt
	@touch $(VENV)/.app $@
