# shellcheck shell=sh
# shellcheck disable=SC2034 # what is set here, hooks use
#
# What the hooks beside this file have in common. Each sources it with its own arguments, as gwlbtun
# gives them: CREATE|DESTROY <gwi link> <gwo link> <endpoint id>. Sets action, gwi, gwo, id; ends
# the hook with one line on standard error if something about them, or the caller's rights, is
# wrong.
set -eu

if [ $# -ne 4 ]; then
    echo "usage: $0 CREATE|DESTROY <gwi link> <gwo link> <endpoint id>" >&2
    exit 1
fi
action=$1 gwi=$2 gwo=$3 id=$4

fail() {
    echo "$0: $(printf %s "$*" | tr '\n' ' ')" >&2
    exit 1
}

# Runs a command that is silent if all is well; what it says otherwise is our one line.
try() { said=$("$@" 2>&1) || fail "$*: $said"; }

need() { command -v "$1" >/dev/null || fail "$1 is missing; install the package $2"; }

case "$action $gwi $gwo" in
*[!0-9A-Za-z\ -]*) fail "a link's name has letters, digits and - only" ;;
"CREATE gwi-"*" gwo-"* | "DESTROY gwi-"*" gwo-"*) ;;
"CREATE gwi-"*" none" | "DESTROY gwi-"*" none")
    fail "with --no-return there is no link back, which this hook needs; write one without it"
    ;;
*) fail "expected CREATE or DESTROY, gwi-<X>, gwo-<X>; got: $action $gwi $gwo" ;;
esac
case $id in
'' | *[!0-9a-f]*) fail "an endpoint id is hexadecimal, as in 02b8ee1d4db0c51c4; got: $id" ;;
esac
while read -r key value; do
    case $key in CapEff:) capabilities=$value ;; esac
done </proc/self/status
case $capabilities in
*[13579bdf]???) ;; # bit 12
*) fail "may not change the network; run as root, or with CAP_NET_ADMIN" ;;
esac

# Does what was asked for by the hook's "create" and "undo", all or nothing: "undo" runs first,
# since CREATE may come twice, and again if a part of "create" fails.
act() {
    undo
    [ "$action" = CREATE ] || return 0
    for link in "$gwi" "$gwo"; do
        [ -d "/proc/sys/net/ipv4/conf/$link" ] || fail "there is no link $link"
    done
    trap undo EXIT
    trap 'exit 1' INT TERM
    create
    trap - EXIT
}

# ---- What was changed is noted, so that DESTROY can undo it: in a file for each endpoint, and in
# ---- "shared" for what all endpoints need, which the last of them puts back, whatever its hook.
# ---- Hooks that note something call "begin" before "act".
state_dir=${GWLBTUN_STATE_DIR:-/run/gwlbtun-hooks}
state=$state_dir/$(stat -Lc %i /proc/self/ns/net) # one for each network namespace
mine=$state/$gwi shared=$state/shared

begin() {
    need ip iproute2
    need flock util-linux
    if mkdir -p "$state_dir" 2>/dev/null && [ -r "$state_dir" ]; then
        # One at a time, whatever --hook-jobs says: the last DESTROY removes $state.
        exec 9<"$state_dir"
        flock 9
        mkdir -p "$state" 2>/dev/null || true
    fi
    [ -w "$state" ] ||
        fail "cannot write $state; set GWLBTUN_STATE_DIR, or RuntimeDirectory=gwlbtun-hooks"
    number=$(sed -n 's/^number //p' "$mine" 2>/dev/null || true)
}

# note <file> <setting below /proc/sys/net>: keeps the first value that was found.
note() { grep -qs "^$2 " "$1" || echo "$2 $(cat "/proc/sys/net/$2")" >>"$1"; }

# write <setting> <value>
write() {
    (echo "$2" >"/proc/sys/net/$1") 2>/dev/null ||
        fail "cannot set $1 to $2 in /proc/sys/net; is it read-only, as in a container?"
}

# change <file> <setting> <value>
change() {
    [ "$(cat "/proc/sys/net/$2")" != "$3" ] || return 0
    note "$1" "$2"
    write "$2" "$3"
}

put_back() {
    [ -e "$1" ] || return 0
    while read -r setting value; do
        # What is gone, as a link may be, or is as it was, needs nothing.
        if [ "$(cat "/proc/sys/net/$setting" 2>/dev/null)" != "$value" ]; then
            (echo "$value" >"/proc/sys/net/$setting") 2>/dev/null || true
        fi
    done <"$1"
    rm -f "$1"
}

put_settings_back() {
    put_back "$mine"
    for other in "$state"/gwi-*; do
        # Who has no link any more needs nothing.
        [ ! -d "/proc/sys/net/ipv4/conf/${other##*/}" ] || return 0
    done
    put_back "$shared"
    rmdir "$state" 2>/dev/null || true
}

