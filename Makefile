# What a person does with this project. Works with GNU make 3.81 (macOS) and newer.
# The work is done by small Python programs in book/_tools, so that every system behaves alike;
# Windows users run the plain pip commands of the README instead.

SHELL := /bin/sh

# An inherited PYTHONPATH or PYTHONHOME would let another installation into the project's own.
unexport PYTHONPATH PYTHONHOME
# Containers often set this one. Every process would then compile all of torch's modules again: two seconds each.
unexport PYTHONDONTWRITEBYTECODE

# The environment's own kernel, whatever kernels this person has installed elsewhere.
JUPYTER_PREFER_ENV_PATH := 1
export JUPYTER_PREFER_ENV_PATH

PY := .venv/bin/python
TOOLS := book/_tools

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help env book test test-all test-portable test-perturbed lab notebooks lock clean distclean

help:
	@echo "make book            install what is needed into .venv and build the book into _build/html"
	@echo "make lab             open the notebooks in JupyterLab"
	@echo "make test            everything that CI checks (ONLY=units,lint picks phases; KEEP_GOING=1)"
	@echo "make test-all        the same, and what is too slow for every change (CI runs it once a week)"
	@echo "make test-portable   the notebooks again, as on another processor (THREADS=2 for two threads)"
	@echo "make test-perturbed  the notebooks again, every matrix product off in its last place (NB=path for one)"
	@echo "make notebooks       run the committed notebooks again and store their outputs (NB=path for one)"
	@echo "make env             only the environment in .venv (PYTHON=python3.12 picks the Python)"
	@echo "make lock            refresh requirements.lock from pyproject.toml"
	@echo "make clean           remove what was built (_build, caches)"
	@echo "make distclean       the same, and .venv"

env:
	@sh $(TOOLS)/bootstrap.sh "$(PYTHON)"

book: env
	@$(PY) $(TOOLS)/build.py

test: env
	@$(PY) $(TOOLS)/checks.py $(if $(ONLY),--only "$(ONLY)") $(if $(KEEP_GOING),--keep-going)

test-all: env
	@$(PY) $(TOOLS)/checks.py --all $(if $(KEEP_GOING),--keep-going)

test-portable: env
	@LLM_BOOK_THREADS=$(or $(THREADS),1) $(PY) $(TOOLS)/checks.py --only portable $(if $(NB),--notebook "$(NB)")

test-perturbed: env
	@$(PY) $(TOOLS)/checks.py --only perturbed $(if $(NB),--notebook "$(NB)")

lab: env
	@$(PY) $(TOOLS)/lab.py

notebooks: env
	@$(PY) $(TOOLS)/notebooks.py execute $(if $(NB),"$(NB)")

lock: env
	@$(PY) $(TOOLS)/lock.py

clean:
	@rm -rf _build build .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .jupyter_cache
	@find . -name .git -prune -o -name .venv -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) \
	    -prune -exec rm -rf {} +

distclean: clean
	@rm -rf .venv llm_core.egg-info
