PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
QUICKSTART := output/quickstart
CONFIG := configs/quickstart.yaml
MODEL := $(QUICKSTART)/best_model/model.pdparams
JOBS ?= 2
SKIPPED := build/skipped.txt
PYTEST = $(if $(COVERAGE),$(VENV)/bin/coverage run,$(RUN)) -m pytest

.PHONY: quickstart gpu test gpu-branches fast fast-paddle slow optional lint coverage docs soak fuzz wheel lock clean

# Draw a dataset, train SegFormer-B0 on it, evaluate it and write predictions. Needs no GPU.
quickstart: $(VENV)/ready
	$(RUN) tools/make_scenes.py --save_dir data/scenes
	rm -rf $(QUICKSTART)
	$(RUN) tools/train.py --config $(CONFIG) --save_dir $(QUICKSTART) --save_interval 100 --do_eval
	@echo; echo "== single scale"
	$(RUN) tools/val.py --config $(CONFIG) --model_path $(MODEL)
	@echo; echo "== multi-scale + flip"
	$(RUN) tools/val.py --config $(CONFIG) --model_path $(MODEL) --aug_eval
	$(RUN) tools/predict.py --config $(CONFIG) --model_path $(MODEL) \
		--image_path data/scenes/images/validation --save_dir $(QUICKSTART)/pictures
	@echo; echo "Trained model:  $(MODEL)"
	@echo "Overlays:       $(QUICKSTART)/pictures/added_prediction/"
	@echo "Color maps:     $(QUICKSTART)/pictures/pseudo_color_prediction/"

# Check this machine before training on it: on a GPU in less than ten minutes, on a CPU in a few.
gpu: $(VENV)/ready
	mkdir -p build
	$(RUN) tools/doctor.py --json build/doctor.json

# The tests that need only the requirements, on JOBS processes of one thread each. The slow ones run
# in make slow; those skipped because an optional package is missing run in make optional.
test: $(VENV)/ready-test
	OMP_NUM_THREADS=1 $(PYTEST) -n $(JOBS) --dist loadfile -m "not slow" --list-skipped=$(SKIPPED)

# The tests of operators, models, training steps and inference once more on the CPU, with the
# branches for GPUs; it fails if one of these is not taken. See tests/gpu_branches.py.
gpu-branches: $(VENV)/ready-test
	OMP_NUM_THREADS=1 $(PYTEST) -n $(JOBS) --dist loadfile -m "not slow" --force-gpu-branches \
		--require-all-gpu-branches tests/ops tests/models tests/engine tests/inference

# The tests that neither train a model nor start a process, within a minute.
fast: $(VENV)/ready-test
	OMP_NUM_THREADS=1 $(PYTEST) -n $(JOBS) --dist loadfile -m "not slow and not integration"

# The same with another version of Paddle, and a short run of each command.
PADDLE ?= 2.6.2
PADDLE_VENV = build/venv-paddle-$(PADDLE)
fast-paddle:
	$(MAKE) $(PADDLE_VENV)/ready-test VENV=$(PADDLE_VENV)
	$(PADDLE_VENV)/bin/pip install -q paddlepaddle==$(PADDLE)
	$(MAKE) fast VENV=$(PADDLE_VENV)
	bash tests/check_installed.sh $(PADDLE_VENV)/bin/segformer

# Full-size models, packaging, the documentation's commands, browser tests and SEQUENCES random
# sequences of faults. They need all optional packages, and the system's Chromium.
slow: $(VENV)/ready-optional
	$(PYTEST) -m slow

# The tests that make test skipped, with all optional packages: the comparison with PyTorch and
# Hugging Face's transformers, ONNX, OpenVINO and the server.
optional: $(VENV)/ready-optional
	test ! -s $(SKIPPED) || OMP_NUM_THREADS=1 $(PYTEST) -n $(JOBS) -m "not slow" @$(SKIPPED)

lint: $(VENV)/ready-test
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

# All of the above, and the lines and branches that they do not cover.
coverage: $(VENV)/ready-optional
	$(VENV)/bin/coverage erase
	$(MAKE) COVERAGE=1 test
	$(MAKE) COVERAGE=1 optional
	$(MAKE) COVERAGE=1 slow
	$(VENV)/bin/coverage combine -q
	$(VENV)/bin/coverage report

# Build the site from README.md, docs/ and the docstrings into site/. Broken links fail the build
# (only without --quiet, with which MkDocs does not count warnings).
docs: $(VENV)/ready
	$(VENV)/bin/pip install -q -r requirements-docs.txt
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

# Check that memory does not grow in 2,000 iterations and 10,000 predictions. Takes half an hour, and
# needs the dataset and model of make quickstart.
soak: $(VENV)/ready
	$(RUN) benchmarks/soak.py

# Fuzz the readers of checkpoints, archives, configs, file lists, images, manifests and the command
# line for SECONDS each; see tests/fuzz/fuzzing.py. Crashing inputs and logs are written to output/fuzz.
SECONDS ?= 300
fuzz: $(VENV)/ready-test
	$(VENV)/bin/pip install -q -r requirements-fuzz.txt
	@$(RUN) -c "import atheris" || { echo "make fuzz: needs Python 3.11 to 3.13, where atheris is"; exit 2; }
	mkdir -p output/fuzz
	@for target in checkpoints archives states configs lists images manifests flags; do \
		echo "== $$target"; $(RUN) tests/fuzz/$$target.py -max_total_time=$(SECONDS) \
			-artifact_prefix=output/fuzz/$$target- > output/fuzz/$$target.log 2>&1 \
			|| { tail -40 output/fuzz/$$target.log; exit 1; }; \
		tail -1 output/fuzz/$$target.log; done

# Build the wheel, with configs and command line, into dist/.
wheel: $(VENV)/ready
	rm -rf build
	$(VENV)/bin/pip wheel -q --no-deps --wheel-dir dist .

# Update requirements.txt, which pins every package that make quickstart installs on Python 3.9 to
# 3.13, from the bounds in pyproject.toml and requirements.in. Needs uv (pip install uv).
lock:
	rm -f requirements.txt
	uv pip compile -q --universal --python-version 3.9 --extra cpu --no-annotate \
		--overrides requirements.in pyproject.toml requirements.in -o requirements.txt \
		--custom-compile-command "make lock  (install it with pip install --no-deps -r)"

clean:
	rm -rf $(VENV) data/scenes $(QUICKSTART) build dist site

# Python 3.9 comes with a pip too old for editable installs from pyproject.toml. --no-deps:
# requirements.txt is complete, and on Python 3.13 its OpenCV is newer than PaddleSeg's bound.
$(VENV)/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q "pip>=21.3"
	$(VENV)/bin/pip install -q --no-deps -r requirements.txt -e .
	touch $@

$(VENV)/ready-test: requirements-test.txt $(VENV)/ready
	$(VENV)/bin/pip install -q -r requirements-test.txt
	touch $@

$(VENV)/ready-optional: requirements-parity.txt requirements-onnx.txt requirements-raster.txt requirements-browser.txt $(VENV)/ready-test
	$(VENV)/bin/pip install -q $(patsubst %,-r %,$(filter %.txt,$^))
	touch $@
