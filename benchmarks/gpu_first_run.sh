#!/usr/bin/env bash
# The first run on a GPU: is it right, what fails, how fast is it? In nine minutes, without network.
#
#   [STEPS="package tune cpu"] benchmarks/gpu_first_run.sh [--dry-run] [FOLDER]
#
# PYTHON (python3) has PyTorch, Triton and pytest. The wheels in build/gpu/wheels are installed beside it:
# the package's (`.venv-release/bin/python .ci/wheels.py linux-x86_64 --output build/gpu/wheels`) and
# those of peers. Without the package's, it is compiled here, for the baseline instruction set.
#
# Each step has a limit, and one that fails does not end the run. FOLDER (build/gpu/first-run) has at
# any time what was found so far: log.txt, failures.jsonl, gpu-DATE.json and .png, gpu-tune-DATE.json,
# cpu.txt. The time does not suffice for the last steps: STEPS asks for some in a second run.
# --dry-run goes through it without a GPU: in Triton's interpreter, with a few of the cases.

set -uo pipefail
cd "$(dirname "$0")/.."

DRY_RUN=
if [ "${1:-}" = --dry-run ]; then
  DRY_RUN=--dry-run
  export TRITON_INTERPRET=1 LAYERNORM_EVERY=20
  shift
fi
FOLDER=$(realpath -m "${1:-build/gpu/first-run}")
PYTHON=${PYTHON:-python3}
SITE=$PWD/build/gpu/site
LIMIT=540  # seconds for all steps; ${SECONDS} counts them
WORKERS=$(($(nproc) > 4 ? $(nproc) - 2 : 2))

export FAILURES=$FOLDER/failures.jsonl
export PYTHONPATH=$SITE:$PWD/benchmarks PYTHONUNBUFFERED=1
rm -rf "$FOLDER"
mkdir -p "$FOLDER"
touch "$FAILURES"

# step NAME LIMIT COMMAND...
step() {
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  [[ " ${STEPS:-$name} " == *" $name "* ]] || return 0
  limit=$((limit < LIMIT - SECONDS ? limit : LIMIT - SECONDS))
  if [ $limit -lt 5 ]; then
    echo "== $name: no time left"
    return
  fi
  echo "== $name, at most $limit s"
  timeout --signal=INT --kill-after=10 "$limit" "$@"
  echo "== $name: exit code $?, $((SECONDS - begin)) s"
}

versions() {
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv || echo "no nvidia-smi"
  command -v compute-sanitizer || echo "no compute-sanitizer"
  $PYTHON -VV
  $PYTHON -m pip list --format=freeze | grep -iE '^(torch|triton|numpy|jax|pytest)' | xargs
  git log -1 --format='commit %h of %cs' || true
}

package() {
  rm -rf "$SITE" && mkdir -p "$SITE"
  if ls build/gpu/wheels/*.whl; then
    $PYTHON -m pip install -q --no-index --no-deps --no-compile --target "$SITE" build/gpu/wheels/*.whl
    # Python reads .pth files in site-packages only.
    echo "import os, site; site.addsitedir(os.path.dirname(__file__))" > "$SITE/sitecustomize.py"
  fi
  if ! [ -d "$SITE/layernorm" ]; then
    cp -r src/layernorm "$SITE"
    cmake -S . -B build/gpu/native -DLAYERNORM_BASELINE_ONLY=ON -DCMAKE_BUILD_TYPE=Release \
      -DPython_EXECUTABLE="$(command -v $PYTHON)" --log-level=WARNING &&
      cmake --build build/gpu/native --parallel "$(nproc)" &&
      cmake --install build/gpu/native --prefix "$SITE"
  fi
  (cd "$FOLDER" && $PYTHON -c 'import layernorm.torch; print(layernorm.torch.__file__)')
}

tests() {  # FILE... as in tests/triton/test_triton_FILE.py
  $PYTHON -m pytest -p failures_as_json -p no:cacheprovider -n "$WORKERS" -q --tb=short -rfE \
    -o filterwarnings= -m gpu "${@/#/tests/triton/test_triton_}"
}

sanitized() {  # TOOL of compute-sanitizer
  if ! command -v compute-sanitizer > /dev/null; then
    echo "no compute-sanitizer"
    return
  fi
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 LAYERNORM_EVERY=4 compute-sanitizer --tool "$1" --error-exitcode 9 \
    $PYTHON -m pytest -p no:cacheprovider -q tests/triton/test_triton_each_kernel.py
}

cpu() {  # how the CPU's kernels scale with threads
  local threads
  for ((threads = 1; threads <= $(nproc); threads *= 2)); do
    $PYTHON -m layernorm bench --quick --front-end torch --peers torch --threads $threads
  done > "$FOLDER/cpu.txt"
}

export -f versions package tests sanitized cpu
export PYTHON SITE FOLDER WORKERS

{
  step versions 30 bash -c versions
  step package 90 bash -c package
  step each_kernel 70 bash -c 'tests each_kernel.py'
  step only_gpus 80 bash -c 'tests gpu.py'  # what only a GPU can show
  LAYERNORM_EVERY=${LAYERNORM_EVERY:-4} step tests 100 bash -c \
    'tests {same_bits,members,residual,gate,quantized,torch,contract}.py'
  step memcheck 40 bash -c 'sanitized memcheck'
  step racecheck 40 bash -c 'sanitized racecheck'
  step bench 210 "$PYTHON" benchmarks/gpu.py $DRY_RUN --minutes 3.3 --results "$FOLDER"
  XLA_PYTHON_CLIENT_PREALLOCATE=false step jax 45 \
    "$PYTHON" -m layernorm check --quick --front-end jax --peers none
  step overhead 20 "$PYTHON" benchmarks/gpu_overhead.py
  step tune 240 "$PYTHON" benchmarks/gpu_tune.py $DRY_RUN --minutes 3.5 --results "$FOLDER"
  step cpu 120 bash -c cpu
  echo "== $SECONDS s; $(wc -l < "$FAILURES") failures in $FAILURES"
} 2>&1 | tee "$FOLDER/log.txt"
