#!/usr/bin/env bash
# Brings NVIDIA's CUDA 13.0 compiler and libraries from PyPI to .cuda/ (1.3 GB, pinned), for machines
# without a toolkit. The build finds them there. To run on a GPU only its driver is needed besides.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

packages=(nvidia-cuda-nvcc==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-crt==13.0.88
  nvidia-nvvm==13.0.88 nvidia-cuda-cccl==13.0.85 nvidia-cublas==13.0.2.14
  nvidia-cuda-nvrtc==13.0.88 nvidia-nccl-cu13==2.28.9)
stamp=.cuda/installed
if [ "$(cat "$stamp" 2>/dev/null)" != "${packages[*]}" ]; then
  say "bringing CUDA 13.0 (1.3 GB, once) from PyPI to .cuda/"
  ensure_venv
  rm -rf .cuda
  "$venv_dir/bin/python" -m pip install --quiet --target .cuda --no-deps "${packages[@]}" >&2 ||
    die "CUDA could not be brought from PyPI. Check the network, or install CUDA 13.0 and NCCL 2.28."
  echo "${packages[*]}" >"$stamp"
fi
say "CUDA compiler: $root/.cuda/nvidia/cu13/bin/nvcc"
