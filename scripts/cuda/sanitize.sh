#!/usr/bin/env bash
# Runs a reduced conformance table on a GPU under compute-sanitizer. memcheck: a sample of every kind of operation, and of products in formats that between
# them reach every kernel of Hopper's and the portable ones. racecheck, which takes a hundred times as long as the program alone: the same without products,
# and of products every format of Hopper's kernels with a few chosen shapes. Tiles have few units there: racecheck does not see that a lane which releases a stage does so
# for its warp, and where many parts of a tile come through the same stages it calls that a hazard.
#
#     scripts/cuda/sanitize.sh MLXN [SECONDS] [TOOL…]
#
# MLXN is a program built with the feature `cuda`. SECONDS is the time for each group of cases, 300 unless told; groups run side by side, JOBS of them (16).
# TOOLs are memcheck and racecheck unless told. Prints a line for each group: cases, errors or hazards, and `did not end` where the time was not enough.
# Ends with 1 if there is any error, hazard or group that did not end.
set -uo pipefail
mlxn=${1:?usage: sanitize.sh MLXN [SECONDS] [TOOL…]}
seconds=${2:-300}
shift $(($# < 2 ? $# : 2))
tools=("$@")
[ ${#tools[@]} = 0 ] && tools=(memcheck racecheck)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

others=(attention/f16,heads=9/3,dim=64 attention/f16,heads=4/1,dim=256 rope soft_cap softmax argmax rms_norm cast gated_activation binary store_kv expert_gate expert_sum
    embedding/Q4_K matmul_batched/F16 matmul_transposed matmul/F16/ matmul/IQ3_S/)

# A group of cases of the full table whose names begin alike.
group_of() {
    local start=$1
    shift
    printf -- '--full'
    printf -- " --filter $start%s" "$@"
    printf '\n'
}

# The groups of a tool: what `mlxn selftest` is given.
groups_of() {
    printf -- '--filter %s\n' "${others[@]}"
    if [ "$1" = memcheck ]; then
        printf -- '--filter %s\n' sample/dim=50, matmul_perm021/Q4_0
        for format in Q4_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q6_K MXFP4 affine4_g64_bf16 affine8_g64_bf16; do
            printf -- '--filter %s\n' "matmul/$format/" "matmul_id/$format/"
        done
        return
    fi
    # All draws at once take longer than any other group.
    local warm=t=0.8,k=0,p=1,min_p=0,penalty=1,history
    printf -- '--filter sample/dim=50,%s\n' t=0, t=1.7 t=0.8,k=40 t=0.8,k=0,p=0.9 t=0.8,k=0,p=1,min_p=0.05 $warm=64 $warm=0,seed=42,step={7,8}
    echo "--full --filter sample/dim=49152,t=0.8,k=40 --filter matmul_perm021/Q4_0/m=9,n=65"
    for format in Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 IQ4_NL IQ4_XS MXFP4 Q2_K Q3_K Q4_K Q5_K Q6_K affine4_g64_bf16 affine8_g64_bf16; do
        # Rows of three and of five blocks or groups, and those of dense tiles.
        local three=768 five=1280 tiled
        case $format in
        affine*) three=192 five=192 ;;
        Q?_0 | Q?_1 | IQ4_NL | MXFP4) three=96 five=160 ;;
        esac
        # Three units of Q6_K do not end under racecheck; no others here fill a stage of weights again.
        [ "$format" = Q6_K ] && tiled=256 || tiled=$three
        # Each with the three modes: one group would not end in time.
        group_of "matmul/$format/" "m=1,n=65,k=$five" m=1,n=1,k=4096 "m=3,n=65,k=$five"
        group_of "matmul/$format/" "m=8,n=65,k=$five" m=8,n=1,k=4096
        group_of "matmul/$format/" "m=17,n=65,k=$tiled" "m=17,n=64,k=$tiled"
        group_of "matmul_id/$format/" "m=1,n=64,k=$three,top_k=4,experts=8,typed" "m=8,n=64,k=$three,top_k=4,experts=4,typed" "m=9,n=65,k=$three,top_k=1,experts=1,typed"
    done
}

# What is compiled without the tool, it finds in the cache.
compile() { timeout "$seconds" "$mlxn" selftest --device cuda "$@" >/dev/null 2>&1; }

check() {
    local tool=$1 verdict name log
    shift
    name="$*"
    log=$folder/$tool.${name//[^A-Za-z0-9]/_}
    name=${name//--filter /}
    timeout -k 5 "$seconds" compute-sanitizer --tool "$tool" --error-exitcode 9 "$mlxn" selftest --device cuda "$@" >"${log:0:200}" 2>&1
    case $? in
    0) verdict=clean ;;
    124 | 137) verdict='did not end' ;;
    *) verdict=$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY|failed' "${log:0:200}" | tail -1 | sed 's/=* *//') ;;
    esac
    printf '%-10s %-72s %-12s %4d s  %s\n' "$tool" "${name:0:72}" "$(grep -oE '[0-9]+ passed' "${log:0:200}" | head -1)" "$SECONDS" "${verdict:-failed}"
    [ "$verdict" = clean ]
}
export -f compile check
export mlxn seconds folder

for tool in "${tools[@]}"; do groups_of "$tool"; done | sort -u | xargs -P "${JOBS:-16}" -I{} bash -c 'compile {}'
for tool in "${tools[@]}"; do groups_of "$tool" | sed "s/^/$tool /"; done | xargs -P "${JOBS:-16}" -I{} bash -c 'check {}' || exit 1
