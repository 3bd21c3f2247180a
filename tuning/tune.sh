#!/usr/bin/env bash
# tune.sh check|apply|undo [--dry-run] [--profile NAME] [--two-arm] [--dev LINK]...
#         [--irq-cpus LIST|all]
#
# Prepares a target of a Gateway Load Balancer for gwlbtun; README.md beside this says what and why.
#
#   check   one line a topic; exit status 0 if all is well, 1 if apply would change something
#   apply   changes it, and records what was there before
#   undo    puts back what apply found
#
# Exit status 2 is an error. Nothing outlives a reboot, and nothing is written that undo would not
# restore: first the record, then the change.
#
# These move its roots, for tests and for looking at another host's tree:
# SYSFS PROC RUN ETC STATE CONF IMDS.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
# shellcheck source=tuning/tune-lib.sh
. "$here/tune-lib.sh" || exit 2

SYSFS=${SYSFS:-/sys} PROC=${PROC:-/proc} RUN=${RUN:-/run} ETC=${ETC:-/etc}
STATE=${STATE:-/var/lib/gwlbtun/tune.state} IMDS=${IMDS:-http://169.254.169.254}

usage="usage: tune.sh check|apply|undo [--dry-run] [--profile c5n|c6in|c6gn|c7gn|t4g|generic]\
 [--two-arm] [--dev LINK]... [--irq-cpus LIST|all]"

profile='' two_arm='' irq_option='' devices=() topic='' spoken=0 changes=0 errors=0

fail() {
    echo "tune.sh: $1" >&2
    exit 2
}

# One line about the topic at hand.
say() {
    spoken=1
    echo "$topic: $1"
}

would() {
    changes=1
    say "would change $1"
}

complain() {
    spoken=1 errors=1
    echo "tune.sh: $topic: $1" >&2
}

parse_arguments() {
    local word
    case ${1-} in
    check | apply | undo) verb=$1 ;;
    *) fail "$usage" ;;
    esac
    shift
    while [ $# -gt 0 ]; do
        word=$1
        shift
        case $word in
        --dry-run) dry=1 && continue ;;
        --two-arm) two_arm=1 && continue ;;
        --profile | --dev | --irq-cpus) [ -n "${1-}" ] || fail "$word needs a value; $usage" ;;
        *) fail "unknown word \"$word\"; $usage" ;;
        esac
        case $word in
        --profile) profile=$1 ;;
        --dev) devices+=("$1") ;;
        --irq-cpus) irq_option=$1 ;;
        esac
        shift
    done
    [[ $profile =~ ^(|c5n|c6in|c6gn|c7gn|t4g|generic)$ ]] ||
        fail "no profile \"$profile\"; take c5n, c6in, c6gn, c7gn, t4g or generic"
    [[ $irq_option =~ ^(|all|[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*)$ ]] ||
        fail "--irq-cpus \"$irq_option\" is no list of CPUs like 0,2-3"
}

online=() irq_cpus='' worker_cpus=''

