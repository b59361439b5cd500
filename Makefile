# Everything runs in .venv, from the versions in constraints.txt.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
# The tests of a file stay in one process (loadfile), so that what they share, a built page or a trained captioner, is made
# once.
PYTEST := -m pytest -n auto --dist loadfile
INSTALLED := $(VENV)/.installed

.PHONY: setup quickstart results test test-fast test-all doctest faults test-oldest test-main coverage style hooks wheel dist bench browser docs

setup: $(INSTALLED)

# torch by itself first: asked for together with the rest, the resolver may look at builds with CUDA packages.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install -q -c constraints.txt torch
	$(RUN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

quickstart: setup
	rm -rf outputs/quickstart
	$(RUN)/accelerate launch training/train.py --config training/configs/quickstart.yaml

# Trains and measures the table of model_cards/README.md, one row after the other, from DATA, a folder with
# flickr8k/train.parquet, flickr8k/validation.parquet and efficientnet_lite2_imagenet/. A row that is there is left as it
# is, one that was stopped goes on. ROWS="additive dot" makes some of them, -n only prints the commands.
DATA ?= $(or $(HF_CAPTIONER_DATA),../shared/data)
RESULTS ?= outputs/results
ROWS ?= show_and_tell_lstm show_and_tell_gru additive dot scaled_dot multi_head hard hard_multi_head \
	cnn_transformer vit_transformer distilled additive_scst cnn_transformer_scst unfrozen unfrozen_scst
SEED ?= 0
SOFT := --config flickr8k_rnn_additive
REWARD := --config flickr8k_rnn_additive_scst
NEW := --vision_model $(DATA)/efficientnet_lite2_imagenet
CACHED := --feature_cache $(RESULTS)/features

results: $(ROWS:%=$(RESULTS)/%/evaluation/metrics.json)

# At the soft captioner's learning rate an RNN whose words reach the output through its state alone has not learned its
# language by the end.
SHOW_AND_TELL := $(SOFT) $(NEW) $(CACHED) --learning_rate 4e-3
show_and_tell_lstm := $(SHOW_AND_TELL) --model_config '{"attention": "none", "attention_size": null, "context_norm": true}'
show_and_tell_gru := $(SHOW_AND_TELL) \
	--model_config '{"attention": "none", "attention_size": null, "context_norm": true, "cell": "gru"}'
additive := $(SOFT) $(NEW) $(CACHED)
dot := $(SOFT) $(NEW) $(CACHED) --model_config '{"attention": "dot"}'
scaled_dot := $(SOFT) $(NEW) $(CACHED) --model_config '{"attention": "scaled_dot"}'
multi_head := $(SOFT) $(NEW) $(CACHED) --model_config '{"attention": "multi_head"}'
cnn_transformer := --config flickr8k_cnn_transformer $(NEW) $(CACHED)
vit_transformer := --config flickr8k_vit_transformer
# An additive captioner that also learns what these expect, from the views that the CNN-Transformer is trained on.
TEACHERS := additive multi_head cnn_transformer
distilled := $(SOFT) $(NEW) $(CACHED) --cached_crops 2 --smallest_crop 0.7 \
	--objective distillation --teacher_weight 0.7 --teachers $(TEACHERS:%=$(RESULTS)/%)
hard := --config flickr8k_rnn_hard $(CACHED) --model $(RESULTS)/additive
hard_multi_head := --config flickr8k_rnn_hard $(CACHED) --model $(RESULTS)/multi_head
unfrozen := --config flickr8k_rnn_additive_unfrozen --model $(RESULTS)/additive
additive_scst := $(REWARD) $(CACHED) --model $(RESULTS)/additive
cnn_transformer_scst := $(REWARD) $(CACHED) --model $(RESULTS)/cnn_transformer
unfrozen_scst := $(REWARD) $(CACHED) --model $(RESULTS)/unfrozen

# training.json is what a training writes when everything else is there
$(RESULTS)/hard/training.json $(RESULTS)/unfrozen/training.json $(RESULTS)/additive_scst/training.json: \
	$(RESULTS)/additive/training.json
$(RESULTS)/hard_multi_head/training.json: $(RESULTS)/multi_head/training.json
$(RESULTS)/cnn_transformer_scst/training.json: $(RESULTS)/cnn_transformer/training.json
$(RESULTS)/distilled/training.json: $(TEACHERS:%=$(RESULTS)/%/training.json)
$(RESULTS)/unfrozen_scst/training.json: $(RESULTS)/unfrozen/training.json

$(RESULTS)/%/training.json: | setup
	$(RUN)/accelerate launch training/train.py $($*) --output_dir $(@D) --seed $(SEED) \
		--train_data $(DATA)/flickr8k/train.parquet --eval_data $(DATA)/flickr8k/validation.parquet

$(RESULTS)/%/evaluation/metrics.json: $(RESULTS)/%/training.json
	$(RUN)/hf-captioner evaluate --model $(RESULTS)/$* --data $(DATA)/flickr8k/validation.parquet --output_dir $(@D)
	$(RUN)/hf-captioner card --model $(RESULTS)/$* --evaluation $(@D)

.SECONDARY: # without it make deletes training.json, which only led to metrics.json

test: setup
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/python tests/transformers_common/fetch.py
	OMP_NUM_THREADS=1 $(RUN)/python $(PYTEST)

test-fast: setup
	OMP_NUM_THREADS=1 $(RUN)/python $(PYTEST) -m "not slow" --ignore tests/transformers_common

# Every test, those that take minutes too.
test-all: setup
	$(RUN)/python tests/transformers_common/fetch.py
	OMP_NUM_THREADS=1 $(RUN)/python $(PYTEST) -m ""

# The examples of all docstrings; NAME=bleu runs those of one name.
doctest: setup
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n auto -m "" tests/test_docstrings.py $(if $(NAME),-k "$(NAME)")

# All of tests/reliability; what they injected and what was lost becomes the table of docs/reliability.md.
faults: setup
	rm -f outputs/faults.jsonl
	mkdir -p outputs
	HF_CAPTIONER_FAULTS=$(CURDIR)/outputs/faults.jsonl OMP_NUM_THREADS=1 \
		$(RUN)/python $(PYTEST) -m "" tests/reliability; status=$$?; \
		$(RUN)/python tests/testing/faults.py outputs/faults.jsonl docs/reliability.md && exit $$status

# Our tests with the oldest versions that are allowed, in an environment of their own.
test-oldest: OLDEST := .venv-oldest/bin/python
test-oldest:
	test -x $(OLDEST) || $(PYTHON) -m venv .venv-oldest
	$(OLDEST) -m pip install -q -c constraints-oldest.txt torch
	$(OLDEST) -m pip install -q -c constraints-oldest.txt -e ".[dev]"
	OMP_NUM_THREADS=1 $(OLDEST) $(PYTEST) --ignore tests/transformers_common

# Our tests with transformers' development version, and what it may need newer versions of, in an environment of its own.
test-main: MAIN := .venv-main/bin/python
test-main: TRANSFORMERS ?= git+https://github.com/huggingface/transformers
test-main:
	test -x $(MAIN) || $(PYTHON) -m venv .venv-main
	grep -vE '^(accelerate|huggingface_hub|safetensors|tokenizers|transformers)==' constraints.txt > .venv-main/constraints.txt
	$(MAIN) -m pip install -q -c .venv-main/constraints.txt torch
	$(MAIN) -m pip install -q -c .venv-main/constraints.txt -e ".[dev]" "transformers @ $(TRANSFORMERS)"
	OMP_NUM_THREADS=1 $(MAIN) $(PYTEST) --ignore tests/transformers_common

# How much of the package the tests reach, those in fresh processes included; TESTS=tests/metrics measures a part.
coverage: setup
	$(RUN)/python tests/transformers_common/fetch.py
	OMP_NUM_THREADS=1 $(RUN)/python $(PYTEST) --cov --cov-report=term $(TESTS)

style: setup
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

# Formats and checks what is committed, from now on.
hooks: setup
	$(RUN)/pre-commit install

# The package as one file in dist/: pip installs it anywhere, the program, the card's template and the configs with it.
wheel: setup
	$(RUN)/python -m pip wheel -q --no-deps -w dist .

# The archives for PyPI, in dist/; RELEASING.md says what comes before and after.
dist: setup
	$(RUN)/python -m pip install -q -c constraints.txt -e ".[release]"
	rm -rf build dist
	$(RUN)/python -m build
	$(RUN)/python -m twine check --strict dist/*

# All that is compared with others, for an idle machine; BENCH=--release adds a line to benchmarks/history.jsonl.
bench: setup
	$(RUN)/hf-captioner benchmark --output_dir outputs/benchmark $(BENCH)
	$(RUN)/python training/benchmark_peers.py
	$(RUN)/python training/benchmark_metrics.py

# What the tests of pages drive, where there is none yet: Debian's Chromium, or elsewhere the one that playwright brings.
browser: setup
	command -v chromium || command -v chromium-browser || command -v google-chrome \
		|| apt-get install -y chromium || $(RUN)/python -m playwright install --with-deps chromium

# The site, in build/site; no network is needed to read it. Notebooks are executed where their outputs are not in
# .cache/notebooks; `make docs HF_CAPTIONER_EXECUTE=0` builds at once and shows those that are there.
docs: export NO_MKDOCS_2_WARNING := 1
docs: setup
	$(RUN)/python -m pip install -q -c constraints.txt -e ".[dev,docs]"
	$(RUN)/python -m mkdocs build --strict
