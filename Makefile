# make demo   train, evaluate and look at a small detector, on any machine with Python
# make test   run the tests
# make lint   check style
# make docs   build the documentation into build/docs; a warning is an error
# make check  lint, types, test and docs: what a change must pass
# make types  check types
# make mutate MODULE=mvitv2_det/…  measure how well tests hold a module; see tools/mutate.py
# make clean  remove what these made

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python -W ignore

.PHONY: demo test lint types docs check mutate clean setup

setup: $(VENV)/installed

# An existing environment is kept: a Detectron2 in it is used as it is.
$(VENV)/installed: pyproject.toml tools/install_detectron2.py
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[demo,test,lint,docs]'
	$(VENV)/bin/python tools/install_detectron2.py
	touch $@

demo: setup
	$(RUN) tools/make_digits.py --output datasets/digits
	$(RUN) train_net.py --config-file configs/demo.py
	$(RUN) -m mvitv2_det draw output/demo

# Workers of one thread each: threads of several would wait for each other.
test: setup
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# API pages are written again each time: one of a module that is gone would remain otherwise.
docs: setup
	rm -rf docs/api build/docs
	$(RUN) -m sphinx --builder html --fail-on-warning --keep-going --quiet docs build/docs

check: lint types test docs

types: setup
	$(VENV)/bin/mypy

MINUTES ?= 15

mutate: setup
	@test -n "$(MODULE)" || { echo 'name a module: make mutate MODULE=mvitv2_det/costs.py'; exit 2; }
	$(RUN) tools/mutate.py $(MODULE) $(TESTS) --minutes $(MINUTES)

clean:
	rm -rf $(VENV) output datasets build dist docs/api
