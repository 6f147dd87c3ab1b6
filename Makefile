# All targets set up a fresh machine from nothing but Python and a package registry, in an environment of their own.
PYTHON ?= python3
VENV ?= .venv
OUT ?= quickstart
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart caption test lint types stub docs clean

# Train a small captioner on drawn pictures and caption unseen ones: no download, about 4 minutes of processor time.
# Threads that wait must not spin, on cores that others use too; benchmarks/bench_threads.py measures what that costs.
quickstart: $(READY)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/hf-captioners quickstart --out $(OUT)

# Caption a photograph with the captioner of starter/: make caption PICTURE=photo.jpg
caption:
	@test -n "$(PICTURE)" || { echo "say which: make caption PICTURE=photo.jpg" >&2; exit 2; }
	@$(MAKE) --no-print-directory $(READY)
	@$(BIN)/hf-captioners caption "$(PICTURE)" --model starter

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# The documentation as a site, in build/site; a warning or a dead link is an error.
docs: $(VENV)/.docs
	$(BIN)/python -m zensical build --strict --clean

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	touch $@

# The public names for editors, after a new captioner or another public name.
stub: $(READY)
	$(BIN)/python tests/test_architecture.py

# torch first: with it there, nothing pulls another build of it
$(READY): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) $(OUT) .cache build dist *.egg-info
