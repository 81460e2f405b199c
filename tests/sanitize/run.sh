#!/usr/bin/env bash
# Builds the CPU kernels with the address and undefined-behaviour sanitizers, for the plainest and the widest instruction set that this
# machine runs, and calls them at random on buffers of exactly the promised size. Results are checked elsewhere; here only memory and
# arithmetic are. Arguments: rounds, seed.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
root="$here/../.."
out="$(mktemp -d)"
trap 'rm -rf "$out"' EXIT
flags=(-std=c++17 -O1 -g -ffp-contract=off -fno-omit-frame-pointer -fopenmp -fsanitize=address,undefined -fno-sanitize-recover=all
       -I"$root/cuda_kernels/include" -I"$root/cuda_kernels/cpu")
declare -A kernels=([neuron]=neuron [linear]=event_linear [conv]=event_conv [count]=count [engine]=engine [wkv]=wkv)
levels=(base)
if grep -qw avx512vl /proc/cpuinfo; then levels+=(v4); elif grep -qw avx2 /proc/cpuinfo; then levels+=(v3); fi

build() {  # level, check
  local level=(-DSPIKING_LEVEL="$1") name="$1-$2"
  [ "$1" = base ] || level+=(-march="x86-64-$1")
  g++ "${flags[@]}" "${level[@]}" -c "$root/cuda_kernels/cpu/${kernels[$2]}.cpp" -o "$out/$name.o"
  g++ "${flags[@]}" "${level[@]}" "$here/$2_check.cpp" "$out/$name.o" -o "$out/$name"
}

running=()
for level in "${levels[@]}"; do
  for check in "${!kernels[@]}"; do
    build "$level" "$check" &
    running+=("$!")
    if [ "${#running[@]}" -ge "$(nproc)" ]; then wait "${running[0]}"; running=("${running[@]:1}"); fi
  done
done
for job in "${running[@]}"; do wait "$job"; done
for level in "${levels[@]}"; do
  echo "instruction set: $level"
  for check in "${!kernels[@]}"; do "$out/$level-$check" "${1:-400}" "${2:-0}"; done
done
