#!/bin/sh
# Hook for gwlbtun's -c and -r: routes every packet of an endpoint through this host and back.
#
#   gwlbtun -c ./create-route.sh -r ./create-route.sh
#
#   gwi-<X> ──▶ filters (nft, iptables FORWARD), IDS ──▶ gwo-<X>
#
# The load balancer sends both directions of every flow in through gwi, so one route serves both.
# The host is a router: it takes one off the TTL. What it says about that takes its own routes, so
# traceroute shows an answer from here if one of them leads to gwo. Packets for the host's own
# addresses are for the host. Endpoints may use the same addresses: each has a routing table.
#
# Arguments, as gwlbtun gives them: CREATE|DESTROY <gwi link> <gwo link> <endpoint id>.
# Running CREATE or DESTROY twice does no harm; a CREATE that fails leaves nothing.
. "$(dirname "$0")/hook-lib.sh"

create() { route_through; }

undo() {
    [ -z "$number" ] || forget_table $((60810000 + number))
    put_settings_back
}

begin
act
