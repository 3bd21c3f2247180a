#!/bin/sh
# Hook for gwlbtun's -c and -r: sends every packet of an endpoint straight back, no faster than a
# rate.
#
#   SHAPE_RATE=50mbit gwlbtun -c ./create-shape.sh -r ./create-shape.sh
#
#   gwi-<X> ──▶ redirect ──▶ token bucket ──▶ gwo-<X>
#
# SHAPE_RATE, in tc's units, is for both directions of all flows of the endpoint together; what is
# above waits up to SHAPE_LATENCY (default 50ms) and is dropped then, which slows TCP down.
# SHAPE_BURST (default 128k) goes at once: at least 64k, the largest frame that gwlbtun writes.
# Nothing is routed; the packet keeps its TTL. Endpoints have a bucket each.
#
# Arguments, as gwlbtun gives them: CREATE|DESTROY <gwi link> <gwo link> <endpoint id>.
# Running CREATE or DESTROY twice does no harm; a CREATE that fails leaves nothing.
. "$(dirname "$0")/hook-lib.sh"
need tc iproute2

rate=${SHAPE_RATE:-100mbit} burst=${SHAPE_BURST:-128k} latency=${SHAPE_LATENCY:-50ms}

create() {
    try tc qdisc add dev "$gwo" root handle 6081: tbf rate "$rate" burst "$burst" \
        latency "$latency"
    try tc qdisc add dev "$gwi" clsact
    # u32 with an empty match takes every packet, and unlike matchall no kernel lacks it.
    try tc filter add dev "$gwi" ingress protocol all u32 match u32 0 0 \
        action mirred egress redirect dev "$gwo"
}

# The kernel gives the link its usual queue again.
undo() {
    if tc qdisc show dev "$gwi" 2>/dev/null | grep -q clsact; then
        tc qdisc del dev "$gwi" clsact
    fi
    if tc qdisc show dev "$gwo" 2>/dev/null | grep -q '^qdisc tbf 6081: root'; then
        tc qdisc del dev "$gwo" root
    fi
}

act
