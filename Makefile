# make builds in .venv and out/ only; `make clean` removes both.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Where a ROS 2 installation is sourced, it is used as it is, with the NumPy that its messages were compiled against;
# elsewhere rclpy comes as wheels.
ifneq ($(AMENT_PREFIX_PATH)$(ROS_DISTRO),)
  SYSTEM_ROS := $(shell $(PYTHON) -c 'import rclpy' 2>/dev/null && echo yes)
endif
ifeq ($(SYSTEM_ROS),yes)
  BASE := $(VENV)/system-ros
  VENV_FLAGS := --system-site-packages
  PINS := $(VENV)/numpy.txt
  DEMO := .
  TEST := .[train,openvino,sim,dev]
else
  BASE := $(VENV)/wheels
  PINS := constraints.txt
  DEMO := .[ros]
  TEST := .[ros,train,openvino,sim,dev]
endif

# Another Python or another kind of ROS has other stamps, and so makes a new .venv. A stamp is written last: what was
# interrupted is done again.
PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
BASE := $(BASE)-python$(PYTHON_VERSION).stamp
DEMO_STAMP := $(VENV)/demo.stamp
TEST_STAMP := $(VENV)/test.stamp
PACKAGE := pyproject.toml setup.cfg setup.py constraints.txt Makefile

# With this variable inherited, a Python with ROS wheels takes itself for set up and does not find their libraries.
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE

.DEFAULT_GOAL := help
.PHONY: help demo test venv bench clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/\1\t\2/p' Makefile | expand -t 8

demo: $(DEMO_STAMP)  ## segment a clip through ROS nodes; INPUT=folder|video|bag TOPIC=name RATE=Hz MODEL=name|file OUT=folder
	@$(BIN)/lix demo $${INPUT:+"$$INPUT"} $${TOPIC:+--topic "$$TOPIC"} $${RATE:+--rate "$$RATE"} $${MODEL:+--model "$$MODEL"} $${OUT:+--out "$$OUT"}

# Files of tests side by side, each process of one thread. The files stay in their order, in which long ones come early enough.
test: $(TEST_STAMP)  ## run all tests; ARGS="-k launch" selects, ARGS="-n 0 --pdb" debugs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

venv: $(DEMO_STAMP)  ## make .venv, with what the nodes and the demo need

bench:  ## list the benchmarks
	@ls bench/*.py

clean:  ## remove .venv, out/ (trained runs in it too) and all that building leaves
	rm -rf $(VENV) out build install log dist *.egg-info .pytest_cache .hypothesis .ruff_cache

$(BASE):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "lix needs Python 3.10 to 3.13; $(PYTHON) is $(or $(PYTHON_VERSION),missing). Name another: make PYTHON=python3.12 ..."; exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; } >&2
	$(PYTHON) -m venv --clear $(VENV_FLAGS) $(VENV)
	@touch $@

$(VENV)/numpy.txt: $(BASE)
	@$(PYTHON) -c 'import numpy; print("numpy==" + numpy.__version__)' > $@

$(DEMO_STAMP): $(BASE) $(PINS) $(PACKAGE)
	$(BIN)/python -m pip install -q -c $(PINS) -e '$(DEMO)'
	@touch $@

$(TEST_STAMP): $(BASE) $(PINS) $(PACKAGE)
	$(BIN)/python -m pip install -q -c $(PINS) -e '$(TEST)'
	@touch $(DEMO_STAMP) $@
