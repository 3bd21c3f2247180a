#!/bin/sh
# What every target of this bench runs when it has made a pair of links: whatever it writes to gwi
# comes out of gwo, and nothing else happens to it. A redirect, not a mirror: the original of a
# mirrored packet also climbs the IP stack, which is a fifth of the whole cost per packet.
#
# Arguments, as AWS's program gives them to its hooks: CREATE|DESTROY gwi-name gwo-name endpoint-id
set -eu
[ "$1" = CREATE ] || exit 0
tc qdisc add dev "$2" clsact
tc filter add dev "$2" ingress protocol all u32 match u32 0 0 action mirred egress redirect dev "$3"