# Which CPUs take interrupts, and which are the workers'. Below 8 CPUs, and on a profile that
# saves, all do both. Else a quarter takes interrupts, whole cores, near the interface.
plan_cpus() {
    local text near node cpu sibling others
    text=$(cat "$SYSFS/devices/system/cpu/online" 2>/dev/null) ||
        fail "cannot read $SYSFS/devices/system/cpu/online; is sysfs mounted?"
    read -ra online <<<"$(expand "$text")"
    irq_cpus="${online[*]}" worker_cpus="${online[*]}"
    if [ -n "$irq_option" ] && [ "$irq_option" != all ]; then
        irq_cpus=$(expand "$irq_option" | xargs -n 1 | sort -nu | xargs)
        [ -n "$irq_cpus" ] || fail "--irq-cpus $irq_option has no CPU: the smaller number first"
        for cpu in $irq_cpus; do
            [[ " ${online[*]} " == *" $cpu "* ]] ||
                fail "--irq-cpus $irq_option: CPU $cpu is not among those online, $text"
        done
    elif [ -z "$irq_option" ] && [ ${#online[@]} -ge 8 ] && [ "$profile" != t4g ]; then
        node=$(cat "$SYSFS/class/net/${devices[0]}/device/numa_node" 2>/dev/null || echo -1)
        near=$(cat "$SYSFS/devices/system/node/node$node/cpulist" 2>/dev/null || echo "$text")
        irq_cpus=''
        for cpu in $(expand "$near"); do
            [ "$(wc -w <<<"$irq_cpus")" -lt $((${#online[@]} / 4)) ] || break
            [[ " $irq_cpus " != *" $cpu "* ]] || continue
            sibling=$SYSFS/devices/system/cpu/cpu$cpu/topology/thread_siblings_list
            irq_cpus="$irq_cpus $(expand "$(cat "$sibling" 2>/dev/null || echo "$cpu")")"
        done
        irq_cpus=$(xargs <<<"$irq_cpus")
    fi
    others=()
    for cpu in "${online[@]}"; do
        [[ " $irq_cpus " == *" $cpu "* ]] || others+=("$cpu")
    done
    [ ${#others[@]} = 0 ] || worker_cpus="${others[*]}"
}

# ---- The machine ----------------------------------------------------------------------------

# The instance type: what the firmware says, else what the metadata service says (IMDSv2). Only
# asked on a host of EC2.
instance_type() {
    local name vendor token dmi=$SYSFS/class/dmi/id
    name=$(cat "$dmi/product_name" 2>/dev/null || true)
    vendor=$(cat "$dmi/sys_vendor" "$dmi/bios_vendor" 2>/dev/null || true)
    if [[ $vendor != *Amazon* ]]; then
        return
    elif [[ $name =~ ^[a-z0-9-]+\.[a-z0-9-]+$ ]]; then
        echo "$name"
    elif command -v curl >/dev/null; then
        token=$(curl -sf -m 2 -X PUT "$IMDS/latest/api/token" \
            -H 'X-aws-ec2-metadata-token-ttl-seconds: 60') || return 0
        curl -sf -m 2 -H "X-aws-ec2-metadata-token: $token" \
            "$IMDS/latest/meta-data/instance-type" || true
    fi
}

# The settings of sysctl that are asked for: beside this script, or where they were installed.
find_conf() {
    CONF=${CONF:-$here/90-gwlbtun.conf}
    [ -e "$CONF" ] || CONF=$ETC/sysctl.d/90-gwlbtun.conf
    [ -e "$CONF" ] || fail "no 90-gwlbtun.conf beside tune.sh or in $ETC/sysctl.d; install it"
}

find_profile() {
    local type
    [ -z "$profile" ] || return 0
    type=$(instance_type)
    case ${type%%.*} in
    c5n | c6in | c6gn | c7gn | t4g) profile=${type%%.*} ;;
    *) profile=generic ;;
    esac
}

# The links of the default routes, unless the command line names others.
find_devices() {
    local device
    if [ ${#devices[@]} = 0 ]; then
        mapfile -t devices < <(awk 'NR > 1 && $2 == "00000000" && $8 == "00000000" && !seen[$1]++ {
            print $1 }' "$PROC/net/route" 2>/dev/null)
    fi
    [ ${#devices[@]} -gt 0 ] || fail "no default route names the interface to tune; give --dev LINK"
    mapfile -t devices < <(printf '%s\n' "${devices[@]}" | awk '!seen[$0]++')
    for device in "${devices[@]}"; do
        if [[ $device =~ ^\.\.?$|/ ]] || [ ! -d "$SYSFS/class/net/$device" ]; then
            fail "no link $device here; see: ip link"
        fi
    done
}

# ---- Topics ---------------------------------------------------------------------------------
# Each calls `want`, and leaves in `summary` what its line says if all is well.

topic_sysctl() {
    local key wanted path count=0
    while IFS="=" read -r key wanted; do
        read -r key <<<"${key#-}"
        read -r wanted <<<"$wanted"
        count=$((count + 1))
        # A star stands for links that are there now.
        for path in "$PROC/sys/"${key//.//}; do
            if [[ $key == *"*"* ]] && [ ! -e "$path" ]; then
                continue
            fi
            case $key in
            net.core.*) want_at_least file "$path" "$wanted" "$key" ;;
            *_reserved_ports) want_ports "$path" "$wanted" "$key" ;;
            *) want file "$path" "$wanted" "$(sed "s,^$PROC/sys/,,; s,/,.,g" <<<"$path")" ;;
            esac
        done
    done < <(grep -v '^[[:space:]]*\(#\|$\)' "$CONF")
    summary="$count settings as in $CONF"
}

# Ports that are reserved already stay so.
want_ports() {
    local path=$1 wanted=$2
    if get file "$path" && [ -n "$value" ]; then
        [[ ,$value, != *",$wanted,"* ]] || return 0
        wanted=$value,$wanted
    fi
    want file "$path" "$wanted" "$3"
}

topic_memory() {
    local kilobytes
    kilobytes=$(awk '/^MemTotal:/ { print $2 }' "$PROC/meminfo")
    want_at_least file "$PROC/sys/vm/min_free_kbytes" $((kilobytes / 100)) vm.min_free_kbytes
    summary="a hundredth of the memory stays free for interrupts"
}

topic_mtu() {
    local device
    for device in "${devices[@]}"; do
        if ! get file "$SYSFS/class/net/$device/mtu" || [ "$value" -lt 8568 ]; then
            want file "$SYSFS/class/net/$device/mtu" 9001 "mtu of $device"
        fi
    done
    summary="8568 or more on ${devices[*]}"
}

topic_queues() {
    local device most
    for device in "${devices[@]}"; do
        if get_ethtool "$device:combined" Pre-set; then
            most=$((value < ${#online[@]} ? value : ${#online[@]}))
            want_at_least ethtool "$device:combined" "$most" "queues of $device"
        else
            say "cannot be known here: $reason"
        fi
    done
    summary="as many as ${devices[*]} can have for ${#online[@]} CPUs"
}

# Each receive entry holds a page. All of them take a 64th of the memory at most.
topic_rings() {
    local device entries=8192 queues pages
    case $profile in
    t4g) entries=1024 ;;
    c5n) entries=4096 ;;
    esac
    summary="left as they are on $profile"
    [ "$profile" != generic ] || return 0
    pages=$(awk '/^MemTotal:/ { print int($2 / 64 / 4) }' "$PROC/meminfo")
    for device in "${devices[@]}"; do
        queues=1
        ! get_ethtool "$device:combined" || queues=$value
        while [ $((entries * queues)) -gt "$pages" ] && [ "$entries" -gt 1024 ]; do
            entries=$((entries / 2))
        done
        want_ring "$device:rx" "$entries"
        want_ring "$device:tx" 1024
    done
    summary="$entries entries or more in each receive ring of ${devices[*]}"
}

want_ring() {
    local wanted=$2
    if ! get_ethtool "$1" Pre-set; then
        say "cannot be known here: $reason"
        return
    fi
    [ "$value" -ge "$wanted" ] || wanted=$value
    want_at_least ethtool "$1" "$wanted" "${1##*:} ring of ${1%%:*}"
}

topic_moderation() {
    local device
    summary="left as it is on $profile"
    [ "$profile" != generic ] || return 0
    for device in "${devices[@]}"; do
        want ethtool "$device:adaptive-rx" on "adaptive-rx of $device"
    done
    summary="the interface waits longer for an interrupt the more arrives"
}

topic_gro() {
    local device
    for device in "${devices[@]}"; do
        want ethtool "$device:gro" on "gro of $device"
    done
    summary="Linux may merge datagrams for gwlbtun"
}

irqs_of() {
    local irq
    for irq in "$SYSFS/class/net/$1/device/msi_irqs/"*; do
        irq=${irq##*/}
        # The management interrupt of an ENA carries no packets.
        [ ! -e "$PROC/irq/$irq/smp_affinity_list" ] ||
            compgen -G "$PROC/irq/$irq/*mgmnt*" >/dev/null || echo "$irq"
    done | sort -n
}

# The driver makes its interrupts anew for other queues, rings or an MTU, and forgets their CPUs.
remember_irqs() {
    local device irq
    for device in "${devices[@]}"; do
        for irq in $(irqs_of "$device"); do
            remember file "$PROC/irq/$irq/smp_affinity_list"
        done
    done
}

topic_irqs() {
    local device irq turn=0 cpus irqs=()
    summary="on CPUs $(compress "$irq_cpus")"
    if grep -qsx irqbalance "$PROC"/[0-9]*/comm; then
        want_bans
        return
    fi
    read -ra cpus <<<"$irq_cpus"
    for device in "${devices[@]}"; do
        mapfile -t irqs < <(irqs_of "$device")
        [ ${#irqs[@]} -gt 0 ] || say "cannot be known here: $device shows no interrupts of its own"
        speak_later "CPUs of $device's interrupts"
        for irq in "${irqs[@]}"; do
            want file "$PROC/irq/$irq/smp_affinity_list" "${cpus[turn % ${#cpus[@]}]}" "$irq"
            turn=$((turn + 1))
        done
        speak_of_them
    done
}

# irqbalance undoes what others set, so it is told the CPUs to keep off.
want_bans() {
    local banned=none file
    summary="irqbalance keeps them on CPUs $(compress "$irq_cpus")"
    [ "$irq_cpus" = "$worker_cpus" ] || banned=$(compress "$worker_cpus")
    for file in "$ETC/sysconfig/irqbalance" "$ETC/default/irqbalance"; do
        if grep -qs '^[[:space:]]*IRQBALANCE_BANNED_CPU' "$file"; then
            say "cannot be known here: $file bans CPUs itself; make it ban $banned, or nothing"
            return
        fi
    done
    if command -v systemctl >/dev/null; then
        want irqbalance "$RUN/systemd/system/irqbalance.service.d/gwlbtun.conf" "$banned" \
            "CPUs banned for irqbalance"
    else
        say "cannot be known here: irqbalance runs without systemd; have it ban CPUs $banned"
    fi
}

count_queues() { compgen -G "$SYSFS/class/net/$1/queues/$2-*" | wc -l; }

# Spreading by software pays only where the hardware has fewer queues than CPUs for them.
topic_rps() {
    local device queue wanted
    for device in "${devices[@]}"; do
        wanted=0
        if [ "$(count_queues "$device" rx)" -lt "$(wc -w <<<"$irq_cpus")" ]; then
            wanted=$(mask "$irq_cpus")
        fi
        speak_later "rps_cpus of $device"
        for queue in "$SYSFS/class/net/$device/queues/rx-"*; do
            want file "$queue/rps_cpus" "$wanted" "${queue##*/}"
        done
        speak_of_them
    done
    summary="as the number of queues asks for"
}

# Each worker sends on a queue of its own, or shares it with as few others as can be.
topic_xps() {
    local device queue queues cpus index position mine
    read -ra cpus <<<"$(tr ' ' '\n' <<<"$worker_cpus $irq_cpus" | awk '!seen[$1]++' | xargs)"
    summary="each CPU has its queue"
    for device in "${devices[@]}"; do
        queues=$(count_queues "$device" tx)
        if [ "$queues" -lt 2 ]; then
            summary="$device has one queue"
            continue
        fi
        speak_later "xps_cpus of $device"
        for ((index = 0; index < queues; index++)); do
            mine=''
            for ((position = index; position < ${#cpus[@]}; position += queues)); do
                mine="$mine ${cpus[position]}"
            done
            queue=$SYSFS/class/net/$device/queues/tx-$index
            want file "$queue/xps_cpus" "$(mask "$mine")" "tx-$index"
        done
        speak_of_them
    done
}

# Two rules that a host which tracks nothing need not run for each packet.
topic_notrack() {
    local tool count
    summary="GENEVE makes no entries in the connection table"
    { read -r count <"$PROC/sys/net/netfilter/nf_conntrack_count"; } 2>/dev/null || count=0
    if [ -z "$two_arm" ] && [ "$count" = 0 ]; then
        summary="this host tracks no connections; say --two-arm if its hooks will make it"
        return
    fi
    for tool in nft iptables; do
        case $tool in
        nft) nft list tables >/dev/null 2>&1 || continue ;;
        iptables) iptables-save -t raw >/dev/null 2>&1 || continue ;;
        esac
        want notrack "$tool" on "notrack for UDP port 6081 ($tool)"
        return
    done
    say "cannot be known here: neither nft nor iptables -t raw works"
}

# gwlbtun gives its links this length itself; hooks and udev may have taken it away.
topic_txqueuelen() {
    local path device
    for path in "$SYSFS/class/net/"gw[io]-* "${devices[@]/#/$SYSFS/class/net/}"; do
        [ -e "$path" ] || continue
        device=${path##*/}
        want_at_least file "$path/tx_queue_len" 4096 "txqueuelen of $device"
    done
    summary="4096 packets or more for ${devices[*]} and all gwi and gwo"
}

# Off goes every state deeper than C1, which takes at most 5 µs to leave.
topic_c_states() {
    local state cpu latency name states=("$SYSFS"/devices/system/cpu/cpu[0-9]*/cpuidle/state[0-9]*)
    summary="left as they are on $profile"
    [[ $profile =~ ^(c5n|c6in)$ ]] || return 0
    if [ ! -e "${states[0]}" ]; then
        say "cannot be known here: the hypervisor shows none"
        return
    fi
    speak_later "disable of"
    for state in "${states[@]}"; do
        read -r latency <"$state/latency" && read -r name <"$state/name"
        if [ "$latency" -gt 5 ]; then
            cpu=${state#*/system/cpu/}
            want file "$state/disable" 1 "${cpu%%/*}/$name"
        fi
    done
    speak_of_them
    summary="no CPU sleeps deeper than C1"
}

topic_cpus() {
    if [ "$irq_cpus" = "$worker_cpus" ]; then
        summary="all CPUs do both, interrupts and workers: gwlbtun needs no --cores"
    else
        summary="interrupts on $(compress "$irq_cpus"): start gwlbtun with --cores \
$(compress "$worker_cpus")"
    fi
}

# In this order, because new queues come with new interrupts and masks.
topics="cpus sysctl memory mtu queues rings moderation gro irqs rps xps notrack txqueuelen c_states"

tune() {
    local name summary
    find_conf
    find_devices
    find_profile
    plan_cpus
    [ "$verb" = check ] || [ -n "$dry" ] || open_record
    remember_irqs
    topic=profile
    say "ok: $profile, ${#online[@]} CPUs, ${devices[*]}"
    for name in $topics; do
        spoken=0 summary='' topic=${name/_/-}
        "topic_$name"
        [ "$spoken" = 1 ] || say "ok: $summary"
    done
    [ "$errors" = 0 ] || exit 2
    [ "$verb" != check ] || exit "$changes"
}

undo() {
    local line lines=() kept=() kind key before
    topic=undo
    [ -n "$dry" ] || open_record
    if [ ! -e "$STATE" ]; then
        say "ok: nothing is recorded in $STATE"
        return
    elif [ "$(head -n 1 "$STATE")" != "$(first_line)" ]; then
        say "ok: $STATE is of an earlier boot, whose settings are gone"
        return
    fi
    mapfile -t lines < <(lines_to_undo)
    for line in "${lines[@]}"; do
        IFS=$tab read -r kind key before <<<"$line"
        undo_one "$kind" "$key" "$before" || kept=("$line" "${kept[@]}")
    done
    if [ -n "$dry" ]; then
        return
    elif [ ${#kept[@]} = 0 ]; then
        rm "$STATE"
    else
        { first_line && printf '%s\n' "${kept[@]}"; } >"$STATE"
        exit 2
    fi
}

parse_arguments "$@"
need_tools
if [ "$verb" = undo ]; then undo; else tune; fi
