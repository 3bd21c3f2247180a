#!/bin/sh
# Hook for gwlbtun's -c and -r: sends every packet of an endpoint straight back.
#
#   gwlbtun -c ./create-passthrough.sh -r ./create-passthrough.sh
#
#   gwi-<X> ──▶ redirect ──▶ gwo-<X>
#
# What appears on gwi-<X> is redirected, before the kernel looks at it, to leave by gwo-<X>, where
# gwlbtun takes it back to the load balancer. Nothing is routed, so neither ip_forward nor
# rp_filter matters, and the packet keeps its TTL. The load balancer sends both directions of
# every flow in through gwi, so one redirect serves both.
#
# Arguments, as gwlbtun gives them: CREATE|DESTROY <gwi link> <gwo link> <endpoint id>.
# Running CREATE or DESTROY twice does no harm; a CREATE that fails leaves nothing.
set -eu

if [ $# -ne 4 ]; then
    echo "usage: $0 CREATE|DESTROY <gwi link> <gwo link> <endpoint id>" >&2
    exit 1
fi
action=$1 gwi=$2 gwo=$3 id=$4

fail() {
    echo "$0: $(printf %s "$*" | tr '\n' ' ')" >&2
    exit 1
}

# Runs a command that is silent if all is well; what it says otherwise is our one line.
try() { said=$("$@" 2>&1) || fail "$*: $said"; }

need() { command -v "$1" >/dev/null || fail "$1 is missing; install the package $2"; }

case "$action $gwi $gwo" in
*[!0-9A-Za-z\ -]*) fail "a link's name has letters, digits and - only" ;;
"CREATE gwi-"*" gwo-"* | "DESTROY gwi-"*" gwo-"*) ;;
*) fail "expected CREATE or DESTROY, gwi-<X>, gwo-<X>; got: $action $gwi $gwo" ;;
esac
case $id in
'' | *[!0-9a-f]*) fail "an endpoint id is hexadecimal, as in 02b8ee1d4db0c51c4; got: $id" ;;
esac
while read -r key value; do
    case $key in CapEff:) capabilities=$value ;; esac
done </proc/self/status
case $capabilities in
*[13579bdf]???) ;; # bit 12
*) fail "may not change the network; run as root, or with CAP_NET_ADMIN" ;;
esac
need tc iproute2

# A redirect, not a mirror: the copy that a mirror leaves would climb the IP stack for nothing.
# u32 with an empty match takes every packet, and unlike matchall no kernel lacks it.
create() {
    try tc qdisc add dev "$gwi" clsact
    try tc filter add dev "$gwi" ingress protocol all u32 match u32 0 0 \
        action mirred egress redirect dev "$gwo"
}

# The filter goes with the qdisc. A link that is gone has neither.
undo() {
    if tc qdisc show dev "$gwi" 2>/dev/null | grep -q clsact; then
        tc qdisc del dev "$gwi" clsact
    fi
}

case $action in
CREATE)
    for link in "$gwi" "$gwo"; do
        [ -d "/proc/sys/net/ipv4/conf/$link" ] || fail "there is no link $link"
    done
    undo
    # If a part fails, the others go too.
    trap undo EXIT
    create
    trap - EXIT
    ;;
DESTROY) undo ;;
esac
