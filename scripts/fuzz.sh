#!/usr/bin/env bash
# Fuzzes the readers of model files (tests/fuzz) with clang's libFuzzer under AddressSanitizer and
# UndefinedBehaviorSanitizer, as many at once as there are cores. The corpus grows in
# build-fuzz/corpus from run to run; an input that fails stays in build-fuzz/finds.
#   scripts/fuzz.sh [SECONDS] [READER ...]      60 seconds each unless told otherwise
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

seconds=60
case ${1:-} in
  -h | --help) echo "usage: scripts/fuzz.sh [SECONDS] [READER ...]"; exit ;;
  [0-9]*) seconds=$1; shift ;;
esac
readers=("$@")
[ $# -gt 0 ] || readers=(safetensors index config tokenizer gguf)

"$root/scripts/install_deps.sh" --tests --fuzz
use_cargo
dir=build-fuzz
# The Rust library counts its edges too. With cargo's target named, the flags are not for its build
# scripts, which have no fuzzer to count for.
CARGO_BUILD_TARGET=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_BUILD_TARGET
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
configure "$dir" -DCMAKE_C_COMPILER=clang-19 -DCMAKE_CXX_COMPILER=clang++-19 \
  -DCMAKE_BUILD_TYPE=RelWithDebInfo "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1" \
  -DMILLRACE_CUDA=off -DMILLRACE_SANITIZE=fuzzer-no-link,address,undefined \
  "-DMILLRACE_ONLY=engine/base;engine/core;engine/protocol;engine/kernels;engine/text;comm;parallel;engine/model"
build "$dir" "${readers[@]/#/fuzz_}"
python3 tests/blackbox/broken_models.py "$dir/seeds"

fuzz() {
  local reader=$1 log=$dir/$1.log
  mkdir -p "$dir/corpus/$reader" "$dir/finds"
  "$dir/tests/fuzz_$reader" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=3000 \
    -max_len=65536 -artifact_prefix="$dir/finds/$reader-" -print_final_stats=1 \
    "$dir/corpus/$reader" "$dir/seeds/$reader" >"$log" 2>&1 || {
    tail -n 40 "$log" >&2
    say "-- $reader: failed; its input is in $dir/finds"
    return 1
  }
  say "-- $reader: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs, none failed;" \
    "$(grep -o 'cov: [0-9]*' "$log" | tail -n 1), $(find "$dir/corpus/$reader" -type f | wc -l) kept"
}
export -f fuzz say
export dir seconds
printf '%s\n' "${readers[@]}" | xargs -P "$jobs" -I{} bash -c 'fuzz {}'
