#!/usr/bin/env bash
# .ci/run arm64
#
# Runs the program on arm64, which c6gn and c7gn are, on a machine that is not: everything is built
# for it and held against clippy, then
#
# 1. qemu runs the unit, property and corpus tests as a process of this machine, NEON included;
# 2. Debian's arm64 kernel 6.1 boots in an emulated machine (tests/k61/run.sh), where real clients
#    are served as by .ci/run k61, and then runs the tests that qemu cannot run as a process: a
#    process has no io_uring, TUN or namespaces there.
#
# Exits 0 only if all of it passed. Needs Debian 12; see tests/README.md.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
extra=$PWD/target/arm64-extra
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
# An emulator takes ten times as long for code that is not optimised at all. Assertions stay.
export CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_PROFILE_DEV_DEBUG=line-tables-only

# Unit tests that want the kernel: io_uring, TUN, netlink, BPF, and processes of this machine. The
# guest runs these and no others.
kernel_tests=(control:: engine:: steering:: sys:: uring:: worker::)
# Of the rest, one that measures memory, where qemu's own would count too: the guest runs it too.
memory_tests=(flow::table::tests::a_million_flows_fit)
# The program gives a page 2 s, in which an emulator does not always write 5 or 10 MB.
slow_tests=(control::health::tests::a_page_larger_than_every_buffer_arrives_whole
    control::health::tests::unread_answers_take_a_bounded_place)
# What runs in both: where there is a kernel, it saves and restores the registers of vectors.
vector_tests=(wire::checksum::)
# Of the tests of more than one module, those that are arithmetic. The others want namespaces, or
# are about scripts and sources, which are the same everywhere.
portable=(cases:: exhaustive:: fuzz:: properties:: sim_tests::a_right_answer sim_tests::checksums
    sim_tests::encapsulation sim_tests::every_broken_rule)
# Of those, one of each thing that a target does: every size, both families, random traffic through
# coalescing and segmentation, order under load, bursts, UDP, many connections, fragments, hooks,
# restarts, steering, log, health page, metrics, status. Left out is what says the same twice, what
# moves 200 MB, which takes minutes, and what wants tools of hundreds of MB (tshark, systemd).
e2e=(
    e2e::bytes::a_burst_of_4000_loses_nothing_with_two_workers
    e2e::bytes::every_size_returns_byte_for_byte
    e2e::bytes::order_within_flows_that_are_spread_over_four_workers
    e2e::bytes::order_within_flows_with_two_workers
    e2e::bytes::unusual_packets_return_too
    e2e::cases::
    e2e::edges::fragments
    e2e::headers::
    e2e::health::json_has_the_fields_of_the_reference
    e2e::health::malformed_datagrams_are_counted_by_reason_and_go_nowhere
    e2e::hooks::at_the_end_an_endpoint_is_served_until_its_own_destroy_begins
    e2e::hooks::r7_a_hook_that_fails
    e2e::hooks::r9_
    e2e::hosts::sixty_four_tcp_connections_at_once
    e2e::hosts::two_endpoints_with_the_same_addresses_stay_apart
    e2e::lifecycle::a_restart
    e2e::lifecycle::an_idle_endpoint_goes_and_returns_while_another_loses_nothing
    e2e::lifecycle::hooks_get_their_arguments_in_order_and_no_packet_precedes_create
    e2e::logs::a_whole_life_word_for_word
    e2e::logs::every_line_is_an_event_in_json
    e2e::metrics::what_it_says_is_what_happened
    e2e::names::
    e2e::service::ready_is_told_when_ports_are_bound_and_not_before
    e2e::steering::every_packet_comes_back_to_the_worker_that_received_it
    e2e::super_packets::
    e2e::transparency::random_traffic_returns_unchanged
    --skip e2e::super_packets::tshark
)

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
if ! command -v apt-get >/dev/null; then
    echo "arm64: needs Debian's cross compiler and kernel; run it on Debian 12" >&2
    exit 1
fi
"${as_root[@]}" tests/install-tools.sh --only cc:"gcc libc6-dev" qemu-aarch64:qemu-user \
    aarch64-linux-gnu-gcc:"gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
rustup target list --installed | grep -qx "$target" || rustup target add "$target"

# The program that cargo built from a source file of tests.
executable() {
    sed -n "s|^ *Executable .*$1 (\(.*\))\$|\1|p" <<<"$built"
}

# The words as arguments of --skip.
skipping() {
    printf -- '--skip\n%s\n' "$@"
}

# Puts what the guest runs after the proofs of k61 into $extra, at the places where the tests look.
fill_extra() {
    rm -rf "$extra"
    mkdir -p "$extra"/k61 "$extra$PWD/target/$target/debug" "$extra$PWD/tests"
    aarch64-linux-gnu-strip -o "$extra/k61/unit-tests" "$(executable src/lib.rs)"
    aarch64-linux-gnu-strip -o "$extra/k61/tests" "$(executable tests/tests.rs)"
    aarch64-linux-gnu-strip -o "$extra$PWD/target/$target/debug/gwlbtun" \
        "target/$target/debug/gwlbtun"
    cp -a example-scripts "$extra$PWD"
    cp -a tests/cases "$extra$PWD/tests"
    {
        echo "cd '$PWD'"
        # No test of the list wants these.
        echo "export GWLBTUN_TESTS_WITHOUT='dig dnsmasq ip6tables-restore iptables-restore tshark'"
        # A process 1 may open fewer files than the 1,024 endpoints of the default want.
        echo "ulimit -n 65536"
        # Pages of 2 MiB, which this kernel gives unasked, are none that the flow table has used.
        echo "echo madvise >/sys/kernel/mm/transparent_hugepage/enabled"
        echo "each_test unit-tests '${guest_tests[*]}'"
        echo "each_test tests '${e2e[*]}'"
    } >"$extra/k61/extra.sh"
}

cargo clippy --locked --all-targets --target "$target" -- -D warnings
built=$(cargo test --locked --target "$target" --lib --test tests --no-run 2>&1) || {
    printf '%s\n' "$built" >&2
    exit 1
}
mapfile -t skipped < <(skipping "${kernel_tests[@]}" "${memory_tests[@]}")
cargo test --locked --target "$target" --lib -- "${skipped[@]}"
cargo test --locked --target "$target" --test tests -- "${portable[@]}" --skip e2e::
guest_tests=("${kernel_tests[@]}" "${memory_tests[@]}" "${vector_tests[@]}")
mapfile -t skipped < <(skipping "${slow_tests[@]}")
guest_tests+=("${skipped[@]}")
fill_extra
exec tests/k61/run.sh arm64 "$extra"
