# Two commands do all the set-up: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# tiny models are many times slower with several threads a process; real ones set trainer.threads or this
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM = false

.PHONY: quickstart test lint bench gallery docs clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

quickstart: $(VENV)/.installed  ## train, evaluate and export a tiny LLaVA on embedded data; FROM_SCRATCH=1 trains its encoder too
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python examples/quickstart.py

test: $(VENV)/.installed  ## all tests, offline
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile
	$(MAKE) --no-print-directory lint

lint: $(VENV)/.installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed  ## speed and memory as ratios against stock transformers
	$(BIN)/python benchmarks/llava.py
	$(BIN)/python benchmarks/flamingo.py
	$(BIN)/python benchmarks/image_pipeline.py

gallery: $(VENV)/.installed  ## the pictures of the README; those of trained models need make quickstart first
	$(BIN)/python examples/gallery.py

docs: $(VENV)/.installed-docs  ## guide and API reference in docs/site, to open in a browser
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -f docs/mkdocs.yml
	@echo "open docs/site/index.html"

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf runs docs/site build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
