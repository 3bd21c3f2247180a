#!/bin/sh
# Hook for gwlbtun's -c and -r: a transparent proxy of this host, such as HAProxy, stands between an
# endpoint's clients and their servers; everything else passes through.
#
#   haproxy -D -f ./haproxy.cfg
#   gwlbtun -c ./create-proxy.sh -r ./create-proxy.sh
#
#   gwi-<X> ──▶ TCP to port 80 or 443, or an answer to the proxy? ── yes ─▶ TPROXY ─▶ proxy
#   gwo-<X> ◀─────────────────────── no ──┘                                              │
#   gwo-<X> ◀── route by mark ◀──────────────────────────────────────────────────────────┘
#
# The client believes that it talks to the server, and the server to the client. The proxy must ask
# the server from the client's address and port: the load balancer takes back only what belongs to
# a flow of its own. HAProxy says "source 0.0.0.0 usesrc client" to that, see haproxy.cfg.
#
# PROXY_PORTS='80:3129 443:3130' says which ports of servers are the proxy's, and where it listens
# for each: on 127.0.0.1 and ::1, with IP_TRANSPARENT.
# PROXY_DOWN says what happens to new connections where nobody listens: pass (default), they pass
# as all else does; or refuse.
#
# Needs nft. The host needs a route to clients and servers (a default route is enough), which the
# packets do not take: without one the proxy cannot connect. Clients of two endpoints may have the
# same address, but not ask the same server from the same port within ten minutes.
#
# Arguments, as gwlbtun gives them: CREATE|DESTROY <gwi link> <gwo link> <endpoint id>.
# Running CREATE or DESTROY twice does no harm; a CREATE that fails leaves nothing.
. "$(dirname "$0")/hook-lib.sh"
need nft nftables

# How long a connection is remembered without a packet from its client or server. The load balancer
# forgets it after 350 s unless told otherwise.
idle=10m
# How many connections of an endpoint are remembered at most, of each family.
connections=262144

create() {
    case ${PROXY_DOWN:-pass} in
    pass | refuse) ;;
    *) fail "PROXY_DOWN is pass or refuse; got: $PROXY_DOWN" ;;
    esac
    for pair in ${PROXY_PORTS:=80:3129 443:3130}; do
        case $pair in
        :* | *: | *:*:* | *[!0-9:]*) fail "expected 80:3129 in PROXY_PORTS; got: $pair" ;;
        *:*) ;;
        *) fail "expected 80:3129 in PROXY_PORTS; got: $pair" ;;
        esac
    done
    route_through
    here=$((60900000 + number)) mark=$(printf '0x%x0000' "$number")
    route_family -4
    ! has_ipv6 || route_family -6
    lower_mss "$gwo" 40
    mss4=$mss
    lower_mss "$gwo" 60
    mss6=$mss
    rules | try nft -f -
}

# What came in by gwi with the mark is for the proxy; what the proxy sends with it goes to gwo.
route_family() {
    try ip "$1" route add local default dev lo table "$here"
    try ip "$1" rule add iif "$gwi" fwmark "$mark/0xffff0000" lookup "$here" priority 6080
    try ip "$1" rule add fwmark "$mark/0xffff0000" lookup $((60810000 + number)) priority 6081
}

# Both connections of the proxy have the same addresses and ports, which connection tracking takes
# for one that has lost its mind. So it does not see them, and a set remembers which are ours.
rules() {
    from4='ip saddr . tcp sport . ip daddr . tcp dport'
    from6='ip6 saddr . tcp sport . ip6 daddr . tcp dport'
    to4='ip daddr . tcp dport . ip saddr . tcp sport'
    to6='ip6 daddr . tcp dport . ip6 saddr . tcp sport'
    set="flags dynamic,timeout; timeout $idle; size $connections;"
    echo "table inet $gwi {
        set clients4 { type ipv4_addr . inet_service . ipv4_addr . inet_service; $set }
        set clients6 { type ipv6_addr . inet_service . ipv6_addr . inet_service; $set }
        chain prerouting {
            type filter hook prerouting priority raw
            iifname \"$gwi\" meta l4proto { tcp, icmp, icmpv6 } jump arrivals
        }
        chain arrivals {
            $(rules_of_ports)
            meta l4proto { icmp, icmpv6 } socket transparent 1 goto proxy
            meta nfproto ipv4 socket transparent 1 update @clients4 { $to4 } goto proxy
            meta nfproto ipv6 socket transparent 1 update @clients6 { $to6 } goto proxy
        }
        chain output {
            type route hook output priority raw
            $from4 @clients4 goto proxy
            $to4 @clients4 goto proxy
            $from6 @clients6 goto proxy
            $to6 @clients6 goto proxy
        }
        chain forward {
            type filter hook forward priority filter
            $(rules_of_refusal)
        }
        chain proxy {
            notrack
            meta nfproto ipv4 tcp flags & (syn | rst) == syn tcp option maxseg size set $mss4
            meta nfproto ipv6 tcp flags & (syn | rst) == syn tcp option maxseg size set $mss6
            meta mark set meta mark & 0xffff | $mark
        }
    }"
}

# A rule with "tproxy" ends there if nobody listens. Then the packet is forwarded, or refused by a
# reset that finds its way as the proxy's packets do.
rules_of_ports() {
    for pair in $PROXY_PORTS; do
        is_ours="tcp dport ${pair%:*}"
        remember4="update @clients4 { $from4 }" remember6="update @clients6 { $from6 }"
        echo "$is_ours meta nfproto ipv4 tproxy ip to 127.0.0.1:${pair#*:} $remember4 goto proxy"
        echo "$is_ours meta nfproto ipv6 tproxy ip6 to [::1]:${pair#*:} $remember6 goto proxy"
        [ "${PROXY_DOWN:-pass}" = refuse ] || continue
        echo "$is_ours meta nfproto ipv4 $remember4"
        echo "$is_ours meta nfproto ipv6 $remember6"
    done
}

rules_of_refusal() {
    [ "${PROXY_DOWN:-pass}" = refuse ] || return 0
    for pair in $PROXY_PORTS; do
        echo "iifname \"$gwi\" tcp dport ${pair%:*} reject with tcp reset"
    done
}

undo() {
    forget_rules
    if [ -n "$number" ]; then
        forget_table $((60810000 + number))
        forget_table $((60900000 + number))
    fi
    put_settings_back
}

begin
act
