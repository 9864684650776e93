#!/usr/bin/env bash
# The first run on a GPU: is it right, what fails, how fast is it? In nine minutes, without network.
#
#   [STEPS="..."] [LIMIT=540] benchmarks/gpu_first_run.sh [--dry-run] [FOLDER]
#
# PYTHON (python3) has PyTorch, Triton and pytest. The wheels in build/gpu/wheels are installed for the
# run: those of peers, and the package's (`.venv-release/bin/python .ci/wheels.py linux-x86_64 --output
# build/gpu/wheels`), of which only the compiled module counts; without it, that is compiled here.
#
# Each step has a limit, and one that fails does not end the run. FOLDER (build/gpu/first-run) has at
# any time what was found so far: log.txt, failures.jsonl, gpu-DATE.json and .png, gpu-tune-DATE.json,
# cpu.txt. The last steps are for a second run: STEPS="package tune racecheck large overhead cpu".
# Where there is no git, LAYERNORM_COMMIT says what was measured.
# --dry-run goes through all without a GPU: in Triton's interpreter, with a few of the cases.

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
LIMIT=${LIMIT:-540}  # seconds for all steps; ${SECONDS} counts them
WORKERS=$(($(nproc) > 4 ? $(nproc) - 2 : 2))
FAILED=0

export FAILURES=$FOLDER/failures.jsonl
export LAYERNORM_COMMIT=${LAYERNORM_COMMIT:-$(git rev-parse --short HEAD || echo unknown)}
export PYTHONPATH=$SITE:$PWD/benchmarks PYTHONUNBUFFERED=1
PATH=$(dirname "$(command -v "$PYTHON")"):$PATH  # where pip's cmake is
mkdir -p "$FOLDER"
touch "$FAILURES"

# step NAME LIMIT COMMAND...
step() {
  local name=$1 limit=$2 begin=$SECONDS status
  shift 2
  [[ " ${STEPS:-$name} " == *" $name "* ]] || return 0
  limit=$((limit < LIMIT - SECONDS ? limit : LIMIT - SECONDS))
  if [ $limit -lt 10 ]; then
    echo "== $name: no time left"
    return
  fi
  echo "== $name, at most $limit s"
  STEP_SECONDS=$((limit - 10)) timeout --signal=INT --kill-after=10 "$limit" "$@"
  status=$?
  [ $status = 0 ] || FAILED=1
  [ $status != 124 ] && [ $status != 137 ] || status="$status, not finished"
  echo "== $name: exit code $status, $((SECONDS - begin)) s"
}

versions() {
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv || echo "no nvidia-smi"
  command -v compute-sanitizer || echo "no compute-sanitizer"
  $PYTHON -VV
  $PYTHON -m pip list --format=freeze | grep -iE '^(torch|triton|numpy|jax|pytest)' | xargs
  echo "commit $LAYERNORM_COMMIT"
}

package() {
  rm -rf "$SITE" && mkdir -p "$SITE"
  if ls build/gpu/wheels/*.whl 2> /dev/null; then
    $PYTHON -m pip install -q --no-index --no-deps --no-compile --target "$SITE" build/gpu/wheels/*.whl
    # Python reads .pth files in site-packages only.
    echo "import os, site; site.addsitedir(os.path.dirname(__file__))" > "$SITE/sitecustomize.py"
  fi
  mkdir -p "$SITE/layernorm"
  cp -r src/layernorm/. "$SITE/layernorm"
  if ! ls "$SITE"/layernorm/_native*.so 2> /dev/null; then
    cmake -S . -B build/gpu/native -DLAYERNORM_BASELINE_ONLY=ON -DCMAKE_BUILD_TYPE=Release \
      -DPython_EXECUTABLE="$(command -v "$PYTHON")" --log-level=WARNING &&
      cmake --build build/gpu/native --parallel "$(nproc)" &&
      cmake --install build/gpu/native --prefix "$SITE"
  fi
  (cd "$FOLDER" && $PYTHON -c 'import layernorm.torch; print(layernorm.torch.__file__)')
}

tests() {  # of tests/triton/test_triton_NAME.py, with options of pytest: NAME... [-- OPTIONS]
  local files=()
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    files+=("tests/triton/test_triton_$1.py")
    shift
  done
  [ $# = 0 ] || shift
  TORCHINDUCTOR_COMPILE_THREADS=1 ${UNDER:-} "$PYTHON" -m pytest -p failures_as_json \
    -p no:cacheprovider -q --tb=short -rfE -o filterwarnings= "${files[@]}" "$@"
}

sanitized() {  # TOOL of compute-sanitizer
  if command -v compute-sanitizer > /dev/null; then
    UNDER="compute-sanitizer --tool $1 --error-exitcode 9" PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      tests each_kernel -- -k 'forward_and_backward and (64 or 769 or 96 or 5000 or 20000 or 3000)'
  else
    echo "no compute-sanitizer"
  fi
}

cpu() {  # how the CPU's kernels scale with threads
  local threads
  for ((threads = 1; threads <= $(nproc); threads *= 2)); do
    $PYTHON -m layernorm bench --quick --front-end torch --peers torch --threads $threads
  done > "$FOLDER/cpu.txt"
}

export -f versions package tests sanitized cpu
export PYTHON SITE FOLDER

run() {
  if ! [ "$DRY_RUN" ] && ! "$PYTHON" -c 'import torch; print(torch.cuda.get_device_name())'; then
    echo "PyTorch finds no GPU"
    return 1
  fi
  step versions 20 bash -c versions
  step package 100 bash -c package
  step each_kernel 60 bash -c "tests each_kernel -- -n $WORKERS"
  step bench 230 "$PYTHON" benchmarks/gpu.py $DRY_RUN --results "$FOLDER"
  # What only a GPU can show.
  step only_gpus 70 bash -c "tests gpu -- -n $WORKERS -m 'not slow' -k 'not sanitizer'"
  LAYERNORM_EVERY=${LAYERNORM_EVERY:-4} step tests 90 bash -c \
    "tests same_bits members residual gate quantized torch contract -- -n $WORKERS -m 'not slow'"
  step memcheck 80 bash -c 'sanitized memcheck'
  XLA_PYTHON_CLIENT_PREALLOCATE=false step jax 45 \
    "$PYTHON" -m layernorm check --quick --front-end jax --peers none

  step tune 200 "$PYTHON" benchmarks/gpu_tune.py $DRY_RUN --results "$FOLDER"
  step racecheck 80 bash -c 'sanitized racecheck'
  step large 60 bash -c "tests gpu -- -m slow"
  step overhead 20 "$PYTHON" benchmarks/gpu_overhead.py
  step cpu 120 bash -c cpu
  echo "== $SECONDS s; $(wc -l < "$FAILURES") failures in $FAILURES, with those of earlier runs"
  return $FAILED
}

run 2>&1 | tee -a "$FOLDER/log.txt"
exit "${PIPESTATUS[0]}"
