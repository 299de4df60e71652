#!/usr/bin/env bash
# Everything: scripts/test.sh, then the long tests (more prompts and more tokens; about an hour), then
# ten minutes of fuzzing for each reader of model files.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
case ${1:-600} in
  *[!0-9]*)
    echo "usage: scripts/check_all.sh [SECONDS of fuzzing a reader, 600 unless told otherwise]"
    [ "$1" = -h ] || [ "$1" = --help ]
    exit ;;
esac

"$root/scripts/test.sh"
step "Long tests"
MILLRACE_WALK_COMMITS=420000 "$build_dir/tests/scheduler_walk_test"  # 10^7 steps
use_cargo
export MILLRACE_TEST_MODEL=$root/$model
"$venv_dir/bin/python" -m pytest -m long tests/oracle  # 10,000 lines a vocabulary
"$venv_dir/bin/python" -m pytest -m long tests/blackbox
if [ "$(id -u)" = 0 ] && ip netns add millrace-try 2>/dev/null; then
  ip netns del millrace-try
  scripts/two_hosts.sh
else
  say "No network namespaces here: scripts/two_hosts.sh was left out."
fi
if command -v aarch64-linux-gnu-g++ > /dev/null && command -v qemu-aarch64-static > /dev/null; then
  scripts/arm_kernels.sh
else
  say "No cross compiler or emulator for Arm here: scripts/arm_kernels.sh was left out."
fi
step "Fuzzing"
"$root/scripts/fuzz.sh" "${1:-600}"
