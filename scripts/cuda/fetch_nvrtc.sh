#!/usr/bin/env bash
# Fetches NVRTC, NVIDIA's run-time compiler, as PyPI packages it, so that the CUDA kernels can be compiled where there is no toolkit and no GPU.
#
#     scripts/cuda/fetch_nvrtc.sh FOLDER
#     LD_LIBRARY_PATH=$(cat FOLDER/library-path) cargo test -p mlx-native --features cuda --lib backend::cuda -- --include-ignored
#
# Ends with 1 when the package index cannot be reached. A folder that has it already is left as it is.
set -euo pipefail
folder=${1:?usage: fetch_nvrtc.sh FOLDER}
version=13.0.88
if [ ! -f "$folder/library-path" ]; then
    mkdir -p "$folder"
    python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$folder" "nvidia-cuda-nvrtc==$version" || exit 1
    python3 -m zipfile -e "$folder"/nvidia_cuda_nvrtc-*.whl "$folder"
    library=$(find "$folder" -name 'libnvrtc.so.13' | head -1)
    [ -n "$library" ] || { echo "the package has no libnvrtc.so.13" >&2; exit 1; }
    (cd "$(dirname "$library")" && pwd) > "$folder/library-path"
fi
