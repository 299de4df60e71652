#!/usr/bin/env bash
# Installs what Millrace builds and runs with, on Debian 12 and Ubuntu 24.04. What is there already
# is left alone; when nothing is missing it ends at once.
#   scripts/install_deps.sh [--tests] [--fuzz] [--list]
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

with_tests=no with_fuzz=no list_only=no
for arg in "$@"; do
  case $arg in
    --tests) with_tests=yes ;;
    --fuzz) with_fuzz=yes ;;
    --list) list_only=yes ;;
    -h | --help)
      echo "usage: scripts/install_deps.sh [--tests] [--fuzz] [--list]"
      echo "  --tests  also what scripts/test.sh needs"
      echo "  --fuzz   also what scripts/fuzz.sh needs"
      echo "  --list   only say what is missing; ends with 1 if anything is"
      exit 0 ;;
    *) die "install_deps.sh: unknown argument '$arg' (see --help)" ;;
  esac
done

. /etc/os-release
system="${ID:-unknown} ${VERSION_ID:-}"
case $system in
  "debian 12") boost=1.81 ;;
  "ubuntu 24.04") boost=1.83 ;;
  *) boost='' ;;
esac

# --- what is there already: looked up as files and commands, so that it works on any system
has_command() { command -v "$1" >/dev/null 2>&1; }
has_file() {  # in the compiler's usual include or library folders
  local dir
  for dir in /usr/local /usr; do
    [ -e "$dir/include/$1" ] || [ -e "$dir/lib/$1" ] || compgen -G "$dir/lib/*-linux-gnu/$1" >/dev/null ||
      compgen -G "$dir/include/*-linux-gnu/$1" >/dev/null || [ -e "$dir/lib64/$1" ] && return 0
  done
  return 1
}
has_boost() {
  local version
  version=$(sed -n 's/^#define BOOST_VERSION \([0-9]*\).*/\1/p' \
    /usr/local/include/boost/version.hpp /usr/include/boost/version.hpp 2>/dev/null | head -1)
  [ "${version:-0}" -ge 108100 ] && has_file libboost_json.a
}
has_venv() { has_command python3 && python3 -c 'import ensurepip, venv' 2>/dev/null; }
has_cargo() { cargo_folder >/dev/null; }

missing=()  # what is missing, in words
packages=() # the same as Debian's and Ubuntu's packages
need() {    # need CHECK... -- WORDS -- PACKAGES...
  local check=() words=()
  while [ "$1" != -- ]; do check+=("$1"); shift; done; shift
  while [ "$1" != -- ]; do words+=("$1"); shift; done; shift
  if ! "${check[@]}"; then missing+=("${words[*]}"); packages+=("$@"); fi
}

need has_command g++ -- a C++20 compiler '(g++ 12 or newer)' -- g++
need has_command cmake -- CMake 3.25 or newer -- cmake
need has_command ninja -- Ninja -- ninja-build
need has_command ccache -- ccache -- ccache
need has_boost -- Boost 1.81 or newer with its static JSON library -- \
  "libboost${boost}-dev" "libboost-json${boost}-dev"
need has_command mpicxx -- Open MPI 4.1 for development -- libopenmpi-dev
need has_command mpirun -- "Open MPI's mpirun" -- openmpi-bin
need has_command ssh -- an ssh client, which mpirun asks for -- openssh-client
need has_file openssl/ssl.h -- OpenSSL 3 for development -- libssl-dev
need has_file spdlog/spdlog.h -- spdlog -- libspdlog-dev
need has_file fmt/format.h -- fmt -- libfmt-dev
need has_file CLI/CLI.hpp -- CLI11 -- libcli11-dev
need has_file yaml-cpp/yaml.h -- yaml-cpp -- libyaml-cpp-dev
need has_venv -- Python 3 with venv -- python3 python3-venv
need test -e /etc/ssl/certs/ca-certificates.crt -- certificates -- ca-certificates
if [ "$with_tests" = yes ]; then
  need has_file gtest/gtest.h -- GoogleTest -- libgtest-dev
fi
if [ "$with_fuzz" = yes ]; then
  need has_command clang++-19 -- clang 19 with its libFuzzer -- clang-19 libclang-rt-19-dev
fi
rust_missing=no
if ! has_cargo; then
  rust_missing=yes
  missing+=("Rust 1.$min_rust_minor or newer with cargo")
  if [ "$system" = "debian 12" ]; then packages+=(cargo-web); fi
fi

if [ ${#missing[@]} = 0 ]; then exit 0; fi
say "Missing on this machine ($system):"
printf '  - %s\n' "${missing[@]}" >&2
if [ "$list_only" = yes ]; then exit 1; fi

if [ -z "$boost" ]; then
  die "This script knows the packages of Debian 12 and Ubuntu 24.04. Here please install the above yourself, then run the command again."
fi

# Ubuntu's own cargo is too old; the versioned packages of noble-updates are not. Which of them
# there are is known only after apt-get update.
ubuntu_rust() {
  apt-cache pkgnames cargo-1. 2>/dev/null | sed -n 's/^cargo-1\.\([0-9]*\)$/\1/p' | sort -rn | head -1
}

run=()
if [ "$(id -u)" != 0 ]; then
  if sudo -n true 2>/dev/null; then
    run=(sudo)
  else
    if [ "$system" = "ubuntu 24.04" ] && [ "$rust_missing" = yes ]; then
      minor=$(ubuntu_rust)
      packages+=("rustc-1.${minor:-91}" "cargo-1.${minor:-91}")
    fi
    say "This needs root, and sudo asks for a password here. Please run, then start again:"
    say "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${packages[*]}"
    exit 1
  fi
fi
say "Reading the package lists (apt-get update)."
"${run[@]}" apt-get update -qq >&2 || die "apt-get update failed; see its message above."
if [ "$system" = "ubuntu 24.04" ] && [ "$rust_missing" = yes ]; then
  minor=$(ubuntu_rust)
  if [ "${minor:-0}" -lt "$min_rust_minor" ]; then
    die "No package cargo-1.$min_rust_minor or newer was found: enable noble-updates and universe, or install Rust from https://rustup.rs."
  fi
  packages+=("rustc-1.$minor" "cargo-1.$minor")
fi
say "Installing: ${packages[*]}"
quiet=(-qq -o Dpkg::Use-Pty=0)
if [ -t 2 ]; then quiet=(-q); fi
"${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y "${quiet[@]}" \
  --no-install-recommends "${packages[@]}" </dev/null >&2 ||
  die "apt-get could not install them; see its message above."
