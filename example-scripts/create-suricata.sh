#!/bin/sh
# Hook for gwlbtun's -c and -r: Suricata sees every packet of an endpoint, and decides on it.
#
#   suricata -c /etc/suricata/suricata.yaml -q 0 -D
#   gwlbtun -c ./create-suricata.sh -r ./create-suricata.sh
#
#   gwi-<X> ──▶ FORWARD ──▶ queue (NFQUEUE) ──▶ gwo-<X>
#                            ▲ │
#                   verdict ─┘ ▼
#                           Suricata
#
# Routes as create-route.sh does; what is forwarded then waits in a queue for Suricata's verdict.
# Both directions of a flow come in through gwi and go to the same queue.
#
# SURICATA_QUEUES=0-3 spreads flows over queues 0 to 3, by their addresses: suricata -q 0:3, one
# thread each. Default 0.
# SURICATA_DOWN says what happens where nobody listens to a queue, as before Suricata has started or
# after it has died: pass (default), all packets pass uninspected, since the load balancer does not
# know and keeps sending; or drop, nothing passes until it is back.
#
# Suricata does not know endpoints: where two of them may use the same addresses, give each a queue
# and a Suricata of its own, see README.md.
#
# nft is used where it is there and the kernel has its "queue", else iptables; FIREWALL=iptables
# chooses.
#
# Arguments, as gwlbtun gives them: CREATE|DESTROY <gwi link> <gwo link> <endpoint id>.
# Running CREATE or DESTROY twice does no harm; a CREATE that fails leaves nothing.
. "$(dirname "$0")/hook-lib.sh"

choose_firewall

# Sets first and last.
parse_queues() {
    queues=${SURICATA_QUEUES:-0}
    first=${queues%-*} last=${queues#*-}
    case $first,$last in
    ,* | *, | *[!0-9,]*) fail "SURICATA_QUEUES is a number or a range, as in 0-3; got: $queues" ;;
    esac
    [ "$first" -le "$last" ] || fail "SURICATA_QUEUES is the wrong way round: $queues"
}

create() {
    parse_queues
    case ${SURICATA_DOWN:-pass} in
    pass | drop) ;;
    *) fail "SURICATA_DOWN is pass or drop; got: $SURICATA_DOWN" ;;
    esac
    route_through
    # A kernel may have NFQUEUE, and not that of nft.
    if [ -z "${FIREWALL:-}" ] && [ "$firewall" = nft ] && ! nft_rules | nft -c -f - 2>/dev/null &&
        command -v iptables-restore >/dev/null; then
        firewall=iptables
    fi
    "rules_of_$firewall"
}

# After the host's own filters: Suricata need not see what they drop.
nft_rules() {
    flags='flags bypass'
    [ "${SURICATA_DOWN:-pass}" = pass ] || flags=
    echo "table inet $gwi {
        chain forward {
            type filter hook forward priority filter + 10
            iifname \"$gwi\" queue $flags to $first-$last
        }
    }"
}

rules_of_nft() { nft_rules | try nft -f -; }

rules_of_iptables() {
    rules_of_tables iptables
    ! has_ipv6 || rules_of_tables ip6tables
}

rules_of_tables() {
    name="-m comment --comment $gwi" bypass=--queue-bypass which="--queue-balance $first:$last"
    [ "$first" != "$last" ] || which="--queue-num $first"
    [ "${SURICATA_DOWN:-pass}" = pass ] || bypass=
    try "$1-restore" --noflush --wait 10 <<END
*mangle
-A FORWARD -i $gwi $name -j NFQUEUE $which $bypass
COMMIT
*filter
-A FORWARD -i $gwi $name -j ACCEPT
COMMIT
END
}

undo() {
    forget_rules
    [ -z "$number" ] || forget_table $((60810000 + number))
    put_settings_back
}

begin
act
