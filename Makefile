# `make demo` and `make test` do all the set-up they need, inside .venv; the second run skips it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One more wheel index for torch, for instance your mirror of the CPU builds.
TORCH_INDEX ?=
# Two compute threads on two busy cores make a step 10 to 30 times slower than one.
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test test-fast test-extended lint docs buck clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	@# Without dependencies: torchrec's wheel would bring the CUDA build of FBGEMM. pip will mention it as missing.
	$(BIN)/python -m pip install --quiet --no-deps torchrec==1.8.0
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e ".[cpu,demo,test]"
	$(BIN)/python -m nasrec_torchrec.environment
	touch $@

demo: setup
	$(BIN)/nasrec demo

# Three workers on two cores, for some tests wait for other processes.
test: setup
	$(BIN)/python -m pytest -n 3 --dist loadfile -m "not extended"

test-fast: setup
	$(BIN)/python -m pytest -n 3 --dist loadfile -m "not slow and not extended"

# What stands around the package: benchmarks in their quick form, the demo, the commands of the pages, examples, notebook,
# site, image, Slurm, all jobs in a bucket, all operators in one package, and what takes long beyond its plain form.
test-extended: setup
	$(BIN)/python -m pytest -n 1 --dist loadfile -m extended

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

# The pages and the API reference as one site, into build/site. Figures are filled from docs/figures first.
docs: setup
	$(BIN)/python docs/figures.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# The BUCK files, from the sources.
buck: setup
	$(BIN)/python tests/buck_files.py

clean:
	rm -rf $(VENV) build dist *.egg-info
