# make demo         train, evaluate and look at a small detector, on any machine with Python
# make test         run the tests, with the packages of requirements/lock.txt
# make test-long    run those that take longest, which make test leaves out
# make test-floors  run the fast part with the oldest packages that pyproject.toml allows, under
#                   Python 3.10 or 3.11
# make test-newest  run the fast part with the newest packages that the registry offers
# make lint         check style
# make types        check types
# make docs         build the documentation into build/docs; a warning is an error
# make check        lint, types, test, test-long and docs: what a change must pass
# make mutate MODULE=mvitv2_det/…  measure how well tests hold a module; see tools/mutate.py
# make lock         renew requirements/lock.txt
# make clean        remove what these made
#
# PYTHON=python3.12 chooses the Python of a new environment, VENV=folder the environment. A torch
# that VENV has already is kept: for a machine without a GPU, install torch and torchvision for
# CPUs into it first, as PyTorch's site says, to be spared several gigabytes of CUDA libraries.

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
DETECTRON2 = tools/install_detectron2.py
FAST_TESTS = tests/attention tests/backbone tests/fused tests/weights tests/test_costs.py \
	tests/test_ablation_costs.py tests/test_configs.py tests/test_ablation_configs.py \
	tests/test_export.py
# Workers of one thread each: threads of several would wait for each other. A worker without tests
# takes over some of another's; what is left together shares what it has loaded and computed.
PYTEST = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest --numprocesses logical --maxprocesses 4 \
	--dist worksteal

.PHONY: demo test test-long test-floors test-newest lint types docs check mutate lock clean setup always

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml requirements/lock.txt tools/install_locked.py $(DETECTRON2)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(RUN) tools/install_locked.py
	$(RUN) $(DETECTRON2)
	touch $@

lock: setup
	$(VENV)/bin/uv pip compile --universal --python-version 3.10 --extra dev --upgrade --quiet \
		--generate-hashes --no-annotate --no-header --no-emit-index-url \
		--constraints requirements/held-back.txt --output-file requirements/lock.txt pyproject.toml

demo: setup
	$(RUN) tools/make_digits.py --output datasets/digits
	$(RUN) train_net.py --config-file configs/demo.py --resume
	$(RUN) -m mvitv2_det draw output/demo

test: setup
	$(call PYTEST,$(VENV))

test-long: setup
	$(call PYTEST,$(VENV)) -m long

# Environments of their own, made by pip's resolver: of the oldest packages, and of the newest.
$(VENV)-floors/installed: requirements/floors.txt
$(VENV)-newest/installed: always
$(VENV)-%/installed: pyproject.toml $(DETECTRON2)
	test -x $(VENV)-$*/bin/python || $(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager \
		$(addprefix --constraint ,$(filter %floors.txt,$^)) --editable '.[test]'
	$(VENV)-$*/bin/python $(DETECTRON2)
	touch $@

test-floors test-newest: test-%: $(VENV)-%/installed
	$(call PYTEST,$(VENV)-$*) $(FAST_TESTS)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# API pages are written again each time: one of a module that is gone would remain otherwise.
docs: setup
	rm -rf docs/api build/docs
	$(RUN) -m sphinx --builder html --fail-on-warning --keep-going --quiet docs build/docs

check: lint types test test-long docs

types: setup
	$(VENV)/bin/mypy

MINUTES ?= 15

mutate: setup
	@test -n "$(MODULE)" || { echo 'name a module: make mutate MODULE=mvitv2_det/costs.py'; exit 2; }
	$(RUN) tools/mutate.py $(MODULE) $(TESTS) --minutes $(MINUTES)

clean:
	rm -rf $(VENV) $(VENV)-floors $(VENV)-newest output datasets build dist docs/api
