#!/bin/bash
# Runs in the machine that .ci/run service boots: shows that the installed units do under systemd
# what they promise, one line for each, and powers off. The first failure ends it, with the journal.
set -Eeuo pipefail

lab=service
drop_ins=/etc/systemd/system/gwlbtun.service.d

say() { echo "service: $*"; }
within() { ip netns exec "$lab-$1" "${@:2}"; }
show() { systemctl show gwlbtun --value -p "$1"; }

fail() {
    trap - ERR
    # Not into the variable that a command was to fill.
    exec >/dev/console 2>&1
    say "FAILED: $1"
    systemctl status gwlbtun --no-pager || true
    journalctl -b -u 'gwlbtun*' --no-pager | tail -n 60 || true
    dmesg | tail -n 20 || true
    systemctl poweroff -ff
    exit 1
}
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR

# Polls a command until it succeeds, at most 2 minutes.
wait_for() {
    local tries=400
    until "$@" >/dev/null 2>&1; do
        ((tries-- > 0)) || fail "waited in vain: $*"
        sleep 0.3
    done
}

ping_both() {
    local server summary
    for server in 10.1.0.2 fd00:1::2; do
        summary=$(within client0 ping -c 3 -W 10 "$server" | tail -n 2) || fail "no answer: $server"
        [[ $summary == *" 3 received"* ]] || fail "$summary"
    done
}

is_active_again() { [ "$(show NRestarts)" = "$1" ] && systemctl is-active gwlbtun; }
links() { within target ip -o link show type tun | wc -l; }

modprobe -a tun veth sch_ingress cls_u32 act_mirred
gwlb-sim "$lab" >/run/simulator.log 2>&1 &
wait_for grep -q '^ready' /run/simulator.log
mkdir -p "$drop_ins"
cat >"$drop_ins/lab.conf" <<END
[Service]
NetworkNamespacePath=/run/netns/$lab-target
END
systemctl daemon-reload
say "$(systemctl --version | head -n 1)"

# Returns when READY=1 has come.
systemctl start gwlbtun
[ "$(show Type)" = notify ]
ping_both
[[ $(show StatusText) == "Healthy; endpoints: "* ]]
wait_for sh -c 'systemctl show gwlbtun -p StatusText | grep -q "endpoints: 1"'
say "start: ready, $(show StatusText)"

within target gwlbtun status >/run/status
grep -q '^OK ' /run/status
say "status: $(head -n 1 /run/status)"

kill -STOP "$(show MainPID)"
wait_for is_active_again 1
journalctl -u gwlbtun --no-pager | grep -q 'Watchdog timeout'
ping_both
say "stopped in its tracks: the watchdog starts it again, pings return"

kill -KILL "$(show MainPID)"
wait_for is_active_again 2
ping_both
say "killed: it is started again, pings return"

systemctl stop gwlbtun
[ "$(show Result) $(show ExecMainStatus) $(show ActiveState) $(links)" = "success 0 inactive 0" ]
say "stop: status 0, no link is left"

cp /usr/share/gwlbtun/unprivileged.conf "$drop_ins"
hook=/usr/lib/gwlbtun/create-passthrough.sh
cat >/etc/default/gwlbtun <<END
GWLBTUN_OPTIONS="-p 8080 -c $hook -r $hook --log-format journald"
GWLBTUN_TUNE_OPTIONS="--dev eth0"
END
systemctl daemon-reload
systemctl start gwlbtun
[ "$(stat -c %U "/proc/$(show MainPID)")" = gwlbtun ]
ping_both
say "unprivileged.conf: user gwlbtun, pings return"

journalctl -u gwlbtun -o json --no-pager | grep -q '"GWLBTUN_EVENT":"endpoint_created"'
say "journal: fields, $(journalctl -u gwlbtun GWLBTUN_EVENT=endpoint_created -o cat | tail -n 1)"

systemctl stop gwlbtun
[ "$(show Result) $(links)" = "success 0" ]
# What is in a namespace of its own has no place in /sys of the unit.
ip link add eth0 mtu 1500 type veth peer name peer0
systemctl start gwlbtun-tune
[ "$(ip -o link show eth0 | grep -c 'mtu 9001')" = 1 ]
changes=$(journalctl -u gwlbtun-tune -o cat --no-pager | grep -c ': changed')
systemctl stop gwlbtun-tune
[ "$(ip -o link show eth0 | grep -c 'mtu 1500')" = 1 ]
say "gwlbtun-tune: $changes changes, and back"
say "all proved"
systemctl poweroff -ff
