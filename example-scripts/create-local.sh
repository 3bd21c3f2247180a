#!/bin/sh
# Hook for gwlbtun's -c and -r: services on this host answer an endpoint's clients; everything
# else passes through.
#
#   gwlbtun -c ./create-local.sh -r ./create-local.sh
#
#   gwi-<X> ──▶ for an address of this host? ── yes ─▶ the service
#   gwo-<X> ◀───────────── no ──┘                        │
#   gwo-<X> ◀── route by mark ◀──────────────────────────┘ its answers
#
# LOCAL_ADDRESSES='198.51.100.10 2001:db8::10' gives the endpoint's gwi more addresses to answer
# for, which need be no interface's own. A service must listen on them, or on all addresses; this
# includes those that you would rather not show to clients, so filter what comes in by gwi.
#
# Each connection to the host is marked with the number of its endpoint, in the upper 16 bits of
# conntrack's mark; its answers get it as packet mark, and a rule sends marked packets to gwo. The
# host needs a route to the clients (a default route is enough): without one it does not begin to
# answer. Clients of two endpoints may have the same address, but not the same port at once.
#
# nft is used where it is there, else iptables; FIREWALL=iptables chooses.
#
# Arguments, as gwlbtun gives them: CREATE|DESTROY <gwi link> <gwo link> <endpoint id>.
# Running CREATE or DESTROY twice does no harm; a CREATE that fails leaves nothing.
. "$(dirname "$0")/hook-lib.sh"

choose_firewall

# addresses add|del: those of LOCAL_ADDRESSES, where IPv6 has no other node to ask first
addresses() {
    for address in ${LOCAL_ADDRESSES:-}; do
        case $address in
        *:*) ip -6 addr "$1" "$address/128" dev "$gwi" nodad ;;
        *) ip addr "$1" "$address/32" dev "$gwi" ;;
        esac
    done
}

create() {
    new_number
    table=$((60810000 + number)) mark=$(printf '0x%x0000' "$number")
    no_reverse_path_filter
    forward_ipv4_from "$mine" "$gwi"
    try addresses add
    route_family -4
    if has_ipv6; then
        forward_ipv6
        route_family -6
    fi
    "rules_of_$firewall"
}

route_family() {
    try ip "$1" route add default dev "$gwo" table "$table"
    try ip "$1" rule add iif "$gwi" lookup "$table" priority 6081
    try ip "$1" rule add fwmark "$mark/0xffff0000" lookup "$table" priority 6081
}

rules_of_nft() {
    echo "table inet $gwi {
        chain input {
            type filter hook input priority mangle
            iifname \"$gwi\" ct mark set ct mark & 0xffff | $mark
        }
        chain output {
            type route hook output priority mangle
            ct state established ct direction reply ct mark & 0xffff0000 == $mark \
                meta mark set meta mark & 0xffff | $mark
        }
    }" | try nft -f -
}

rules_of_iptables() {
    rules_of_tables iptables
    ! has_ipv6 || rules_of_tables ip6tables
}

rules_of_tables() {
    name="-m comment --comment $gwi" is_answer="--ctstate ESTABLISHED --ctdir REPLY"
    is_answer="-m conntrack $is_answer -m connmark --mark $mark/0xffff0000"
    try "$1-restore" --noflush --wait 10 <<END
*mangle
-A INPUT -i $gwi $name -j CONNMARK --set-xmark $mark/0xffff0000
-A OUTPUT $is_answer $name -j MARK --set-xmark $mark/0xffff0000
COMMIT
*filter
-A FORWARD -i $gwi $name -j ACCEPT
COMMIT
END
}

undo() {
    forget_rules
    [ -z "$number" ] || forget_table $((60810000 + number))
    addresses del 2>/dev/null || true
    put_settings_back
}

begin
act
