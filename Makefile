PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
QUICKSTART := output/quickstart
CONFIG := configs/quickstart.yaml
MODEL := $(QUICKSTART)/best_model/model.pdparams

.PHONY: quickstart test lint parity deploy coverage docs kills soak fuzz wheel clean

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

# All tests except the slow ones: the documentation's commands, packaging and random kills, which
# make coverage and make kills run.
test: $(VENV)/ready-test
	$(RUN) -m pytest --ignore=tests/docs --ignore=tests/test_packaging.py \
		--deselect tests/engine/test_trainer.py::test_a_run_killed_at_random_moments_always_resumes

lint: $(VENV)/ready-test
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

# Parity tests, which need PyTorch and Hugging Face transformers.
parity: $(VENV)/ready-test
	$(VENV)/bin/pip install -q -r requirements-parity.txt
	$(RUN) -m pytest tests/weights/test_huggingface.py tests/weights/test_checkpoint_io.py

# Tests of exported graphs, of the web pages (which need the system's Chromium) and of the
# documentation's commands.
deploy: $(VENV)/ready-test
	$(VENV)/bin/pip install -q -r requirements-onnx.txt -r requirements-browser.txt
	$(RUN) -m pytest tests/deploy tests/browser tests/docs

# All tests with all optional packages; reports the lines and branches that they do not cover.
coverage: $(VENV)/ready-test
	$(VENV)/bin/pip install -q -r requirements-parity.txt -r requirements-onnx.txt \
		-r requirements-browser.txt
	mkdir -p build/coverage
	$(VENV)/bin/coverage erase
	$(VENV)/bin/coverage run -m pytest
	$(VENV)/bin/coverage combine -q
	$(VENV)/bin/coverage report

# Build the site from README.md, docs/ and the docstrings into site/. Broken links fail the build
# (only without --quiet, with which MkDocs does not count warnings).
docs: $(VENV)/ready-test
	$(VENV)/bin/pip install -q -r requirements-docs.txt
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

# Kill a training run at thirty random moments, resume it and compare the results.
kills: $(VENV)/ready-test
	KILLS=30 $(RUN) -m pytest tests/engine/test_trainer.py -k killed

# Check that memory does not grow in 2,000 iterations and 10,000 predictions. Takes half an hour, and
# needs the dataset and model of make quickstart.
soak: $(VENV)/ready
	$(RUN) benchmarks/soak.py

# Fuzz the readers of checkpoints, configs, file lists and images for SECONDS each; see
# tests/fuzz/fuzzing.py. Crashing inputs and logs are written to output/fuzz.
SECONDS ?= 300
fuzz: $(VENV)/ready-test
	$(VENV)/bin/pip install -q -r requirements-fuzz.txt
	mkdir -p output/fuzz
	@for target in checkpoints states configs lists images; do \
		echo "== $$target"; $(RUN) tests/fuzz/$$target.py -max_total_time=$(SECONDS) \
			-artifact_prefix=output/fuzz/$$target- > output/fuzz/$$target.log 2>&1 \
			|| { tail -40 output/fuzz/$$target.log; exit 1; }; \
		tail -1 output/fuzz/$$target.log; done

# Build the wheel, with configs and command line, into dist/.
wheel: $(VENV)/ready
	rm -rf build
	$(VENV)/bin/pip wheel -q --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) data/scenes $(QUICKSTART) build dist site

# Python 3.9 comes with a pip too old for editable installs from pyproject.toml.
$(VENV)/ready: requirements.txt setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q "pip>=21.3"
	$(VENV)/bin/pip install -q -r requirements.txt -e .
	touch $@

$(VENV)/ready-test: requirements-test.txt $(VENV)/ready
	$(VENV)/bin/pip install -q -r requirements-test.txt
	touch $@
