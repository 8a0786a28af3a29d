# make demo   from nothing to a report, in .venv
# make test   lint, types and tests in the same environment
# make venv   .venv alone, with the exact versions of constraints.txt
# make docs   the tables of config/README.md, from the schema
#
# Without a GPU, a CPU build of PyTorch saves gigabytes: make .venv yourself, install PyTorch into it
# as pytorch.org/get-started says for "CPU", and `make demo` keeps it.

PYTHON ?= python3
CORES ?= all
VENV := .venv
INSTALLED := $(VENV)/.installed
WITH_VENV := . $(VENV)/bin/activate &&

.PHONY: demo test venv lint docs clean

demo: $(INSTALLED)
	$(WITH_VENV) snakemake --cores $(CORES)
	@echo "Report: $(CURDIR)/results/quickstart/report.html"

test: lint
	$(WITH_VENV) python -m pytest -n 2 --dist loadfile

venv: $(INSTALLED)

lint: $(INSTALLED)
	$(WITH_VENV) ruff check .
	$(WITH_VENV) ruff format --check .
	$(WITH_VENV) snakefmt --check Snakefile workflow
	$(WITH_VENV) mypy
	$(WITH_VENV) snakemake --lint

docs: $(INSTALLED)
	$(WITH_VENV) python tests/test_config_readme.py

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .snakemake build *.egg-info
