#!/usr/bin/env bash
# The second command, and what CI runs: the quick whole. Builds everything, holds the tree against
# its rules, runs the tests of every room, the pure rooms again under sanitizers, and the program
# from outside. Goes on after a failure; ends with "N passed, M failed".
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case ${1:-} in
  '') ;;
  --jobs | -j) jobs=${2:?--jobs needs a number} ;;
  --jobs=*) jobs=${1#*=} ;;
  *)
    echo "usage: scripts/test.sh [--jobs N]"
    [ "$1" = -h ] || [ "$1" = --help ] || exit 2
    exit 0 ;;
esac
exec </dev/null

# The rooms that need no mpirun, run under AddressSanitizer and UndefinedBehaviorSanitizer.
pure_rooms="engine/base;engine/core;engine/protocol;engine/kernels;engine/text;scheduler;comm;parallel"
pure_rooms+=";engine/model;engine/coordinator;launch/api"

results=$build_dir/results
rust_target=$build_dir/cargo  # the build's own, so that dependencies are compiled once
total_passed=0 total_failed=0 failures=()
# add NAME PASSED FAILED
add() {
  total_passed=$((total_passed + $2)) total_failed=$((total_failed + $3))
  [ "$3" = 0 ] || failures+=("$1")
  say "-- $1: $2 passed, $3 failed"
}
# one NAME COMMAND...: a check that passes or fails as one.
one() {
  local name=$1
  shift
  if "$@" >&2; then add "$name" 1 0; else add "$name" 0 1; fi
}
# counted NAME FILE: what a runner wrote about its tests; nothing written is a failure.
counted() {
  local counts
  counts=$(python3 scripts/count_tests.py "$2") || counts="0 1"
  add "$1" ${counts% *} ${counts#* }
}
finish() {
  say ""
  for name in "${failures[@]+"${failures[@]}"}"; do say "failed: $name"; done
  if [ $((total_passed + total_failed)) = 0 ]; then say "no test ran"; fi
  echo "$total_passed passed, $total_failed failed"
  [ "$total_failed" = 0 ] && [ "$total_passed" -gt 0 ] || exit 1
  exit 0
}
# A part that everything after it needs.
or_stop() {
  ("$@") || { add "$1" 0 1; finish; }
}

run_ctest() {  # run_ctest NAME DIR; the tests on a GPU belong to scripts/gpu_check.sh
  ctest --test-dir "$2" -E cuda --output-on-failure --no-tests=error --output-junit "$results/$1.xml" \
    --test-output-size-passed 4000000 --test-output-size-failed 4000000 >&2 || true
  counted "$1" "$results/$1.xml"
}

check_format() {
  find engine parallel comm scheduler launch tests -name target -prune -o -type f \
    \( -name '*.h' -o -name '*.cc' -o -name '*.cuh' -o -name '*.cu' \) -print0 |
    xargs -0 "$venv_dir/bin/clang-format" --dry-run --Werror
}

rust_format() {  # the crate's tests are those of engine/text, through its C interface
  local manifest=engine/text/rust/Cargo.toml
  if cargo fmt --version >/dev/null 2>&1; then
    one "Rust format" cargo fmt --check --manifest-path "$manifest"
  else
    hint "cargo fmt is not here: the Rust format is not checked"
  fi
}

step "Dependencies"
"$root/scripts/install_deps.sh" --tests
use_cargo
ensure_venv
if ! cmp -s tests/blackbox/requirements.txt "$venv_dir/requirements.txt"; then
  "$venv_dir/bin/python" -m pip install --quiet -r tests/blackbox/requirements.txt >&2 ||
    die "The test tools of tests/blackbox/requirements.txt could not be installed from PyPI."
  cp tests/blackbox/requirements.txt "$venv_dir/requirements.txt"
fi
rm -rf "$results"
mkdir -p "$results"
ensure_model
export MILLRACE_TEST_MODEL=$root/$model
export MILLRACE_DEVICE=cpu  # on a host with a GPU too
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

step "The tree's own rules"
one "rooms" scripts/check_rooms.py --sizes
one "format" check_format
"$venv_dir/bin/python" -m pytest -q --junit-xml "$results/scripts.xml" tests/scripts >&2 || true
counted "scripts" "$results/scripts.xml"

step "Build, with the CUDA backend for one architecture"
command -v nvcc >/dev/null || scripts/install_cuda.sh
or_stop configure "$build_dir" -DCMAKE_BUILD_TYPE=Release -DMILLRACE_TESTS=ON \
  -DMILLRACE_CUDA=on -DMILLRACE_CUDA_ARCHITECTURES=90a-real
or_stop build "$build_dir"

step "Tests of the rooms"
run_ctest rooms "$build_dir"

step "Pure rooms under AddressSanitizer and UndefinedBehaviorSanitizer"
if (configure build-asan -DCMAKE_BUILD_TYPE=RelWithDebInfo "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1" \
  -DMILLRACE_CUDA=off -DMILLRACE_SANITIZE=address,undefined "-DMILLRACE_CARGO_TARGET_DIR=$rust_target" \
  "-DMILLRACE_ONLY=$pure_rooms" && build build-asan); then
  run_ctest sanitized build-asan
else
  add "sanitized build" 0 1
fi

step "Rust"
rust_format

step "Tokenizers and templates against the Python libraries"
"$venv_dir/bin/python" -m pytest -q --junit-xml "$results/oracle.xml" tests/oracle >&2 || true
counted "oracle" "$results/oracle.xml"

step "The program from outside"
"$venv_dir/bin/python" -m pytest -q --durations=8 -m "not long" \
  --junit-xml "$results/blackbox.xml" tests/blackbox >&2 || true
counted "black box" "$results/blackbox.xml"

finish
