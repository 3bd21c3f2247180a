#!/usr/bin/env bash
# sudo ./example-scripts/demo.sh
#
# Shows gwlbtun at work on this machine: a client and a server in namespaces of their own, a
# simulated AWS Gateway Load Balancer between them, and gwlbtun as its target, sending every
# packet straight back. Exits 0 only if all of it worked, and leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/.."

bytes=200000000
server4=10.1.0.2 server6=fd00:1::2 health=http://127.0.0.1:8080/
lab=gwlbtun-demo-$$
work=$(mktemp -d)
pids=()

cleanup() {
    local pid
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
    printf '%-24s FAILED: %s\n' "$step" "$1" >&2
    tail -n 5 "$work"/*.log 2>/dev/null >&2 || true
    exit 1
}
step() { step=$1; }
ok() { printf '%-24s ok   %s\n' "$step" "$1"; }
within() { ip netns exec "$lab-$1" "${@:2}"; }

# Polls a command until it succeeds, at most 10 s, while process $1 lives.
wait_for() {
    local tries=100
    until "${@:2}" >/dev/null 2>&1; do
        kill -0 "$1" 2>/dev/null || fail "its process ended; waited for: ${*:2}"
        ((tries-- > 0)) || fail "waited in vain: ${*:2}"
        sleep 0.1
    done
}

# tool : Debian package : Fedora and Amazon Linux package
tools="
cc:gcc libc6-dev:gcc
curl:curl:curl
ethtool:ethtool:ethtool
ip:iproute2:iproute
ping:iputils-ping:iputils
python3:python3:python3
setsid:util-linux:util-linux
sha256sum:coreutils:coreutils
tc:iproute2:iproute-tc
xargs:findutils:findutils
"

check_machine() {
    local tool debian fedora missing=() debians=() fedoras=()
    [ "$(id -u)" = 0 ] || fail "needs root; run: sudo $0"
    [ -c /dev/net/tun ] || fail "no /dev/net/tun; run: modprobe tun"
    as_builder cargo --version >/dev/null 2>&1 ||
        fail "no cargo for user $builder; install the Rust toolchain first"
    while IFS=: read -r tool debian fedora; do
        if [ -n "$tool" ] && ! command -v "$tool" >/dev/null; then
            missing+=("$tool") debians+=("$debian") fedoras+=("$fedora")
        fi
    done <<<"$tools"
    if [ ${#missing[@]} = 0 ]; then
        return
    elif command -v dnf >/dev/null; then
        fail "lacks ${missing[*]}; run: dnf install ${fedoras[*]}"
    fi
    fail "lacks ${missing[*]}; run: apt-get install ${debians[*]}"
}

# Runs a command as the user who called sudo, whose toolchain it is and whose target/ stays theirs.
builder=${SUDO_USER:-root}
as_builder() {
    local home
    home=$(getent passwd "$builder" | cut -d: -f6)
    local command=(env HOME="$home" PATH="$home/.cargo/bin:$PATH" "$@")
    if [ "$builder" = root ]; then
        "${command[@]}"
    else
        runuser -u "$builder" -- "${command[@]}"
    fi
}

build() {
    local quiet=(--quiet)
    # The first build takes minutes, so it shows what it does.
    if [ ! -x target/release/gwlbtun ] || [ ! -x target/release/examples/gwlb-sim ]; then
        quiet=()
        echo "The first build takes some minutes."
    fi
    as_builder cargo build --release --locked "${quiet[@]}" --bin gwlbtun --example gwlb-sim
}

ping_server() {
    local summary
    summary=$(within client0 ping -c 5 -i 0.2 -W 5 "$1" | tail -n 2) || fail "no answer"
    [[ $summary == *" 5 received"* ]] || fail "$summary"
    ok "5 of 5, average $(cut -d/ -f5 <<<"${summary##*$'\n'}") ms"
}

download() {
    local served got start
    served=$(sha256sum <"$work/www/file")
    start=$SECONDS
    got=$(within client0 curl -sS --max-time 120 "http://$server4:8000/file" | sha256sum) ||
        fail "curl"
    [ "$served" = "$got" ] || fail "sent $served, received $got"
    ok "SHA-256 equal (${got:0:16}…), $((SECONDS - start)) s"
}

# The simulator checks every packet that comes back and prints its counters when it ends.
check_rules() {
    local report=$work/report
    kill -USR1 "$simulator"
    wait_for "$simulator" grep -q '^{.*}$' "$work/simulator.log"
    grep '^{' "$work/simulator.log" | tail -n 1 >"$report"
    if sed 's/.*"breaches":{\([^}]*\)}.*/\1/' "$report" | grep -q ':[1-9]'; then
        fail "$(cat "$report")"
    fi
    ok "$(sed 's/.*"returned":\([0-9]*\).*/\1/' "$report") packets came back, no rule broken"
}

step "this machine"
check_machine
ok "tools are there"
step "build"
build || fail "cargo build"
ok "target/release/gwlbtun"

step "start"
mkdir "$work/www"
head -c "$bytes" /dev/urandom >"$work/www/file"
target/release/examples/gwlb-sim "$lab" >"$work/simulator.log" 2>&1 &
simulator=$!
pids+=("$simulator")
wait_for "$simulator" grep -q '^ready' "$work/simulator.log"

hook=$PWD/example-scripts/create-passthrough.sh
# The engine ends before the simulator does, which removes the namespaces.
ip netns exec "$lab-target" "$PWD/target/release/gwlbtun" -c "$hook" -r "$hook" -p 8080 \
    >"$work/gwlbtun.log" 2>&1 &
engine=$!
pids=("$engine" "${pids[@]}")
wait_for "$engine" within target curl -sf "$health"
ip netns exec "$lab-server0" python3 -m http.server 8000 --bind "$server4" \
    --directory "$work/www" >"$work/http.log" 2>&1 &
pids=("$!" "${pids[@]}")
wait_for "$!" within server0 curl -sfI "http://$server4:8000/"
ok "client, load balancer, gwlbtun and server run"

step "ping over IPv4"
ping_server "$server4"
step "ping over IPv6"
ping_server "$server6"
step "download, $((bytes / 1000000)) MB"
download
step "links of the endpoint"
links=$(within target ip -o link | grep -o 'gw[io]-[0-9a-zA-Z]*' | sort -u | xargs)
[ "$(wc -w <<<"$links")" = 2 ] || fail "found: $links"
ok "$links"
step "health answer"
answer=$(within target curl -sS -o "$work/health" -w '%{http_code}' "$health") || fail "curl"
[ "$answer" = 200 ] || fail "HTTP $answer"
ok "HTTP 200:"
sed -e '/^<!DOCTYPE/d' -e '/^<html/d' -e 's/.*<body>//' -e '/^<.body>/d' -e '/^$/d' \
    -e 's/^/    /' "$work/health"
step "AWS's rules"
check_rules
step "stop"
kill -TERM "$engine"
wait "$engine" || fail "gwlbtun ended with status $?"
ok "gwlbtun ended with status 0"
