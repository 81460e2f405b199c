#!/bin/sh
# Builds the decoder's fuzz target under the address and undefined-behaviour sanitizers and runs it: run.sh [SECONDS [SEED]]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
"${CXX:-g++}" -std=c++17 -O1 -g -fno-omit-frame-pointer -Wall -Wextra -Werror -fsanitize=address,undefined \
    -fno-sanitize-recover=all -I "$here/../../cuda_kernels/cpu" "$here/decode_fuzz.cpp" -o "$build/decode_fuzz"
"$build/decode_fuzz" "${1:-10}" "${2:-1}"
