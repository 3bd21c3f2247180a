#!/bin/sh
# Hook for gwlbtun's -c and -r: two-arm NAT. What an endpoint's clients send leaves by this host's
# own interface with the host's address; the answers go back to the endpoint.
#
#   gwlbtun -c ./create-nat.sh -r ./create-nat.sh
#
#   gwi-<X> ──▶ route, masquerade ──▶ eth0 ──▶ servers
#   gwo-<X> ◀── route by mark ◀────── eth0 ◀── answers
#
# The interface is that of the default route, found for IPv4 and IPv6 apart; a family without one is
# left alone. NAT_INTERFACE=ens6 names another, whose own default route is taken if it has one. On
# EC2 the instance's source and destination check must be off.
#
# Each connection is marked with the number of its endpoint, in the upper 16 bits of conntrack's
# mark. Answers get it as packet mark, and a rule sends marked packets to gwo. Where endpoints use
# the same addresses, use create-nat-overlapping.sh.
#
# nft is used where it is there, else iptables; FIREWALL=iptables chooses.
#
# Arguments, as gwlbtun gives them: CREATE|DESTROY <gwi link> <gwo link> <endpoint id>.
# Running CREATE or DESTROY twice does no harm; a CREATE that fails leaves nothing.
. "$(dirname "$0")/hook-lib.sh"

choose_firewall

# way_out -4|-6: sets out, the link of the first default route, and onward, that route if it is
# that of NAT_INTERFACE, which need not be the host's first
way_out() {
    try ip "$1" -o route show default ${NAT_INTERFACE:+dev "$NAT_INTERFACE"}
    route=$(echo "$said" | head -n 1)
    out=${NAT_INTERFACE:-$(echo "$route" | sed -n 's/.* dev \([^ ]*\).*/\1/p')}
    onward=
    if [ -n "${NAT_INTERFACE:-}" ] && [ -n "$route" ]; then
        onward="default $(echo "$route" | sed -n 's/.* \(via [^ ]*\) .*/\1/p') dev $out"
    fi
}

# route_family -4|-6 <onward>: answers go to gwo, and the rest where NAT_INTERFACE says
route_family() {
    try ip "$1" route add default dev "$gwo" table "$table"
    try ip "$1" rule add fwmark "$mark/0xffff0000" lookup "$table" priority 6081
    if [ -n "$2" ]; then
        # shellcheck disable=SC2086 # its words are wanted
        try ip "$1" route add $2 table "$onward_table"
        try ip "$1" rule add iif "$gwi" lookup "$onward_table" priority 6082
    fi
}

create() {
    new_number
    table=$((60810000 + number)) onward_table=$((60900000 + number))
    mark=$(printf '0x%x0000' "$number")
    out=${NAT_INTERFACE:-lo}
    [ -d "/proc/sys/net/ipv4/conf/$out" ] || fail "there is no link $out; see NAT_INTERFACE"
    way_out -4
    out4=$out onward4=$onward out6='' mss4='' mss6=''
    if has_ipv6; then
        way_out -6
        out6=$out
    fi
    [ -n "$out4$out6" ] || fail "no default route; add one, or set NAT_INTERFACE"
    no_reverse_path_filter
    if [ -n "$out4" ]; then
        lower_mss "$out4" 40
        mss4=$mss
        forward_ipv4_from "$mine" "$gwi"
        forward_ipv4_from "$shared" "$out4"
        # Answers come by another link than that to which the main table would send: the filter
        # of reverse paths may want any route (2), but not the same link (1).
        if [ -n "$onward4" ] && [ "$(cat "/proc/sys/net/ipv4/conf/$out4/rp_filter")" = 1 ]; then
            change "$shared" "ipv4/conf/$out4/rp_filter" 2
        fi
        route_family -4 "$onward4"
    fi
    if [ -n "$out6" ]; then
        lower_mss "$out6" 60
        mss6=$mss
        forward_ipv6
        route_family -6 "$onward"
    fi
    "rules_of_$firewall"
}

rules_of_nft() {
    is_of_endpoint="ct mark & 0xffff0000 == $mark"
    nat() { [ -z "$2" ] || echo "meta nfproto $1 oifname \"$2\" $is_of_endpoint masquerade"; }
    clamp() {
        [ -z "$2" ] || echo "meta nfproto $1 $is_of_endpoint tcp flags & (syn | rst) == syn \
                tcp option maxseg size set $3"
    }
    echo "table inet $gwi {
        chain prerouting {
            type filter hook prerouting priority mangle
            iifname \"$gwi\" ct mark set ct mark & 0xffff | $mark
            iifname != \"$gwi\" ct direction reply $is_of_endpoint \
                meta mark set meta mark & 0xffff | $mark
        }
        chain forward {
            type filter hook forward priority mangle
            $(clamp ipv4 "$out4" "$mss4")
            $(clamp ipv6 "$out6" "$mss6")
        }
        chain postrouting {
            type nat hook postrouting priority srcnat
            $(nat ipv4 "$out4")
            $(nat ipv6 "$out6")
        }
    }" | try nft -f -
}

rules_of_iptables() {
    [ -z "$out4" ] || rules_of_tables iptables "$out4" "$mss4"
    [ -z "$out6" ] || rules_of_tables ip6tables "$out6" "$mss6"
}

rules_of_tables() {
    is_syn="-p tcp --tcp-flags SYN,RST SYN"
    name="-m comment --comment $gwi" is_of_endpoint="-m connmark --mark $mark/0xffff0000"
    is_answer="! -i $gwi -m conntrack --ctdir REPLY $is_of_endpoint"
    try "$1-restore" --noflush --wait 10 <<END
*mangle
-A PREROUTING -i $gwi $name -j CONNMARK --set-xmark $mark/0xffff0000
-A PREROUTING $is_answer $name -j MARK --set-xmark $mark/0xffff0000
-A FORWARD $is_of_endpoint $is_syn $name -j TCPMSS --set-mss $3
COMMIT
*nat
-A POSTROUTING -o $2 $is_of_endpoint $name -j MASQUERADE
COMMIT
*filter
-A FORWARD -i $gwi $name -j ACCEPT
-A FORWARD -o $gwo $name -j ACCEPT
COMMIT
END
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
