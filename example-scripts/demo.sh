#!/usr/bin/env bash
# sudo ./example-scripts/demo.sh
#
# Shows gwlbtun at work on this machine, in namespaces of its own: a client and a server, a
# simulated AWS Gateway Load Balancer, and gwlbtun as its target. First with one arm, where
# create-passthrough.sh sends every packet straight back; then with two arms, where create-nat.sh
# sends it out by another interface. Exits 0 only if all of it worked, and leaves nothing behind.
#
# Installs the tools that it lacks through apt-get or dnf, and says so. The Rust toolchain must be
# there, unless GWLBTUN names a program that is built already, as /usr/bin/gwlbtun; then HOOKS names
# the directory of its hooks, and GWLB_SIM the simulated load balancer. ONLY=one-arm leaves the
# second half out.
set -euo pipefail
cd "$(dirname "$0")/.."

bytes=200000000
name=demo.gwlbtun.test answer4=192.0.2.7 answer6=2001:db8::7
health=http://127.0.0.1:8080/
lab=gwlbtun-demo-$$
gwlbtun=${GWLBTUN:-$PWD/target/release/gwlbtun}
hooks=${HOOKS:-$PWD/example-scripts}
gwlb_sim=${GWLB_SIM:-target/release/examples/gwlb-sim}
work=$(mktemp -d)
pids=() table=

