# The targets make the environment first; everything stays below this folder.
PYTHON ?= python3
VENV ?= .venv
# paddlepaddle-gpu and paddlepaddle both provide `paddle`; install exactly one. Override with PADDLE=cpu or PADDLE=gpu.
PADDLE ?= $(if $(shell command -v nvidia-smi),gpu,cpu)
BIN := $(VENV)/bin

.PHONY: demo test slow lint clean

$(VENV)/ready: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[$(PADDLE),deploy,dev]"
	touch $@

demo: $(VENV)/ready
	$(BIN)/ppconvmixer finetune -c configs/digits_finetune.yaml --output runs/demo --overwrite
	$(BIN)/ppconvmixer finetune -c configs/digits_finetune.yaml -o model.weights=null train.epochs=10 --output runs/demo_scratch --overwrite
	$(BIN)/ppconvmixer eval -c runs/demo/recipe.yaml --weights runs/demo/best.pdparams
	$(BIN)/python tools/compare.py runs/demo runs/demo_scratch
	@echo "The curves are in runs. To see them:"
	@echo "  $(BIN)/visualdl --logdir runs --port 8040    and open http://127.0.0.1:8040"

test: $(VENV)/ready
	$(BIN)/python -m pytest

slow: $(VENV)/ready
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info
