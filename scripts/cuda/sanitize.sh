#!/usr/bin/env bash
# Runs a reduced conformance table on a GPU under compute-sanitizer: memcheck and racecheck of every kind of operation, and of products in formats that
# between them reach every kernel of Hopper's and the portable ones.
#
#     scripts/cuda/sanitize.sh MLXN [SECONDS] [FILTER…]
#
# MLXN is a program built with the feature `cuda`. SECONDS is the time for each group of cases and tool, 300 unless told; groups run side by side, JOBS
# of them (16). FILTERs replace the list below. Prints a line for each group: cases, errors or hazards, and `did not end` where the time was not enough.
# Ends with 1 if there is any error, hazard or group that did not end.
set -uo pipefail
mlxn=${1:?usage: sanitize.sh MLXN [SECONDS] [FILTER…]}
seconds=${2:-300}
shift $(($# < 2 ? $# : 2))
filters=("$@")
if [ ${#filters[@]} = 0 ]; then
    filters=(attention/f16,heads=9/3,dim=64 attention/f16,heads=4/1,dim=256 rope soft_cap softmax argmax sample/dim=50, rms_norm cast gated_activation binary store_kv expert_gate expert_sum embedding/Q4_K
        matmul_perm021/Q4_0 matmul_batched/F16 matmul_transposed matmul/F16/ matmul/IQ3_S/)
    for format in Q4_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q6_K MXFP4 affine4_g64_bf16 affine8_g64_bf16; do
        filters+=("matmul/$format/" "matmul_id/$format/")
    done
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# What is compiled without the tool, it finds in the cache.
compile() { timeout "$seconds" "$mlxn" selftest --device cuda --filter "$1" >/dev/null 2>&1; }

check() {
    local tool=$1 filter=$2 log=$folder/$1.${2//\//_} cases=- verdict
    timeout -k 5 "$seconds" compute-sanitizer --tool "$tool" --error-exitcode 9 "$mlxn" selftest --device cuda --filter "$filter" >"$log" 2>&1
    case $? in
    0) verdict=clean ;;
    124 | 137) verdict='did not end' ;;
    *) verdict=$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY|failed' "$log" | tail -1 | sed 's/=* *//') ;;
    esac
    cases=$(grep -oE '[0-9]+ passed' "$log" | head -1)
    printf '%-10s %-28s %-12s %s\n' "$tool" "$filter" "${cases:--}" "${verdict:-failed}"
    [ "$verdict" = clean ]
}
export -f compile check
export mlxn seconds folder

printf '%s\n' "${filters[@]}" | xargs -P "${JOBS:-16}" -I{} bash -c 'compile {}'
for tool in memcheck racecheck; do printf "$tool %s\n" "${filters[@]}"; done |
    xargs -P "${JOBS:-16}" -L1 bash -c 'check "$0" "$1"' || exit 1
