PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
QUICKSTART := output/quickstart
CONFIG := configs/quickstart.yaml
MODEL := $(QUICKSTART)/best_model/model.pdparams

.PHONY: quickstart test lint parity deploy coverage docs kills soak fuzz wheel clean

# Draws a data set, trains SegFormer-B0 on it, evaluates it, writes pictures. Needs no GPU.
quickstart: $(VENV)/ready
	$(RUN) tools/make_scenes.py --save_dir data/scenes
	rm -rf $(QUICKSTART)
	$(RUN) tools/train.py --config $(CONFIG) --save_dir $(QUICKSTART) --save_interval 100 --do_eval
	@echo; echo "== single scale"
	$(RUN) tools/val.py --config $(CONFIG) --model_path $(MODEL)
	@echo; echo "== multi-scale and flip"
	$(RUN) tools/val.py --config $(CONFIG) --model_path $(MODEL) --aug_eval
	$(RUN) tools/predict.py --config $(CONFIG) --model_path $(MODEL) \
		--image_path data/scenes/images/validation --save_dir $(QUICKSTART)/pictures
	@echo; echo "Trained model:  $(MODEL)"
	@echo "Overlays:       $(QUICKSTART)/pictures/added_prediction/"
	@echo "Color maps:    $(QUICKSTART)/pictures/pseudo_color_prediction/"

# All but the documentation's commands, wheels and random kills: make coverage, deploy and kills.
test: $(VENV)/ready-test
	$(RUN) -m pytest --ignore=tests/docs --ignore=tests/test_packaging.py \
		--deselect tests/engine/test_trainer.py::test_a_run_killed_at_random_moments_always_resumes

lint: $(VENV)/ready-test
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

# The tests that need PyTorch and Hugging Face's transformers.
parity: $(VENV)/ready-test
	$(VENV)/bin/pip install -q -r requirements-parity.txt
	$(RUN) -m pytest tests/weights/test_huggingface.py tests/weights/test_files.py

# The tests of exported graphs, of pages in a browser, which need the system's Chromium, and of the
# documentation's commands.
deploy: $(VENV)/ready-test
	$(VENV)/bin/pip install -q -r requirements-onnx.txt -r requirements-browser.txt
	$(RUN) -m pytest tests/deploy tests/browser tests/docs

# All tests with all optional packages, and which lines and branches they leave out.
coverage: $(VENV)/ready-test
	$(VENV)/bin/pip install -q -r requirements-parity.txt -r requirements-onnx.txt \
		-r requirements-browser.txt
	mkdir -p build/coverage
	$(VENV)/bin/coverage erase
	$(VENV)/bin/coverage run -m pytest
	$(VENV)/bin/coverage combine -q
	$(VENV)/bin/coverage report

# The site of README.md, docs/ and the docstrings, in site/. A broken link is an error, but not with
# --quiet, under which MkDocs counts no warnings.
docs: $(VENV)/ready-test
	$(VENV)/bin/pip install -q -r requirements-docs.txt
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

# Kills a training run at thirty random moments, and compares what comes out.
kills: $(VENV)/ready-test
	KILLS=30 $(RUN) -m pytest tests/engine/test_trainer.py -k killed

# Two thousand iterations and ten thousand predictions, and whether memory grows; half an hour. Needs
# the quick start's data and model: make quickstart comes first.
soak: $(VENV)/ready
	$(RUN) benchmarks/soak.py

# Mutates checkpoints, configs, file lists and images, and watches what reads them; see
# tests/fuzz/fuzzing.py. What an input breaks with is left in output/fuzz.
SECONDS ?= 300
fuzz: $(VENV)/ready-test
	$(VENV)/bin/pip install -q -r requirements-fuzz.txt
	mkdir -p output/fuzz
	@for target in checkpoints states configs lists images; do \
		echo "== $$target"; $(RUN) tests/fuzz/$$target.py -max_total_time=$(SECONDS) \
			-artifact_prefix=output/fuzz/$$target- > output/fuzz/$$target.log 2>&1 \
			|| { tail -40 output/fuzz/$$target.log; exit 1; }; \
		tail -1 output/fuzz/$$target.log; done

# The package with its configs and tools, for pip install on other machines, into dist/.
wheel: $(VENV)/ready
	rm -rf build
	$(VENV)/bin/pip wheel -q --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) data/scenes $(QUICKSTART) build dist site

# With the pip that comes with Python 3.9, today's setuptools cannot install -e.
$(VENV)/ready: requirements.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q "pip>=21.3"
	$(VENV)/bin/pip install -q -r requirements.txt -e .
	touch $@

$(VENV)/ready-test: requirements-test.txt $(VENV)/ready
	$(VENV)/bin/pip install -q -r requirements-test.txt
	touch $@
