#!/usr/bin/env bash
# tests/fuzz/run.sh [TARGET|all [SECONDS [SANITIZER]]]
#
# Runs the fuzzers, one after the other, each for so many seconds (60): with the sanitizer
# "address", or with "none", which is faster and enough for code without unsafe. Ends at the first
# thing found. What they learn stays in target/fuzz/, what they find too. Installs cargo-fuzz if it
# is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."

targets=(parser path coalescer segmenter controls)
case ${1:-all} in
all) ;;
parser | path | coalescer | segmenter | controls) targets=("$1") ;;
*)
    echo "usage: tests/fuzz/run.sh [TARGET|all [SECONDS [SANITIZER]]]; targets: ${targets[*]}" >&2
    exit 2
    ;;
esac
seconds=${2:-60} sanitizer=${3:-address}

cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
# Instrumentation takes unstable options, which the stable compiler has if it is told.
export RUSTC_BOOTSTRAP=1
options=(--fuzz-dir tests/fuzz --target-dir target/fuzz --sanitizer "$sanitizer")

for target in "${targets[@]}"; do
    learned=target/fuzz/learned/$target found=target/fuzz/found/$target
    mkdir -p "$learned" "$found"
    cargo fuzz run "${options[@]}" "$target" "$learned" "tests/fuzz/corpus/$target" -- \
        -artifact_prefix="$found/" -max_len=1024 -max_total_time="$seconds" -print_final_stats=1
done
