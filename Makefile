# make demo   installs the package and trains the MNIST network dense, masked and truly sparse
# make test   installs the package and passes the tests
# make check  lint, format, types, and who imports whom
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EPOCHS ?= 3
OUT ?= runs/demo

.PHONY: install demo test check format wheel clean

install: $(INSTALLED)

# Python sources are used where they lie; a change of the kernels or of the build needs a new install.
$(INSTALLED): pyproject.toml CMakeLists.txt constraints.txt $(shell find kernels bindings -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,check]"
	touch $(INSTALLED)

demo: $(INSTALLED)
	rm -rf $(OUT)
	$(BIN)/truesparse train mnist-cnn --algorithm rigl --sparsity 0.95 --compare dense,masked,sparse --epochs $(EPOCHS) --out $(OUT)

test: $(INSTALLED)
	$(BIN)/python -m pytest -q

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_architecture.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(INSTALLED)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist
