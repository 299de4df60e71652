#!/usr/bin/env bash
# The first command: installs what is missing, builds, brings a small chat model, and lets four
# MPI ranks (tensor parallel 2 x pipeline parallel 2, on the CPU) answer a question.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

question="In two sentences: what is a mill race, and what did it drive?"
usage() {
  cat <<HELP
usage: scripts/demo.sh [--jobs N] [--question TEXT]
  --jobs N         compile with N processes (default: $jobs, one per core)
  --question TEXT  ask this instead
The first run installs and builds (some minutes); later ones start in seconds.
HELP
}
while [ $# -gt 0 ]; do
  case $1 in
    --jobs | -j) jobs=${2:?--jobs needs a number}; shift 2 ;;
    --jobs=*) jobs=${1#*=}; shift ;;
    --question) question=${2:?--question needs a text}; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; die "demo.sh: unknown argument '$1'" ;;
  esac
done
[[ $jobs =~ ^[1-9][0-9]*$ ]] || die "demo.sh: --jobs needs a positive number, not '$jobs'"

step "1/4 What it builds with"
"$root/scripts/install_deps.sh"
use_cargo
say "all there"

step "2/4 Build (build/millrace)"
if [ ! -x "$build_dir/millrace" ]; then
  say "The first time takes about 10 minutes on 2 cores: Rust's tokenizers, then the C++ rooms."
fi
# A tree that scripts/test.sh configured keeps its tests; a new one has none, to be quicker.
[ -f "$build_dir/CMakeCache.txt" ] && configure "$build_dir" ||
  configure "$build_dir" -DCMAKE_BUILD_TYPE=Release -DMILLRACE_TESTS=OFF
build "$build_dir" millrace

step "3/4 The model ($model)"
ensure_model
say "there, checked"

step "4/4 The main job: mpirun, 4 ranks on this machine, TP 2 x PP 2"
use_mpirun 4
job=("${mpirun_cmd[@]}" build/millrace chat "$model" --device cpu -tp 2 -pp 2)
hint "echo '$question' | ${job[*]}"
say ""
printf '%s\n' "$question" | "${job[@]}" --temperature 0 --max-tokens 96 ||
  die "The job ended with an error; its message is above (exit codes: docs/exit-codes.md)."

cat <<NEXT

${bold}What next${plain}
  serve   build/millrace serve $model -tp 2 -pp 2 --port 8000
          curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
            -d '{"model": "$model_name", "messages": [{"role": "user", "content": "Hello!"}]}'
  chat    build/millrace chat $model
  batch   build/millrace run-batch $model -i configs/batch-example.jsonl -o answers.jsonl
  test    scripts/test.sh
NEXT
