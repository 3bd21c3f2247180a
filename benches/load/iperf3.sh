#!/usr/bin/env bash
# benches/load/iperf3.sh [SECONDS [PROGRAM [ARGUMENTS...]]]
#
# A real iperf3 download between two hosts behind the simulated load balancer (tests/sim), for our
# program or another one. Simulator and hosts on core 0, the program on core 1. Reported without a
# goal: the simulator makes a system call per packet and is the limit. Needs root and iperf3.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-5}
shift $(($# > 0 ? 1 : 0))
cargo build --quiet --release --locked --bin gwlbtun --example gwlb-sim
[ $# -gt 0 ] || set -- "$PWD/target/release/gwlbtun" --cores 1

lab=iperf$$
scratch=$(mktemp -d)
children=()
finish() {
    for child in "${children[@]}"; do
        kill "$child" 2>/dev/null || true
    done
    wait 2>/dev/null
    rm -r "$scratch"
}
trap finish EXIT

mkfifo "$scratch/says"
taskset -c 0 target/release/examples/gwlb-sim "$lab" --target-gro on >"$scratch/says" &
children+=($!)
exec 3<"$scratch/says"
read -r -t 30 ready <&3
[ "$ready" = ready ] || {
    echo "iperf3.sh: the simulator says \"$ready\", not \"ready\"" >&2
    exit 1
}
ip netns exec "$lab-target" taskset -c 1 "$@" -c "$PWD/benches/load/redirect.sh" \
    >"$scratch/log" 2>&1 &
target=$!
children+=("$target")
ip netns exec "$lab-server0" taskset -c 0 iperf3 --server --one-off >/dev/null &
children+=($!)

# CPU time of all threads, in nanoseconds.
cpu_ns() {
    cat /proc/"$target"/task/*/schedstat | awk '{ sum += $1 } END { printf "%d", sum }'
}

# The first packet makes the endpoint; until it has links, connecting takes its time.
for _ in $(seq 100); do
    ip netns exec "$lab-client0" ping -c 1 -W 1 10.1.0.2 >/dev/null 2>&1 && break
done
before=$(cpu_ns)
ip netns exec "$lab-client0" taskset -c 0 \
    iperf3 --client 10.1.0.2 --time "$seconds" --reverse --json >"$scratch/result"
after=$(cpu_ns)
python3 - "$scratch/result" "$((after - before))" "$1" <<'EOF'
import json, sys
result = json.load(open(sys.argv[1]))["end"]["sum_received"]
spent, seconds = int(sys.argv[2]) / 1e9, result["seconds"]
print(f"{sys.argv[3]}: {result['bits_per_second'] / 1e9:.2f} Gbit/s, "
      f"{spent / seconds * 100:.0f} % of its core, "
      f"{spent * 1e9 / result['bytes']:.2f} s of CPU per GB")
EOF
