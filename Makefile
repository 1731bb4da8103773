# make chat            talk about a picture with the embedded model (PROMPT="..." asks once, ARGS="..." adds flags)
# make demo            the same in a browser
# make train-demo      LLaVA's two stages on synthetic scenes, in three minutes: answers before and after, a loss curve
# make test            all tests
# make check           linter and types
# make docs            these documents as a website with search: site/index.html, which needs no server
# make bench           benchmarks
# make gpu-check       what needs a GPU: a selection of tests, and benchmarks to docs/results/gpu.md, in six minutes
# make evidence-quick  the README's figures again, on scenes of a new seed (SEED=... for a certain one), in ten minutes

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# pip would compile all modules, which takes it as long as installing them. What a chat loads is compiled, whatever the
# environment says, and for tests what each of their processes loads besides; all else as it is first imported.
# Without warnings, since an editable installation has one of several lines.
PIP := PYTHONWARNINGS=ignore $(RUN) -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
COMPILE := PYTHONDONTWRITEBYTECODE= $(RUN) -c "import llava.serve.engine.chat_engine, llava.model.builder"
COMPILE_DEV := PYTHONDONTWRITEBYTECODE= $(RUN) -c \
    "import gradio, hypothesis, matplotlib.pyplot, openai, playwright.sync_api, ray, schemathesis, scipy.ndimage"

# Processes that run the tests, one thread each, about 1.5 GB each. Three keep two cores busy: many tests wait for programs
# that they start.
JOBS ?= 3

export PROMPT
export TOKENIZERS_PARALLELISM := false
export NO_MKDOCS_2_WARNING := 1

.PHONY: chat demo train-demo test check docs bench gpu-check evidence-quick

chat: $(VENV)/installed
	@$(RUN) -m llava.serve.cli $(if $(PROMPT),--prompt "$$PROMPT") $(ARGS)

demo: $(VENV)/installed
	@$(RUN) -m llava.serve.gradio_web_server $(ARGS)

train-demo: $(VENV)/installed
	@$(RUN) -m playground.train_demo $(ARGS)

# Compiled modules are kept, whatever the environment says: tests start many programs that load the same ones.
test: $(VENV)/installed-dev
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: $(VENV)/installed-docs
	@$(RUN) -m mkdocs build --strict --site-dir site $(ARGS)
	@echo site/index.html

bench: $(VENV)/installed-dev
	$(RUN) -m scripts.bench.quadtree $(ARGS)

gpu-check: $(VENV)/installed-dev
	$(RUN) -m scripts.bench.gpu $(ARGS)

evidence-quick: $(VENV)/installed-dev
	$(RUN) -m scripts.bench.evidence.quick $(if $(SEED),--seed $(SEED)) $(ARGS)

# A newer pip takes two thirds of the time of Python 3.11's own, which is used where no newer one can be had.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	-@$(PIP) --upgrade pip

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV), a few minutes the first time" >&2
	@$(PIP) --editable . >&2
	@$(COMPILE)
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV) what tests need, a few minutes the first time" >&2
	@$(PIP) --editable ".[dev]" >&2
	@$(COMPILE_DEV) & $(COMPILE) && wait $$!
	@touch $(VENV)/installed $@

$(VENV)/installed-docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	@$(PIP) mkdocs mkdocs-material >&2
	@touch $@