cleanup() {
    hide_table
    stop_all
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# ---- What is shown ----

step() { step=$1; }
say() { printf '%s%s\n' "${table:+$'\r\e[J'}" "$1"; }
ok() { say "$(printf '%-24s ok   %s' "$step" "$1")"; }
fail() {
    hide_table
    printf '%-24s FAILED: %s\n' "$step" "$1" >&2
    tail -n 5 "$work"/*.log 2>/dev/null >&2 || true
    exit 1
}

# What passes the target's interfaces in a second, on a terminal, below everything else. A
# super-packet is one frame.
show_table() {
    [ -t 1 ] || return 0
    draw_table &
    table=$!
}

hide_table() {
    [ -n "$table" ] || return 0
    kill "$table" 2>/dev/null || true
    wait "$table" 2>/dev/null || true
    table=
    printf '\r\e[J'
}

draw_table() {
    local -A last=()
    local link now text rows
    trap - EXIT INT
    while :; do
        text=$(printf '    %-16s %12s %10s %14s %10s' \
            "" "frames in/s" "Mbit/s" "frames out/s" "Mbit/s")
        rows=1
        while read -r link now; do
            [[ $link =~ ^(eth|gw[io]-) ]] || continue
            # Of sixteen counters: bytes and frames in, bytes and frames out.
            read -ra now <<<"$now"
            # shellcheck disable=SC2206 # numbers
            local before=(${last[$link]:-${now[0]} ${now[1]} ${now[8]} ${now[9]}})
            last[$link]="${now[0]} ${now[1]} ${now[8]} ${now[9]}"
            text+=$(printf '\n    %-16s %12d %10d %14d %10d' "$link" \
                $((now[1] - before[1])) $(((now[0] - before[0]) / 125000)) \
                $((now[9] - before[3])) $(((now[8] - before[2]) / 125000)))
            rows=$((rows + 1))
        done < <(within target cat /proc/net/dev 2>/dev/null | tr ':' ' ')
        printf '\r\e[J\n%s\e[%dA\r' "$text" "$rows"
        sleep 1
    done
}

# ---- What runs ----

within() { ip netns exec "$lab-$1" "${@:2}"; }

# Starts a program in the background, with its output in a log, and sets "pid". What was started
# last is stopped first. The log is emptied here: what waits for a line in it may be quicker than
# the program, and must not find that of the one before.
start() {
    : >"$work/$1.log"
    "${@:2}" >>"$work/$1.log" 2>&1 &
    pid=$!
    pids=("$pid" "${pids[@]}")
}

stop_all() {
    local pid
    for pid in "${pids[@]}"; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    pids=()
}

# Polls a command until it succeeds, at most 10 s, while process $1 lives.
wait_for() {
    local tries=100
    until "${@:2}" >/dev/null 2>&1; do
        kill -0 "$1" 2>/dev/null || fail "its process ended; waited for: ${*:2}"
        ((tries-- > 0)) || fail "waited in vain: ${*:2}"
        sleep 0.1
    done
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

check_machine() {
    [ "$(id -u)" = 0 ] || fail "needs root; run: sudo $0"
    [ -c /dev/net/tun ] || fail "no /dev/net/tun; run: modprobe tun"
    local compiler=(cc:"gcc libc6-dev":gcc)
    [ -z "${GWLBTUN-}" ] || compiler=()
    tests/install-tools.sh --only "${compiler[@]}" \
        curl:curl:curl dig:bind9-dnsutils:bind-utils \
        dnsmasq:dnsmasq-base:dnsmasq ethtool:ethtool:ethtool flock:util-linux:util-linux-core \
        ip:iproute2:iproute iperf3:iperf3:iperf3 nft:nftables:nftables ping:iputils-ping:iputils \
        python3:python3:python3 sha256sum:coreutils:coreutils tc:iproute2:iproute-tc \
        tcpdump:tcpdump:tcpdump || fail "tools could not be installed"
    [ -n "${GWLBTUN-}" ] || as_builder cargo --version >/dev/null 2>&1 ||
        fail "no cargo for user $builder; install the Rust toolchain first (rustup)"
}

build() {
    local quiet=(--quiet)
    [ -z "${GWLBTUN-}" ] || return 0
    # The first build takes minutes, so it shows what it does.
    if [ ! -x "$gwlbtun" ] || [ ! -x "$gwlb_sim" ]; then
        quiet=()
        echo "The first build takes some minutes."
    fi
    as_builder cargo build --release --locked "${quiet[@]}" --bin gwlbtun --example gwlb-sim
}

# begin <topology> <hook> <server's namespace>
begin() {
    local hook=$hooks/$2 server=$3
    start simulator "$gwlb_sim" "$lab" --topology "$1" --health-port 8080
    simulator=$pid
    wait_for "$simulator" grep -q '^ready' "$work/simulator.log"
    # It ends before the simulator does, which removes the namespaces. At a Ctrl-C they end at the
    # same time, and the hook's notes, which then stay, go with our directory.
    start gwlbtun ip netns exec "$lab-target" env GWLBTUN_STATE_DIR="$work/hooks" \
        "$gwlbtun" -c "$hook" -r "$hook" -p 8080
    engine=$pid
    wait_for "$engine" within target curl -sf "$health"
    start http ip netns exec "$lab-$server" python3 -m http.server 8000 --bind "$server4" \
        --directory "$work/www"
    wait_for "$pid" within "$server" curl -sfI "http://$server4:8000/"
    start dns ip netns exec "$lab-$server" dnsmasq --no-daemon --conf-file=/dev/null --no-hosts \
        --no-resolv --user=root --pid-file= --bind-interfaces \
        --listen-address="$server4" --listen-address="$server6" \
        --address="/$name/$answer4" --address="/$name/$answer6"
    wait_for "$pid" within "$server" dig +short +time=1 +tries=1 "@$server4" "$name"
    start iperf3 ip netns exec "$lab-$server" iperf3 -s --forceflush -B "$server4"
    wait_for "$pid" grep -q listening "$work/iperf3.log"
    show_table
    ok "client, load balancer, gwlbtun with $2, server"
}

ping_server() {
    local summary
    summary=$(within client0 ping -c 5 -i 0.2 -W 5 "$1" | tail -n 2) || fail "no answer"
    [[ $summary == *" 5 received"* ]] || fail "$summary"
    ok "5 of 5, average $(cut -d/ -f5 <<<"${summary##*$'\n'}") ms"
}

resolve() {
    local got4 got6
    got4=$(within client0 dig +short "@$server4" "$name" A) || fail "dig: $got4"
    got6=$(within client0 dig +short "@$server6" "$name" AAAA) || fail "dig: $got6"
    [ "$got4 $got6" = "$answer4 $answer6" ] || fail "the answers are: $got4 $got6"
    ok "$name is $got4 and $got6"
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

# throughput <direction> [iperf3's switch for it]
throughput() {
    local said
    step "iperf3, $1"
    said=$(within client0 iperf3 -c "$server4" -t 3 "${@:2}" --connect-timeout 5000 2>&1) ||
        fail "$said"
    said=$(sed -n 's/.* \([0-9.]* [GMK]bits\/sec\).*receiver.*/\1/p' <<<"$said")
    [ -n "$said" ] || fail "no result"
    ok "$said"
}

# One ping and all that the target's kernel sees of it, in order.
stages() {
    local wanted=$1 capture shown
    shift
    : >"$work/tcpdump.log"
    ip netns exec "$lab-target" tcpdump -lni any -c "$wanted" 'udp port 6081 or icmp' \
        >"$work/stages" 2>>"$work/tcpdump.log" &
    capture=$!
    wait_for "$capture" grep -q listening "$work/tcpdump.log"
    within client0 ping -c 1 -W 5 "$server4" >/dev/null || fail "no answer"
    for _ in {1..50}; do
        kill -0 "$capture" 2>/dev/null || break
        sleep 0.1
    done
    kill "$capture" 2>/dev/null || true
    wait "$capture" 2>/dev/null || true
    # Without the time, and with less about GENEVE's header.
    shown=$(sed -E 's/^[^ ]+ //; s/Geneve, .*\]: IP/Geneve: IP/; s/^/    /' "$work/stages")
    for pattern in "$@"; do
        grep -qE "$pattern" <<<"$shown" || fail "not seen: $pattern"$'\n'"$shown"
    done
    ok "one ping there and back, as tcpdump sees it:"
    say "$shown"
}

show_health() {
    # After three good seconds, should another program have had the processors for two.
    wait_for "$engine" within target curl -sf -o "$work/health" "$health"
    ok "HTTP 200:"
    say "$(sed -e '/^<!DOCTYPE/d' -e '/^<html/d' -e 's/.*<body>//' -e '/^<.body>/d' -e '/^$/d' \
        -e 's/^/    /' "$work/health")"
}

# The simulator checks every packet that comes back, and the health as a load balancer does.
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

finish() {
    kill -TERM "$engine"
    wait "$engine" || fail "gwlbtun ended with status $?"
    hide_table
    stop_all
    ok "gwlbtun ended with status 0, everything is removed"
}

try_all() {
    step "ping over IPv4"
    ping_server "$server4"
    step "ping over IPv6"
    ping_server "$server6"
    step "DNS over IPv4 and IPv6"
    resolve
    step "download, $((bytes / 1000000)) MB"
    download
    throughput "to the server"
    throughput "from the server" -R
}

step "this machine"
check_machine
ok "tools are there"
step "build"
build || fail "cargo build"
ok "${gwlbtun#"$PWD/"}"
mkdir "$work/www"
head -c "$bytes" /dev/urandom >"$work/www/file"

step "one arm"
server4=10.1.0.2 server6=fd00:1::2
begin one-arm create-passthrough.sh server0
try_all
step "four stages"
stages 8 'eth0 +In .*Geneve' 'gwi-[^ ]+ +In ' 'gwo-[^ ]+ +Out' 'eth0 +Out .*Geneve'
step "health page"
show_health
step "AWS's rules"
check_rules
step "stop"
finish

[ "${ONLY-}" != one-arm ] || exit 0

step "two arms"
server4=198.51.100.1 server6=2001:db8:100::1
begin two-arm create-nat.sh internet
try_all
step "its stages"
stages 6 'eth0 +In .*Geneve' 'gwi-[^ ]+ +In ' 'eth1 +Out' 'eth1 +In' 'gwo-[^ ]+ +Out'
step "AWS's rules"
check_rules
step "stop"
finish
