#!/usr/bin/env bash
# Builds the neuron kernels with the address and undefined-behaviour sanitizers and runs them on random calls. Arguments: rounds, seed.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
root="$here/../.."
out="$(mktemp -d)"
trap 'rm -rf "$out"' EXIT
flags=(-std=c++17 -O1 -g -ffp-contract=off -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
       -DSPIKING_LEVEL=base -I"$root/cuda_kernels/include" -I"$root/cuda_kernels/cpu")
g++ "${flags[@]}" -c "$root/cuda_kernels/cpu/neuron.cpp" -o "$out/neuron.o"
g++ "${flags[@]}" "$here/neuron_check.cpp" "$out/neuron.o" -o "$out/neuron_check"
"$out/neuron_check" "${1:-400}" "${2:-0}"
