# make demo   installs the package and trains the MNIST network dense, masked and truly sparse
# make test   installs the package and passes the tests
# make bench  measures truesparse beside dense PyTorch: the table in README.md, docs/images/speedup.png
# make check  lint, format, types, and who imports whom
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EPOCHS ?= 3
OUT ?= runs/demo
BENCH := curve linear batches conv step memory
SECONDS_A_LINE ?= 0.5

.PHONY: install demo bench test check format wheel clean

install: $(INSTALLED)

# Python sources are used where they lie; a change of the kernels or of the build needs a new install.
$(INSTALLED): pyproject.toml CMakeLists.txt constraints.txt $(shell find kernels bindings -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,check,bench]"
	touch $(INSTALLED)

demo: $(INSTALLED)
	rm -rf $(OUT)
	$(BIN)/truesparse train mnist-cnn --algorithm rigl --sparsity 0.95 --compare dense,masked,sparse --epochs $(EPOCHS) --out $(OUT)

bench: $(INSTALLED)
	mkdir -p build/bench
	$(BIN)/truesparse bench linear --sparsity 0.3,0.5,0.7,0.8,0.9,0.95,0.98,0.99 --seconds $(SECONDS_A_LINE) --json build/bench/curve.json
	$(BIN)/truesparse bench linear --shape 768x3072 --shape 4096x4096 --seconds $(SECONDS_A_LINE) --json build/bench/linear.json
	$(BIN)/truesparse bench linear --batch 64,16 --seconds $(SECONDS_A_LINE) --json build/bench/batches.json
	$(BIN)/truesparse bench conv --seconds $(SECONDS_A_LINE) --json build/bench/conv.json
	$(BIN)/truesparse bench step --json build/bench/step.json
	$(BIN)/truesparse bench memory --json build/bench/memory.json
	$(BIN)/truesparse bench page $(BENCH:%=build/bench/%.json) --into README.md --plot docs/images/speedup.png

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
