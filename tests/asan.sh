#!/usr/bin/env bash
# sudo tests/asan.sh [part of a test's name]
#
# Builds tests and program with AddressSanitizer and runs all tests but those below. The end-to-end
# tests start the program of the same build. What the kernel writes through a ring is not seen; what
# Rust and C code reads and writes is. Exits 0 only if every test passed and no process, be it one
# that a test kills, has left a report in target/asan.
#
# The sanitizer is in the stable toolchain; only its switch is not, hence RUSTC_BOOTSTRAP. The
# standard library comes as it is, without checks inside.
set -euo pipefail
cd "$(dirname "$0")/.."

# They bound resident memory, which the sanitizer multiplies; the last one puts a library of its own
# before the program, under which the C library's loader frees its own memory twice.
skipped=(
    a_million_flows_fit
    r10_a_hundred_endpoints_cost_little
    r11_a_flood_of_made_up_ids_costs_little
    r20_a_probe_is_answered_among_idle_slow_deaf_and_huge_clients
    r29_steps_of_the_wall_clock_are_seen_by_the_log_alone
)

skips=()
for test in "${skipped[@]}"; do
    skips+=(--skip "$test")
done
# A library that is built for the host, as build scripts and macros need it, must not have it: that
# is what --target is for.
host=$(rustc -vV | sed -n 's/^host: //p')
mkdir -p target/asan
reports=$PWD/target/asan/report
rm -f "$reports".*
export RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address RUST_BACKTRACE=0
options=log_path=$reports${ASAN_OPTIONS:+:$ASAN_OPTIONS}
target=(--locked --target "$host" --target-dir target/asan)
build=("${target[@]}" --no-fail-fast)
status=0
# Some tests start it.
cargo build "${target[@]}" --example gwlb-sim
ASAN_OPTIONS=$options cargo test "${build[@]}" --lib "$@" -- "${skips[@]}" || status=$?
# The search for leaks traces its process, which some of these tests forbid it.
ASAN_OPTIONS=$options:detect_leaks=0 \
    cargo test "${build[@]}" --test tests "$@" -- "${skips[@]}" || status=$?
for report in "$reports".*; do
    [ -e "$report" ] || continue
    echo "tests/asan.sh: $report" >&2
    cat "$report" >&2
    status=1
done
exit "$status"
