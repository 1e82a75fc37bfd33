# Two commands set up everything: `make run` and `make test`. Each makes the virtual environment and installs into it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8501
# Twice as many processes of pytest as CI has cores: tests with processes mostly wait, one after another otherwise.
TEST_WORKERS ?= 4
# Groups of tests that share something stay together; the order is that of tests/conftest.py.
PYTEST = $(BIN)/python -m pytest --dist loadgroup --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help run link test test-fast check format docs race-gif browser bench bench-load bench-peers clean

help:
	@echo "make run     set up and start the dashboard on http://127.0.0.1:$(PORT)"
	@echo "make link    print a link that lets one more browser in"
	@echo "make test    set up and run all tests (browser tests run where Chromium is installed)"
	@echo "make test-fast  the tests that start no process and take a moment each: about a minute"
	@echo "make check   format, lint, types, all tests: what CI runs"
	@echo "make bench   side-by-side measurements, in minutes (make bench-load: many viewers, many runs, long runs;"
	@echo "             make bench-peers: against other libraries, 2.5 GB)"

# A stamp per requirements file: pip runs again only when the file changed. All of a file in one pip call, so that
# nothing pulls another torch.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Isoflop needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.txt | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements.txt requirements-oidc.txt requirements-dev.txt | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@ $(VENV)/.run

run: $(VENV)/.run
	@test "$(PORT)" -ge 1 -a "$(PORT)" -le 65535 2>/dev/null || { echo "PORT=$(PORT) is not a port. Choose 1 to 65535."; exit 2; }
	@$(BIN)/streamlit run dashboard/app.py --server.port $(PORT)

# A link that lets one more browser in.
link: $(VENV)/.run
	@$(BIN)/python -m engine link

test: $(VENV)/.dev
	$(PYTEST) -n $(TEST_WORKERS)

test-fast: $(VENV)/.dev
	$(PYTEST) -n 2 -m "not process and not slow and not browser"

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -n $(TEST_WORKERS)

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What stands in a report, from the models; a test compares.
docs: $(VENV)/.dev
	$(BIN)/python docs/report_schema.py

# The animation in the README: a real race in Chromium, some 40 s on a quiet machine.
race-gif: $(VENV)/.dev
	$(BIN)/python -m docs.record_race

# Debian and Ubuntu; elsewhere install Chromium or Chrome yourself.
browser:
	command -v chromium || { apt-get update -qq && apt-get install -y -qq chromium; }

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.training_loop
	$(BIN)/python -m benchmarks.recording
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.data_route
	$(BIN)/python -m benchmarks.first_point
	$(BIN)/python -m benchmarks.race
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.monitor
	$(BIN)/python -m benchmarks.inference

bench-load: $(VENV)/.dev
	$(BIN)/python -m benchmarks.load

# The other libraries have an environment of their own, and may not replace torch.
.venv-peers/.ready: benchmarks/requirements-peers.txt benchmarks/constraints-peers.txt requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check -r benchmarks/requirements-peers.txt -c benchmarks/constraints-peers.txt
	@touch $@

bench-peers: .venv-peers/.ready
	.venv-peers/bin/python -m benchmarks.peers
	.venv-peers/bin/python -m benchmarks.loggers

clean:
	rm -rf $(VENV) .venv-peers .pytest_cache .mypy_cache .ruff_cache