# IPv4 has a switch for each link.
forward_ipv4_from() { change "$1" "ipv4/conf/$2/forwarding" 1; }

# IPv6 has one for the host, which sets those of all links. A router believes no router's
# advertisements any more, and would lose its default route, unless accept_ra is 2.
forward_ipv6() {
    [ "$(cat /proc/sys/net/ipv6/conf/all/forwarding)" = 0 ] || return 0
    note "$shared" ipv6/conf/all/forwarding
    for conf in /proc/sys/net/ipv6/conf/*; do
        link=${conf##*/}
        note "$shared" "ipv6/conf/$link/forwarding"
        case $link in gw[io]-*) continue ;; esac
        if [ "$(cat "$conf/forwarding") $(cat "$conf/accept_ra")" = "0 1" ]; then
            change "$shared" "ipv6/conf/$link/accept_ra" 2
        fi
    done
    change "$shared" ipv6/conf/all/forwarding 1
}

# Sources of any address arrive by gwi, so its reverse path filter must be off. What is in force
# is the larger of a link's value and that of "all": if need be the latter moves to the others,
# and last to "default", which links follow until they get a value of their own.
no_reverse_path_filter() {
    note "$mine" "ipv4/conf/$gwi/rp_filter"
    write "ipv4/conf/$gwi/rp_filter" 0
    all=$(cat /proc/sys/net/ipv4/conf/all/rp_filter)
    [ "$all" != 0 ] || return 0
    note "$shared" ipv4/conf/all/rp_filter
    for conf in /proc/sys/net/ipv4/conf/*; do
        [ "${conf##*/}" = default ] || raise "${conf##*/}"
    done
    raise default
    change "$shared" ipv4/conf/all/rp_filter 0
}

raise() {
    [ ! -e "$state/$1" ] || return 0 # an endpoint's
    [ "$(cat "/proc/sys/net/ipv4/conf/$1/rp_filter")" -ge "$all" ] ||
        change "$shared" "ipv4/conf/$1/rp_filter" "$all"
}

# A number of the endpoint's own for its tables and marks, 16 bits long: that of gwi, as in
# "7: gwi-...".
new_number() {
    try ip -o link show dev "$gwi"
    number=$(((${said%%:*} - 1) % 65535 + 1))
    mkdir -p "$state"
    echo "number $number" >>"$mine"
}

# Removes a routing table and the rules that lead to it.
forget_table() {
    for family in -4 -6; do
        while ip "$family" rule del lookup "$1" 2>/dev/null; do :; done
        ip "$family" route flush table "$1" 2>/dev/null || true
    done
}

# What comes in by gwi leaves by gwo: a routing table of the endpoint's own, so that endpoints may
# use the same addresses.
route_through() {
    new_number
    no_reverse_path_filter
    forward_ipv4_from "$mine" "$gwi"
    route_family_through -4
    if has_ipv6; then
        forward_ipv6
        route_family_through -6
    fi
}

route_family_through() {
    try ip "$1" route add default dev "$gwo" table $((60810000 + number))
    try ip "$1" rule add iif "$gwi" lookup $((60810000 + number)) priority 6081
}

has_ipv6() { [ "$(cat "/proc/sys/net/ipv6/conf/$gwo/disable_ipv6" 2>/dev/null)" = 0 ]; }

# ---- Rules of nft are in a table of the endpoint's own, those of iptables have its name as
# ---- comment. Hooks that have some call "choose_firewall" first.
# Sets firewall: nft where it is there, else iptables.
choose_firewall() {
    firewall=${FIREWALL:-$(command -v nft >/dev/null && echo nft || echo iptables)}
    case $firewall in
    nft) need nft nftables ;;
    iptables)
        for tool in iptables-restore ip6tables-restore; do
            need $tool "iptables, or better nftables"
        done
        ;;
    *) fail "FIREWALL is nft or iptables; got: $firewall" ;;
    esac
}

forget_rules() {
    ! command -v nft >/dev/null || nft delete table inet "$gwi" 2>/dev/null || true
    for tables in iptables ip6tables; do
        command -v $tables-save >/dev/null || continue
        own=$($tables-save 2>/dev/null |
            sed -n "/^\*/p; /^COMMIT/p; s/^-A\(.* --comment $gwi \)/-D\1/p")
        case $own in
        *-D*) echo "$own" | $tables-restore --noflush --wait 10 2>/dev/null || true ;;
        esac
    done
}

# lower_mss <way out> <bytes of an IP and a TCP header>: sets mss, the largest TCP segment that both
# links take. SYNs are lowered to it (the kernel never raises them): an ICMP error that says that a
# packet is too large does not get back to a client through gwo.
lower_mss() {
    mss=65535
    for link in "$gwo" "$1"; do
        try ip -o link show dev "$link"
        mtu=${said##* mtu } mtu=${mtu%% *}
        [ $((mtu - $2)) -ge $mss ] || mss=$((mtu - $2))
    done
}
