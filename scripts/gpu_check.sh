#!/usr/bin/env bash
# Acceptance on real GPUs, in parts of at most 8 minutes each; figures go to $OUT/gpu_figures.jsonl
# (OUT defaults to build/). Needs a built tree (MILLRACE_BUILD, default build/).
#
#   scripts/gpu_check.sh kernels   one GPU: kernel tests, goldens in float32, SmolLM2 against the CPU
#   scripts/gpu_check.sh sanitize [FILTER [TOOL]]  one GPU: the kernel tests under compute-sanitizer
#   scripts/gpu_check.sh tables    one GPU: decode, prefill and offline rows of the 8B shape
#   scripts/gpu_check.sh two       two GPUs: goldens and SmolLM2 at TP 2 and PP 2, 8B rows
#   scripts/gpu_check.sh large     two GPUs of 80 GB or more: 70B rows
#   scripts/gpu_check.sh profile   one GPU: idle time between decode steps of the 8B shape, with traces
#   scripts/gpu_check.sh start     one GPU: the 8B from nothing to the first token, dummy and from files
#   scripts/gpu_check.sh figures   one GPU: each verb of a step in the 8B shape beside its limit
#   scripts/gpu_check.sh comm      two GPUs: what TP 2 and PP 2 exchange, beside the peer copy
#   scripts/gpu_check.sh policy    one GPU: a long prompt among decoders; a run as it was predicted
#   scripts/gpu_check.sh policy-two  two GPUs: a run at PP 2 as it was predicted, and its gauges
#   scripts/gpu_check.sh http      one GPU: the 8B behind HTTP, under Poisson load and all at once
#   scripts/gpu_check.sh fit       one GPU: `millrace fit` beside what three models then take
#   scripts/gpu_check.sh fit-two   two GPUs: the same at TP 2 and PP 2
#   scripts/gpu_check.sh kill      two GPUs: kill -9 of a rank at TP 2 and PP 2 under open streams
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
build=${MILLRACE_BUILD:-$build_dir}
export MILLRACE=$build/millrace OUT=${OUT:-$build_dir} NCCL_NVLS_ENABLE=0
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export BENCH_FLAGS=${BENCH_FLAGS---tune}
nvidia-smi -L 2>/dev/null | grep -q GPU || die "gpu_check.sh: no NVIDIA GPU is to be seen here (nvidia-smi lists none); run it on a host that has one."
failed=0
run() { say "== $*"; "$@" || { say "FAILED: $*"; failed=$((failed + 1)); }; }
check() { run python3 scripts/gpu_check.py "$@"; }

case ${1:-} in
  kernels)
    run "$build/tests/kernels_cuda_test" --gtest_brief=1
    check goldens 1x1
    check goldens float16 1x1
    check goldens bfloat16 1x1
    [ ! -f "$model" ] || check parity "$model" 1x1 ;;
  sanitize)
    for tool in ${3:-memcheck racecheck}; do
      # racecheck does not understand the barriers of cuBLAS's own kernels between the blocks of a cluster.
      run compute-sanitizer --tool "$tool" --kernel-name-exclude kernel_substring=nvjet --error-exitcode 9 --print-limit 50 \
        "$build/tests/kernels_cuda_test" --gtest_brief=1 "--gtest_filter=${2:-*:-*MemoryThatIsNotThere*}"
    done ;;
  tables)
    check bench decode
    check bench prefill
    check bench offline ;;
  two)
    check goldens 2x1 1x2
    check goldens float16 2x1 1x2
    check goldens bfloat16 2x1 1x2
    [ ! -f "$model" ] || check parity "$model" 2x1 1x2
    check bench decode-short 2x1
    check bench decode-short 1x2
    check bench prefill 2x1
    check bench offline-1024 1x1
    check bench offline-1024 2x1
    check bench offline-1024 1x2
    BENCH_FLAGS="$BENCH_FLAGS --pp-layers 16,16" check bench offline-1024 1x2 ;;
  large)
    export BENCH_FLAGS="$BENCH_FLAGS --max-num-batched-tokens 4096"
    check bench decode-large 2x1 llama-3.1-70b
    check bench decode-large 1x2 llama-3.1-70b
    check bench offline-large 2x1 llama-3.1-70b
    check bench offline-large 1x2 llama-3.1-70b ;;
  profile) check profile ;;
  start)
    check start dummy
    check start folder ;;
  figures) check figures kernels ;;
  comm)
    check figures comm 2x1
    check figures comm 1x2 ;;
  policy)
    check interference
    check predict 1x1 ;;
  policy-two) check predict 1x2 ;;
  http) run python3 scripts/gpu_http.py ;;
  fit) run python3 scripts/gpu_fit.py 1x1 ;;
  fit-two) run python3 scripts/gpu_fit.py 2x1 1x2 ;;
  kill)
    check kill 2x1
    check kill 1x2 ;;
  *) sed -n '2,20s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
say "$failed failed"
[ "$failed" = 0 ]
