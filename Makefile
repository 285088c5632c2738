# make demo      the paper's six prompts -> ./store, with the embedded prior
# make gpu-check whether a GPU computes the right numbers, and how fast -> gpu-check.json; 8 minutes
# make test      the tests that need nothing but pip
# make test-all  everything: check, test and the suites that need Debian or npm packages
# make test-fast the tests without engine processes, kills and trainings: minutes
# make soak      MINUTES of faults on each STORE of folder, swift, ceph: kills, broken requests, full
#                disks; without STORE on a folder and on Swift
# make fuzz      hundreds of broken model folders and manifests, 20,000 broken files of a store: minutes
# make model     every interleaving of runs that share a store, further than the tests go: minutes
# make mutants   200 mistakes planted into the code, one at a time: do the fast tests notice? Hours
# make check     ruff and mypy
# make ptx       the CUDA kernels compiled for GPUs, without one; the first time 440 MB of packages
# make sweep     every file of a store, every read fault, every command: about an hour
# make platforms on which systems it installs from wheels alone; asks PyPI
# make lock      requirements.lock: what running needs, with the hashes of its files; asks PyPI
# make audit     known vulnerabilities of the pinned packages, in constraints.txt and the lock; asks PyPI
#
# PYTHON names the interpreter (3.11 or newer) that .venv is made from; JOBS how many tests run at once.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# What running needs, and what developing needs beside it
READY  := $(VENV)/.ready
DEV    := $(VENV)/.dev
UV     := $(VENV)/uv/bin/uv
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable
DEVICES ?= cpu,cpu
# Test files that run at the same time, on two cores: many of their tests wait for processes and clocks.
JOBS ?= 3
# In the order that tests/conftest.py gives them: long files first.
TESTS = $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder
MINUTES ?= 10
STORE ?= folder swift

export OMP_NUM_THREADS ?= 1

.PHONY: demo gpu-check test test-all test-fast soak sweep fuzz model mutants check ptx audit lock platforms format clean

demo: $(READY)
	$(BIN)/sjc run manifests/paper.csv --store ./store --devices $(DEVICES)

gpu-check: $(READY)
	$(BIN)/sjc doctor --benchmark --json > gpu-check.json

test: $(DEV)
	$(TESTS) -m "not system"

test-all: check
	scripts/install-system-packages
	scripts/install-cuda-compiler $(BIN)/python $(VENV)/ptx
	$(TESTS)

test-fast: $(DEV)
	$(TESTS) -m "not slow and not system"

soak: $(DEV)
	scripts/install-system-packages
	$(if $(filter ceph,$(STORE)),scripts/install-ceph)
	$(foreach store,$(STORE),$(BIN)/python benchmarks/soak.py --minutes $(MINUTES) --store $(store) &&) true

sweep: $(DEV)
	SWEEP=all $(BIN)/python -m pytest -q -n $(JOBS) tests/flows/test_read_faults.py

fuzz: $(DEV)
	FUZZ=500 FUZZ_STORE=20000 $(BIN)/python -m pytest -q -n $(JOBS) tests/sjc_engine/priors/test_model_fuzz.py tests/tasks/manifest/test_fuzz.py tests/tasks/records/test_store_fuzz.py

model: $(DEV)
	MODEL=1 $(BIN)/python -m pytest -q -s tests/tasks/records/test_model.py

mutants: $(DEV)
	$(BIN)/python scripts/mutants.py

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ptx: $(READY)
	scripts/install-cuda-compiler $(BIN)/python $(VENV)/ptx
	$(BIN)/python -m pytest -q tests/sjc_engine/rendering/test_ptx.py

# Of its own environment, so that the auditor's packages are not those of the project.
audit: $(DEV)
	scripts/make-venv "$(PYTHON)" $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet pip-audit==2.10.1
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt
	$(VENV)/audit/bin/pip-audit --strict --require-hashes --disable-pip --requirement requirements.lock

# It may need other packages than are installed here, and other than this Python's.
platforms: $(UV)
	$(VENV)/uv/bin/python scripts/platforms.py $(UV)

lock: $(UV)
	scripts/lock $(UV)

$(UV):
	scripts/make-venv "$(PYTHON)" $(VENV)/uv
	$(VENV)/uv/bin/python -m pip install --quiet uv==0.13.9

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Of 19,000 modules a run imports less than a third: only those are compiled, two at a time.
$(READY): pyproject.toml constraints.txt scripts/make-venv scripts/compile-imports
	scripts/make-venv "$(PYTHON)" $(VENV)
	$(INSTALL) . --no-compile
	scripts/compile-imports $(BIN)/python
	touch $@

$(DEV): $(READY)
	$(INSTALL) ".[dev]"
	$(BIN)/python -m compileall -qq -j 2 $(VENV)/lib || :  # tests import most of the rest
	touch $@

clean:
	rm -rf $(VENV) .sjc node_modules
