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
. "$(dirname "$0")/hook-lib.sh"
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

act
