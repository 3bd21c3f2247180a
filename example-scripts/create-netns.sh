#!/bin/sh
# Hook for gwlbtun's -c and -r: a network namespace for each endpoint, in which its packets are
# routed from gwi to gwo. What runs there sees this endpoint only: its own filters, routes,
# conntrack and services, whatever addresses other endpoints use.
#
#   gwlbtun -c ./create-netns.sh -r ./create-netns.sh
#
#   ┌ namespace gwlbtun-<endpoint id> ──────────────────────┐
#   │ gwi-<X> ──▶ filters (nft, iptables FORWARD) ──▶ gwo-<X> │
#   └─────────────────────────────────────────────────────────┘
#
#   ip netns exec gwlbtun-02b8ee1d4db0c51c4 nft list ruleset
#
# NETNS_PREFIX (default "gwlbtun-") begins the name. gwlbtun itself stays where it is: a link
# belongs to whoever opened it, wherever it is. Namespaces need CAP_SYS_ADMIN too. Where a service
# manager gives gwlbtun its own view of the file system, they are seen in that view only: nsenter
# -m -t <process id> first.
#
# Arguments, as gwlbtun gives them: CREATE|DESTROY <gwi link> <gwo link> <endpoint id>.
# Running CREATE or DESTROY twice does no harm; a CREATE that fails leaves nothing.
. "$(dirname "$0")/hook-lib.sh"
need ip iproute2

name=${NETNS_PREFIX:-gwlbtun-}$id

# within <command>: runs it in the namespace
within() { ip netns exec "$name" "$@"; }

# settings <value> <file>...: below /proc/sys/net, of the namespace
settings() {
    # shellcheck disable=SC2016 # expanded by the shell within
    within sh -euc 'cd /proc/sys/net; value=$1; shift
        for file; do [ ! -e "$file" ] || echo "$value" >"$file"; done' sh "$@"
}

create() {
    try ip netns add "$name"
    try ip -n "$name" link set lo up
    # The namespace is ours alone, so its settings may be for all of it.
    try settings 0 ipv4/conf/all/rp_filter ipv4/conf/default/rp_filter
    try settings 1 ipv4/ip_forward ipv6/conf/all/forwarding
    for link in "$gwi" "$gwo"; do
        try ip link set "$link" netns "$name"
        try ip -n "$name" link set "$link" up
    done
    try settings 0 "ipv4/conf/$gwi/rp_filter"
    try ip -n "$name" route add default dev "$gwo"
    if [ "$(within cat "/proc/sys/net/ipv6/conf/$gwo/disable_ipv6" 2>/dev/null)" = 0 ]; then
        try ip -n "$name" -6 route add default dev "$gwo"
    fi
}

# Links go back, since they would end with the namespace, and gwlbtun removes them itself.
undo() {
    [ -e "/run/netns/$name" ] || return 0
    for link in "$gwi" "$gwo"; do
        ip -n "$name" link set "$link" netns $$ 2>/dev/null || continue
        ip link set "$link" up || true
    done
    ip netns del "$name"
}

act
