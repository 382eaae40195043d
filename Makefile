# Both targets make the environment first; everything stays below this folder.
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
	$(BIN)/ppconvmixer finetune -c configs/digits.yaml --output runs/demo --overwrite
	$(BIN)/ppconvmixer eval -c runs/demo/recipe.yaml --weights runs/demo/best.pdparams
	@echo "The curves are in runs/demo/visualdl. To see them:"
	@echo "  $(BIN)/visualdl --logdir runs/demo/visualdl --port 8040    and open http://127.0.0.1:8040"

test: $(VENV)/ready
	$(BIN)/python -m pytest

slow: $(VENV)/ready
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info
