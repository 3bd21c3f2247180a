#!/bin/sh
# What every target of this bench runs when it has made a pair of links: whatever it writes to gwi
# comes out of gwo, and nothing else happens to it. A redirect, not a mirror: the original of a
# mirrored packet also climbs the IP stack, which is a fifth of the whole cost per packet.
#
# With GWLBTUN_BENCH_RULES=N each frame is compared with N rules first that match nothing: what an
# inspection costs, on the target's core.
#
# Arguments, as AWS's program gives them to its hooks: CREATE|DESTROY gwi-name gwo-name endpoint-id
set -eu
[ "$1" = CREATE ] || exit 0
tc qdisc add dev "$2" clsact
rule="filter add dev $2 ingress protocol all prio 1 u32 match u32 0xffffffff 0xffffffff at 0"
seq "${GWLBTUN_BENCH_RULES:-0}" | sed "s/.*/$rule/" | tc -batch -
tc filter add dev "$2" ingress protocol all prio 2 u32 match u32 0 0 \
    action mirred egress redirect dev "$3"
