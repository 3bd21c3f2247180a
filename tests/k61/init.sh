#!/bin/bash
# Process 1 of the guest that .ci/run k61 boots: shows that the program works on this kernel, one
# line for each proof, and powers off. The first failure ends it, with the logs.
set -euo pipefail

export PATH=/usr/sbin:/usr/bin:/sbin:/bin:/k61
bytes=4000000
server4=10.1.0.2 server6=fd00:1::2 health=http://127.0.0.1:8080/
lab=k61
step="start" proofs=0 failures=0

say() { echo "k61: $*"; }
ok() {
    say "$step: ok${1:+, $1}"
    ((++proofs))
}
finish() {
    say "total: $proofs ok, $1 failed"
    poweroff -f
    # The kernel panics where process 1 ends, and power goes off a moment later.
    sleep 60
}
fail() {
    say "$step: FAILED: $1"
    # The simulator prints its counters.
    [ -z "${simulator-}" ] || { kill -USR1 "$simulator" && sleep 1; }
    tail -n 50 /tmp/*.log || true
    within target curl -sS --max-time 5 "$health" || true
    within target ip -s link show eth0 || true
    dmesg | tail -n 50
    finish "$((failures + 1))"
}
# A command that fails where no failure is looked for.
trap 'fail "$BASH_COMMAND"' EXIT

within() { ip netns exec "$lab-$1" "${@:2}"; }

# Polls a command until it succeeds, at most 60 s, while process $1 lives.
wait_for() {
    local tries=300
    until "${@:2}" >/dev/null 2>&1; do
        kill -0 "$1" 2>/dev/null || fail "its process ended; waited for: ${*:2}"
        ((tries-- > 0)) || fail "waited in vain: ${*:2}"
        sleep 0.2
    done
}

prepare() {
    /bin/busybox --install -s /bin
    mount -t proc proc /proc
    mount -t sysfs sysfs /sys
    mount -t devtmpfs devtmpfs /dev
    ln -s /proc/self/fd /dev/fd
    mount -t tmpfs tmpfs /run
    local module
    while read -r module; do insmod "$module"; done </modules/order
    ip link set lo up
    mkdir /tmp/www
    head -c "$bytes" /dev/urandom >/tmp/www/file
    # The hook of the demo, which also leaves a note that it ran.
    cat >/tmp/hook <<'EOF'
#!/bin/sh
/k61/create-passthrough.sh "$@" && echo "$*" >>/tmp/hooks.log
EOF
    chmod +x /tmp/hook
}

start() {
    gwlb-sim "$lab" >/tmp/simulator.log 2>&1 &
    simulator=$!
    wait_for "$simulator" grep -q '^ready' /tmp/simulator.log
    # Root's other capabilities would hide it if this kernel asked for more than that one.
    ip netns exec "$lab-target" setpriv --bounding-set=-all,+net_admin \
        gwlbtun -c /tmp/hook -r /tmp/hook -p 8080 >/tmp/gwlbtun.log 2>&1 &
    engine=$!
    wait_for "$engine" within target curl -sf "$health"
    ip netns exec "$lab-server0" httpd -f -p 8000 -h /tmp/www &
    wait_for "$!" within server0 curl -sfI "http://$server4:8000/file"
}

ping_server() {
    local summary
    summary=$(within client0 ping -c 5 -i 0.2 -W 10 "$1" | tail -n 2) || fail "no answer"
    [[ $summary == *" 5 received"* ]] || fail "$summary"
    ok "5 of 5"
}

download() {
    local got
    got=$(within client0 curl -sS --max-time 120 "http://$1:8000/file" | sha256sum) ||
        fail "curl"
    [ "$got" = "$(sha256sum </tmp/www/file)" ] || fail "the SHA-256 differs"
    ok "$bytes bytes, SHA-256 equal"
}

prepare
say "kernel: $(uname -r)"
start
say "gwlbtun: $(sed -n 's/.*\(io_uring: .*\)/\1/p' /tmp/gwlbtun.log)"
step="substitutes run"
grep -q 'multishot TUN read no: poll and read instead' /tmp/gwlbtun.log || fail "see gwlbtun's log"
ok
step="ping v4"
ping_server "$server4"
step="ping v6"
ping_server "$server6"
step="download v4"
download "$server4"
step="download v6"
download "[$server6]"
step="links"
links=$(within target ip -o link)
[[ $links == *" gwi-"* && $links == *" gwo-"* ]] || fail "$links"
grep -q '^CREATE gwi-' /tmp/hooks.log || fail "no CREATE hook"
ok "gwi and gwo, CREATE hook ran"
step="download behind tc police"
gwi=$(grep -o 'gwi-[^:@]*' <<<"$links") gwo=$(grep -o 'gwo-[^:@]*' <<<"$links")
# Before the hook's filter. The bucket has to hold a super-packet; the MTU is that of its packets.
within target tc filter add dev "$gwi" ingress pref 1 protocol all u32 match u32 0 0 \
    action police rate 1gbit burst 256k mtu 9000 conform-exceed drop/pipe \
    action mirred egress redirect dev "$gwo"
download "$server4"
policed=$(within target tc -s filter show dev "$gwi" ingress pref 1)
tc_passed=$(sed -n 's/.*Sent \([0-9]*\) bytes.*/\1/p' <<<"$policed" | head -n 1)
[ "${tc_passed:-0}" -gt "$bytes" ] || fail "$policed"
step="health page"
answer=$(within target curl -sS -o /tmp/health -w '%{http_code}' "$health") || fail "curl"
[ "$answer" = 200 ] || fail "HTTP $answer"
ok "HTTP 200"

step="AWS's rules"
kill -USR1 "$simulator"
wait_for "$simulator" grep -q '^{.*}$' /tmp/simulator.log
# The simulator checks every packet that comes back.
if sed -n 's/.*"breaches":{\([^}]*\)}.*/\1/p' /tmp/simulator.log | grep -q ':[1-9]'; then
    fail "see the simulator's log"
fi
ok "$(sed -n 's/.*"returned":\([0-9]*\).*/\1/p' /tmp/simulator.log) packets came back, none broken"

step="SIGTERM"
kill -TERM "$engine"
wait "$engine" || fail "gwlbtun ended with status $?"
ok "exit status 0"
step="DESTROY hook"
grep -q '^DESTROY gwi-' /tmp/hooks.log || fail "it did not run"
ok
step="links gone"
links=$(within target ip -o link)
[[ $links != *" gw"[io]-* ]] || fail "$links"
ok
# Seconds that one test of EXTRA may take. None takes a third of it on a quiet machine.
test_secs=180

# Runs the tests of the program $1 that are chosen by the words $2 as on its command line, each as a
# process of its own: one that fails or hangs is told, and does not take the others with it.
each_test() {
    local program=$1 words names name status began first=$SECONDS passed=0 failed=0
    read -ra words <<<"$2"
    # Those that are ignored are in both lists.
    names=$(
        sort <("$program" --list "${words[@]}") <("$program" --list --ignored "${words[@]}") |
            uniq -u | sed -n 's/: test$//p'
    )
    [ -n "$names" ] || fail "$program has no test $2"
    while read -r name; do
        began=$SECONDS status=0
        timeout -k 5 "$test_secs" "$program" --exact "$name" </dev/null >/tmp/test.log 2>&1 ||
            status=$?
        if [ "$status" = 0 ] && grep -q '^test result: ok. 1 passed' /tmp/test.log; then
            say "$name: ok, $((SECONDS - began)) s"
            ((++passed))
        else
            say "$name: FAILED, status $status after $((SECONDS - began)) s"
            tail -n 100 /tmp/test.log
            ((++failed))
        fi
    done <<<"$names"
    say "$program: $passed ok, $failed failed, $((SECONDS - first)) s"
    ((proofs += passed, failures += failed, 1))
}
if [ -e /k61/extra.sh ]; then
    # shellcheck source=/dev/null # tests/arm64.sh writes it
    . /k61/extra.sh
fi

step="kernel log"
if dmesg | grep 'WARNING: CPU'; then fail "the kernel warns"; fi
ok "no warning"
trap - EXIT
finish "$failures"
