#!/usr/bin/env bash
# The CPU kernels for 64-bit Arm (NEON): compiled, and their tests run under emulation. On Debian and
# Ubuntu: apt-get install g++-aarch64-linux-gnu qemu-user-static libgtest-dev libfmt-dev
#
#   scripts/arm_kernels.sh [GTEST ARGUMENTS]
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
compiler=aarch64-linux-gnu-g++
for program in "$compiler" qemu-aarch64-static; do
  command -v "$program" > /dev/null || die "arm_kernels.sh: $program is not there (see its first lines)."
done
build=$root/build/arm
mkdir -p "$build"
flags="-std=c++20 -O2 -I$root -I/usr/src/googletest/googletest/include -I/usr/src/googletest/googletest -DFMT_HEADER_ONLY"
step "Kernels for 64-bit Arm"
{
  echo "rule cxx"
  echo "  command = $compiler $flags \$flags -MMD -MF \$out.d -c \$in -o \$out"
  echo "  depfile = \$out.d"
  echo "rule link"
  echo "  command = $compiler -static \$in -o \$out -lpthread"
  objects=()
  for source in engine/base/{check,json_text,log,thread_pool}.cc engine/core/{device,dtype}.cc \
    engine/protocol/{engine_config,request,slot_table,step}.cc \
    engine/kernels/cpu/{blocks,cpu_ops,dispatch,sampler,step,kernels_portable,kernels_neon}.cc \
    tests/engine/kernels/*.cc; do
    object=${source%.cc}.o
    objects+=("$object")
    echo "build $object: cxx $root/$source"
    case $source in */kernels_*) echo "  flags = -ffp-contract=off" ;; esac
  done
  for source in gtest-all gtest_main; do
    objects+=("$source.o")
    echo "build $source.o: cxx /usr/src/googletest/googletest/src/$source.cc"
  done
  echo "build kernels_test: link ${objects[*]}"
} > "$build/build.ninja"
ninja -C "$build" kernels_test
step "Their tests under emulation"
qemu-aarch64-static "$build/kernels_test" --gtest_brief=1 "$@"
