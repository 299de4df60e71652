#!/usr/bin/env bash
# Everything: scripts/test.sh, then the long tests (more prompts and more tokens; about an hour).
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
[ $# = 0 ] || { echo "usage: scripts/check_all.sh"; [ "$1" = -h ] || [ "$1" = --help ]; exit; }

"$root/scripts/test.sh"
step "Long tests"
MILLRACE_WALK_COMMITS=420000 "$build_dir/tests/scheduler_walk_test"  # 10^7 steps
use_cargo
export MILLRACE_TEST_MODEL=$root/$model
"$venv_dir/bin/python" -m pytest -m long tests/blackbox

if [ "$(id -u)" = 0 ] && ip netns add millrace-try 2>/dev/null; then
  ip netns del millrace-try
  scripts/two_hosts.sh
else
  say "No network namespaces here: scripts/two_hosts.sh was left out."
fi
