#!/usr/bin/env bash
# Two hosts on one machine: two network namespaces joined by a veth pair, each with a host name of
# its own and, as hosts with containers have, a bridge of the same address. `millrace serve` is
# started on the first one, reaches the second through a stand-in for ssh, and answers a request,
# at each layout. Needs root (ip netns) and iproute2. docs/two-hosts.md shows its output.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
usage="usage: scripts/two_hosts.sh [MODEL]"
[ $# -le 1 ] || die "$usage"
case ${1:-} in -h | --help) echo "$usage"; exit ;; esac
model=${1:-$root/$model}
program=${MILLRACE:-$build_dir/millrace}
[ "$(id -u)" = 0 ] || die "two_hosts.sh makes network namespaces: run it as root."
command -v ip >/dev/null || die "two_hosts.sh needs ip: install iproute2."
[ -x "$program" ] || die "$program is not there: build it (scripts/test.sh does)."
[ -e "$model" ] || die "$model is not there: scripts/demo.sh brings it, or name another."

work=$(mktemp -d)
tag=$$ # so that two runs do not meet
a=millrace-a-$tag b=millrace-b-$tag
server=
tidy() {
  [ -z "$server" ] || kill "$server" 2>/dev/null && wait "$server" 2>/dev/null || true
  ip netns del "$a" 2>/dev/null || true
  ip netns del "$b" 2>/dev/null || true
  rm -rf "$work"
}
trap tidy EXIT

ip netns add "$a" || die "No network namespace can be made here (is this a container without CAP_SYS_ADMIN?)."
ip netns add "$b"
ip -n "$a" link add veth0 type veth peer name veth0 netns "$b"
number=1
for host in "$a" "$b"; do
  ip -n "$host" address add 10.231.7.$number/24 dev veth0
  ip -n "$host" link add docker0 type bridge
  ip -n "$host" address add 172.17.0.1/16 dev docker0
  for link in lo veth0 docker0; do ip -n "$host" link set $link up; done
  number=2
done

# What ssh does: `agent ADDRESS COMMAND...` runs it there, with nothing of this environment.
cat >"$work/agent" <<AGENT
#!/bin/sh
case \$1 in 10.231.7.1) host=$a ;; 10.231.7.2) host=$b ;; *) echo "no host \$1" >&2; exit 255 ;; esac
shift
exec "$work/on" \$host env -i HOME="$HOME" PATH="$PATH" TMPDIR="$work/\$host" /bin/sh -c "\$*"
AGENT
cat >"$work/on" <<'ON'
#!/bin/sh
host=$1
shift
exec ip netns exec "$host" unshare --uts /bin/sh -c 'hostname "$0" && exec "$@"' "$host" "$@"
ON
chmod +x "$work/agent" "$work/on"
mkdir "$work/$a" "$work/$b"

# try TP PP SLOTS: of each host.
try() {
  printf '10.231.7.1 slots=%s\n10.231.7.2 slots=%s\n' "$3" "$3" >"$work/hosts"
  say "\$ millrace serve MODEL -tp $1 -pp $2 --hostfile hosts    # slots=$3 on each"
  TMPDIR=$work/$a "$work/on" "$a" "$program" serve "$model" -tp "$1" -pp "$2" --port 8000 \
    --max-model-len 1024 --kv-cache-memory 64MiB --hostfile "$work/hosts" --served-model-name model \
    --mpirun-args "--mca plm_rsh_agent $work/agent" 2>"$work/log" &
  server=$!
  local waited=0
  until ip netns exec "$a" curl -sf http://127.0.0.1:8000/health >/dev/null 2>&1; do
    kill -0 $server 2>/dev/null && [ $((waited += 1)) -lt 240 ] || {
      cat "$work/log" >&2
      die "The server did not start."
    }
    sleep 0.5
  done
  local answer
  answer=$(ip netns exec "$a" curl -sf http://127.0.0.1:8000/v1/completions \
    -H 'Content-Type: application/json' \
    -d '{"model":"model","prompt":"The capital of France is","max_tokens":8,"temperature":0}')
  grep -v 'memory plan' "$work/log" | sed "s/-$tag//g; s|$work|DIR|g" >&2
  say "$answer"
  case $answer in *Paris*) ;; *) die "That is not the answer." ;; esac
  kill "$server"
  wait "$server" || die "The server ended with code $?."
  server=
}

step "Two stages, one on each host"
try 1 2 1
step "Two stages of two ranks, one stage on each host"
try 2 2 2
say "Two hosts serve at 1 x 2 and 2 x 2."
