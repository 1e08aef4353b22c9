#!/bin/sh
# Fetches MLX's Metal kernels, which PyPI's mlx-cpu carries as headers, for crates/metal-host/tests/mlx_kernels.rs: they
# are known to work on Apple GPUs, so they show whether metal-host runs Metal as Metal does. Nothing of it is kept in the
# repository.
#
#   fetch_mlx.sh [DIR]    DIR: METAL_HOST_MLX, else metal-host/mlx in the user's cache folder
#
# With --golden, MLX itself computes the test's small products on this CPU, for a comparison beside the one with f64.
set -eu
golden=
[ "${1:-}" = --golden ] && { golden=1; shift; }
dir=${1:-${METAL_HOST_MLX:-${XDG_CACHE_HOME:-$HOME/.cache}/metal-host/mlx}}
version=${MLX_VERSION:-0.32.4}
here=$(cd "$(dirname "$0")" && pwd)

if [ ! -f "$dir/include/mlx/backend/metal/kernels/quantized.h" ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$work" "mlx-cpu==$version"
  mkdir -p "$dir"
  python3 - "$work" "$dir" <<'PY'
import glob, os, sys, zipfile

wheel = zipfile.ZipFile(glob.glob(os.path.join(sys.argv[1], "mlx_cpu-*.whl"))[0])
for name in wheel.namelist():
    if name.startswith("mlx/include/mlx/backend/metal/kernels/") and name.endswith(".h"):
        target = os.path.join(sys.argv[2], name.removeprefix("mlx/"))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as out:
            out.write(wheel.read(name))
PY
fi
if [ -n "$golden" ]; then
  python3 -c 'import mlx.core, numpy' 2>/dev/null || {
    python3 -m venv "$dir/venv"
    "$dir/venv/bin/pip" install --quiet --disable-pip-version-check "mlx[cpu]==$version" numpy
    PATH="$dir/venv/bin:$PATH"
  }
  python3 "$here/golden.py" "$dir/golden.bin"
fi
echo "$dir"
