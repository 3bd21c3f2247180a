#!/bin/sh
# Hook for gwlbtun's -c and -r: two-arm NAT for endpoints that use the same addresses, each by a
# way out of its own if need be.
#
#   gwlbtun -c ./create-nat-overlapping.sh -r ./create-nat-overlapping.sh
#
#   gwi-<A> 10.0.0.5:4000 ─▶ zone A ─▶ masquerade ─▶ way out of A ─▶ servers
#   gwi-<B> 10.0.0.5:4000 ─▶ zone B ─▶ masquerade ─▶ way out of B ─▶ servers
#   gwo-<A> or gwo-<B>    ◀─ route by mark          ◀──────────────── answers
#
# As create-nat.sh, and:
# - What comes from an endpoint's clients is in a conntrack zone of its own, so that equal
#   addresses and ports are different connections. Answers differ by the masquerade's ports.
# - NAT_MAP names the way out of endpoints: id, interface, IPv4 gateway, IPv6 gateway. Where a
#   gateway is missing, the interface's own default route says it; - leaves that family alone.
#     NAT_MAP='02b8ee1d4db0c51c4 ens6 10.10.1.1 fe80::1; 02b8ee1d4db0c51c5 ens7 10.10.2.1 -'
#   An endpoint that is not in it leaves by the host's default routes.
# - NAT_LOOKUP=aws asks the AWS CLI about an endpoint that is not in NAT_MAP: its tag "gwlbtun-nat"
#   holds what would follow the id. The instance's role needs ec2:DescribeVpcEndpoints, and the
#   endpoint must be of the same account.
# - Services of the host itself answer to the endpoint that asks.
#
# nft is used where it is there, else iptables; FIREWALL=iptables chooses.
#
# Arguments, as gwlbtun gives them: CREATE|DESTROY <gwi link> <gwo link> <endpoint id>.
# Running CREATE or DESTROY twice does no harm; a CREATE that fails leaves nothing.
. "$(dirname "$0")/hook-lib.sh"
[ "${NAT_LOOKUP:-}" != aws ] || need aws awscli

choose_firewall

# The entry of NAT_MAP, or else of the tag: interface, IPv4 gateway, IPv6 gateway
mapped() {
    entry=$(echo "${NAT_MAP:-}" | tr ';' '\n' |
        sed -n "s/^[[:space:]]*\(vpce-\)\{0,1\}${id}[[:space:]]\{1,\}//p" | head -n 1)
    if [ -z "$entry" ] && [ "${NAT_LOOKUP:-}" = aws ]; then
        query="VpcEndpoints[0].Tags[?Key=='gwlbtun-nat'].Value | [0]"
        try aws ec2 describe-vpc-endpoints --vpc-endpoint-ids "vpce-$id" --query "$query" \
            --output text
        [ "$said" = None ] || entry=$said
    fi
}

# default_route -4|-6 [<link>]: sets route, the first default route, if need be of that link
default_route() {
    try ip "$1" -o route show default ${2:+dev "$2"}
    route=$(echo "$said" | head -n 1)
}

# way_out -4|-6 <gateway, -, or nothing>: sets out, the interface, and via, how routes go on
way_out() {
    out=$interface via=
    if [ -z "$interface" ]; then
        default_route "$1"
        out=$(echo "$route" | sed -n 's/.* dev \([^ ]*\).*/\1/p')
    elif [ "$2" = - ]; then
        out=
    elif [ -n "$2" ]; then
        via="via $2"
    else
        default_route "$1" "$interface"
        [ -n "$route" ] || out=
        via=$(echo "$route" | sed -n 's/.* \(via [^ ]*\) .*/\1/p')
    fi
}

# Sets out4 and via4, out6 and via6.
find_ways_out() {
    mapped
    # shellcheck disable=SC2086 # its words are wanted
    set -- $entry
    interface=${1:-}
    way_out -4 "${2:-}"
    out4=$out via4=$via out6='' via6=''
    if has_ipv6; then
        way_out -6 "${3:-}"
        out6=$out via6=$via
    fi
    [ -n "$out4$out6" ] || fail "endpoint $id has no way out; add a default route, or see NAT_MAP"
    for out in $out4 $out6; do
        [ -d "/proc/sys/net/ipv4/conf/$out" ] || fail "there is no link $out; see NAT_MAP"
    done
}

# route_family -4|-6 <interface> <how routes go on>
route_family() {
    try ip "$1" route add default dev "$gwo" table "$back"
    try ip "$1" rule add fwmark "$mark/0xffff0000" lookup "$back" priority 6081
    if [ -n "$entry" ]; then
        # shellcheck disable=SC2086 # its words are wanted
        try ip "$1" route add default $3 dev "$2" table "$onward"
        try ip "$1" rule add iif "$gwi" lookup "$onward" priority 6082
    fi
}

create() {
    find_ways_out
    new_number
    back=$((60810000 + number)) onward=$((60900000 + number))
    mark=$(printf '0x%x0000' "$number")
    mss4='' mss6=''
    no_reverse_path_filter
    if [ -n "$out4" ]; then
        lower_mss "$out4" 40
        mss4=$mss
        forward_ipv4_from "$mine" "$gwi"
        forward_ipv4_from "$shared" "$out4"
        # Answers come by another link than that to which the main table would send: the filter
        # of reverse paths may want any route (2), but not the same link (1).
        if [ -n "$entry" ] && [ "$(cat "/proc/sys/net/ipv4/conf/$out4/rp_filter")" = 1 ]; then
            change "$shared" "ipv4/conf/$out4/rp_filter" 2
        fi
        route_family -4 "$out4" "$via4"
    fi
    if [ -n "$out6" ]; then
        lower_mss "$out6" 60
        mss6=$mss
        forward_ipv6
        route_family -6 "$out6" "$via6"
    fi
    "rules_of_$firewall"
}

rules_of_nft() {
    is_of_endpoint="ct mark & 0xffff0000 == $mark"
    is_answer="iifname != \"$gwi\" ct direction reply $is_of_endpoint"
    nat() { [ -z "$2" ] || echo "meta nfproto $1 oifname \"$2\" $is_of_endpoint masquerade"; }
    clamp() {
        [ -z "$2" ] || echo "meta nfproto $1 $is_of_endpoint tcp flags & (syn | rst) == syn \
                tcp option maxseg size set $3"
    }
    echo "table inet $gwi {
        chain zone {
            type filter hook prerouting priority raw
            iifname \"$gwi\" ct original zone set $number
        }
        chain prerouting {
            type filter hook prerouting priority mangle
            iifname \"$gwi\" ct mark set ct mark & 0xffff | $mark
            $is_answer meta mark set meta mark & 0xffff | $mark
        }
        chain output {
            type route hook output priority mangle
            ct state established ct direction reply $is_of_endpoint \
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
    is_answer="-m conntrack --ctdir REPLY $is_of_endpoint"
    try "$1-restore" --noflush --wait 10 <<END
*raw
-A PREROUTING -i $gwi $name -j CT --zone-orig $number
COMMIT
*mangle
-A PREROUTING -i $gwi $name -j CONNMARK --set-xmark $mark/0xffff0000
-A PREROUTING ! -i $gwi $is_answer $name -j MARK --set-xmark $mark/0xffff0000
-A OUTPUT -m conntrack --ctstate ESTABLISHED $is_answer $name -j MARK --set-xmark $mark/0xffff0000
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
