# shellcheck shell=bash
# The part of tune.sh that knows how a setting is read, written, recorded and put back; sourced by
# it. What the settings should be is in tune.sh.
#
# A setting is a kind and a key:
#
#   file        path of a file below /sys or /proc
#   ethtool     LINK:rx, :tx, :combined, :adaptive-rx or :gro
#   notrack     the tool that makes the rules: nft or iptables
#   irqbalance  path of the drop-in that bans CPUs

# The rules for either tool; the comment tells ours from others'.
TABLE=gwlbtun_notrack
RULE="-p udp -m udp --dport 6081 -m comment --comment gwlbtun -j CT --notrack"
tab=$'\t'

# What to do, and whether only to say it: of the command line.
verb='' dry=''
# What reading a setting gives, why it gave nothing, and whether its line in the record is new.
value='' reason='' fresh=''
# Settings that have a line in the record, and what some were before a reset of their device.
declare -A recorded=() remembered=()

need_tools() {
    local tool
    for tool in awk flock sed seq sort xargs; do
        command -v "$tool" >/dev/null || fail "$tool is missing; install it"
    done
}

# ---- Lists of CPUs --------------------------------------------------------------------------

# "0,2-4" to "0 2 3 4".
expand() {
    local part words=()
    for part in ${1//,/ }; do
        mapfile -t -O ${#words[@]} words < <(seq "${part%-*}" "${part#*-}")
    done
    echo "${words[*]}"
}

# "0 2 3 4" to "0,2-4".
compress() {
    tr ' ' '\n' <<<"$1" | sort -n | awk '
        NF && $1 == last + 1 && NR > 1 { last = $1; next }
        NF { flush(); first = last = $1 }
        function flush() {
            if (first == "") return
            out = out (out == "" ? "" : ",") first (last == first ? "" : "-" last)
        }
        END { flush(); print out }'
}

# "0 33" to "2,00000001", as the kernel writes masks.
mask() {
    local cpu group=() text='' index
    for cpu in $1; do
        group[cpu / 32]=$((${group[cpu / 32]:-0} | 1 << cpu % 32))
    done
    for ((index = 0; index <= 7; index++)); do
        text=$(printf '%08x' "${group[index]:-0}"),$text
    done
    text=$(sed 's/^[0,]*//; s/,$//' <<<"$text")
    echo "${text:-0}"
}

# ---- Reading and writing one setting --------------------------------------------------------

# ethtool's answer: section (a word of its heading; empty for any), name of the line.
ethtool_field() {
    awk -F':[ \t]+' -v section="$1" -v name="$2" '
        /^Pre-set/ { now = "Pre-set" }
        /^Current/ { now = "Current" }
        $1 == name && (section == "" || now == section) { split($2, word, " "); print word[1] }'
}

# What ethtool calls a setting: option to read, option to write, line, name. Of the key eth0:rx.
ethtool_words() {
    case ${1##*:} in
    rx) words=(-g -G RX rx) ;;
    tx) words=(-g -G TX tx) ;;
    combined) words=(-l -L Combined combined) ;;
    adaptive-rx) words=(-c -C 'Adaptive RX' adaptive-rx) ;;
    gro) words=(-k -K generic-receive-offload gro) ;;
    esac
}

get_ethtool() {
    local words=() section='' device=${1%%:*}
    ethtool_words "$1"
    [[ ${words[0]} != -[gl] ]] || section=${2:-Current}
    command -v ethtool >/dev/null || { reason="ethtool is not installed" && return 1; }
    value=$(ethtool "${words[0]}" "$device" 2>/dev/null | ethtool_field "$section" "${words[2]}") ||
        value=''
    reason="$device does not tell, see: ethtool ${words[0]} $device"
    [[ $value =~ ^([0-9]+|on|off)$ ]]
}

get_notrack() {
    local rules
    value=off
    case $1 in
    nft) ! nft list table ip $TABLE >/dev/null 2>&1 || value=on ;;
    iptables)
        # Other than iptables -C, this makes no table where there is none.
        rules=$(iptables-save -t raw 2>/dev/null) || rules=''
        if [[ $rules == *"-A PREROUTING $RULE"* && $rules == *"-A OUTPUT $RULE"* ]]; then
            value=on
        fi
        ;;
    esac
}

# Sets `value`, or returns 1 and sets `reason`.
get() {
    local lines=() words=()
    case $1 in
    file)
        if [ ! -e "$2" ]; then
            reason="there is no $2" && return 1
        elif [ "$EUID" = 0 ] && [ ! -w "$2" ]; then
            reason="$2 is read-only: it is the host's, not this container's" && return 1
        elif ! { mapfile -t lines <"$2"; } 2>/dev/null; then
            reason="$2 cannot be read" && return 1
        fi
        # A line at most, its words one blank apart.
        read -ra words <<<"${lines[*]}"
        value="${words[*]}"
        ;;
    ethtool) get_ethtool "$2" ;;
    notrack) get_notrack "$2" ;;
    irqbalance)
        value=$(sed -n 's/^Environment=IRQBALANCE_BANNED_CPULIST=//p' "$2" 2>/dev/null) || true
        value=${value:-none}
        ;;
    esac
}

put_notrack() {
    local chain rule
    if [ "$1" = nft ] && [ "$2" = off ]; then
        nft delete table ip $TABLE
    elif [ "$1" = nft ]; then
        nft -f - <<RULES
table ip $TABLE {
    chain arriving { type filter hook prerouting priority raw; udp dport 6081 notrack; }
    chain leaving { type filter hook output priority raw; udp dport 6081 notrack; }
}
RULES
    else
        read -ra rule <<<"$RULE"
        for chain in PREROUTING OUTPUT; do
            # Off is both gone, also where an earlier attempt made only one.
            iptables -w -t raw -D $chain "${rule[@]}" 2>/dev/null || true
        done
        [ "$2" = on ] || return 0
        for chain in PREROUTING OUTPUT; do
            iptables -w -t raw -A $chain "${rule[@]}" || return 1
        done
    fi
}

# A drop-in below /run, which systemd forgets at the next boot.
put_irqbalance() {
    if [ "$2" = none ]; then
        rm -f "$1"
        rmdir "$(dirname "$1")" 2>/dev/null || true
    else
        mkdir -p "$(dirname "$1")" || return 1
        printf '[Service]\nEnvironment=IRQBALANCE_BANNED_CPULIST=%s\n' "$2" >"$1" || return 1
    fi
    systemctl daemon-reload && systemctl try-restart irqbalance.service
}

# Writes one setting; what went wrong is in `reason`.
put() {
    local words=()
    reason=$({
        case $1 in
        file) printf '%s\n' "$3" >"$2" ;;
        ethtool)
            ethtool_words "$2"
            ethtool "${words[1]}" "${2%%:*}" "${words[3]}" "$3"
            ;;
        notrack) put_notrack "$2" "$3" ;;
        irqbalance) put_irqbalance "$2" "$3" ;;
        esac
    } 2>&1 >/dev/null) || {
        reason=$(tail -n 1 <<<"$reason" | sed 's/^.*line [0-9]*: //')
        return 1
    }
}

# Masks are written in more than one way.
same() {
    local one=$2 other=$3
    if [[ $1 == *_cpus ]]; then
        one=${one//,/} other=${other//,/}
        one=${one#"${one%%[!0]*}"} other=${other#"${other%%[!0]*}"}
    fi
    [ "$one" = "$other" ]
}

# ---- The record -----------------------------------------------------------------------------
# One line a setting, in order of change: kind, key, value before. The first line names the boot.

first_line() {
    echo "gwlbtun-tune 1 $(cat "$PROC/sys/kernel/random/boot_id" 2>/dev/null || echo unknown)"
}

# One tune.sh at a time, and nothing starts that could not be recorded.
open_record() {
    local folder header kind key
    folder=$(dirname "$STATE")
    [ "$EUID" = 0 ] || fail "$verb needs root; run: sudo tune.sh $verb"
    [ "$verb" = undo ] || mkdir -p "$folder" 2>/dev/null || fail "cannot make $folder; set STATE"
    if [ ! -d "$folder" ]; then
        return
    fi
    exec 9<"$folder"
    flock -n 9 || fail "another tune.sh is at work in $folder; wait for it"
    if [ -e "$STATE" ]; then
        header=$(head -n 1 "$STATE")
        [[ $header == "gwlbtun-tune 1 "* ]] ||
            fail "$STATE is no record of this program; move it away"
        if [ "$header" = "$(first_line)" ]; then
            while IFS=$tab read -r kind key _; do
                recorded["$kind$tab$key"]=1
            done < <(tail -n +2 "$STATE")
            return
        fi
        echo "record: $STATE is of an earlier boot, whose settings are gone: removed"
        rm "$STATE"
    fi
}

record() {
    local size
    fresh=''
    if [ ! -e "$STATE" ]; then
        recorded=()
        first_line >"$STATE" 2>/dev/null || {
            rm -f "$STATE"
            fail "cannot write $STATE; is the disk full?"
        }
    fi
    # What was there before the first change counts.
    [ -z "${recorded["$1$tab$2"]-}" ] || return 0
    fresh=1 recorded["$1$tab$2"]=1
    size=$(stat -c %s "$STATE")
    # Half a line would be restored as if it were one.
    printf '%s\t%s\t%s\n' "$1" "$2" "${remembered["$1$tab$2"]-$3}" 2>/dev/null >>"$STATE" || {
        truncate -s "$size" "$STATE"
        fail "cannot write $STATE; is the disk full?"
    }
}

# remember KIND KEY: what is there now counts, whatever another change makes of it.
remember() { ! get "$1" "$2" || remembered["$1$tab$2"]=$value; }

# forget KIND KEY: takes the last line back, whose change was not made.
forget() {
    [ -n "$fresh" ] || return 0
    unset 'recorded[$1$tab$2]'
    sed -i '$d' "$STATE"
    [ "$(wc -l <"$STATE")" -gt 1 ] || rm "$STATE"
}

# ---- One wish -------------------------------------------------------------------------------

# What the next wishes are about, together, and what became of them: names, values before and after.
about='' names=() froms=() tos=()

# Wishes until `speak_of_them` share a line.
speak_later() { about=$1 names=() froms=() tos=(); }

# "1 1 1" is "1", and of a long list the first and the last say enough.
brief() {
    local word different=''
    for word in "$@"; do
        [ "$word" = "$1" ] || different=1
    done
    if [ -z "$different" ]; then
        echo "$1"
    elif [ $# -le 8 ]; then
        echo "$*"
    else
        echo "$1 $2 ... ${!#} ($# in all)"
    fi
}

speak_of_them() {
    local line
    if [ ${#names[@]} = 0 ]; then
        about=''
        return
    fi
    line="${about:+$about }$(brief "${names[@]}") from $(brief "${froms[@]}") to $(brief "${tos[@]}")"
    if [ "$verb" = check ] || [ -n "$dry" ]; then
        would "$line"
    else
        say "changed $line"
    fi
    about='' names=() froms=() tos=()
}

# want KIND KEY WANTED [LABEL]: says, or makes, one change.
want() {
    local kind=$1 key=$2 wanted=$3 label=${4:-$2} now
    if ! get "$kind" "$key"; then
        say "cannot be known here: $reason"
        return
    fi
    now=${value:-nothing}
    if same "$key" "$value" "$wanted"; then
        # It may be a reset of the device that made it so.
        [ "${remembered["$kind$tab$key"]-$value}" = "$value" ] || record "$kind" "$key" "$value"
        return
    elif [ "$verb" != check ] && [ -z "$dry" ]; then
        make_it_so "$kind" "$key" "$wanted" "$label" || return 0
    fi
    names+=("$label") froms+=("$now") tos+=("$wanted")
    [ -n "$about" ] || speak_of_them
}

# Records what is there, and changes it.
make_it_so() {
    local kind=$1 key=$2 wanted=$3 label=$4 now=$value
    [ -z "$about" ] || label="$about $label"
    record "$kind" "$key" "$now"
    if ! put "$kind" "$key" "$wanted"; then
        complain "cannot change $label from ${now:-nothing} to $wanted: $reason"
        # Half of it may have been done.
        put "$kind" "$key" "$now" || true
        if get "$kind" "$key" && same "$key" "$value" "$now"; then
            forget "$kind" "$key"
        fi
        return 1
    elif ! get "$kind" "$key" || ! same "$key" "$value" "$wanted"; then
        complain "$label is $value and not $wanted, which it was set to"
        return 1
    fi
}

# The same for a number that may be larger already.
want_at_least() {
    if get "$1" "$2" && [[ $value =~ ^[0-9]+$ ]] && [ "$value" -ge "$3" ]; then
        return
    fi
    want "$@"
}

# ---- Undo -----------------------------------------------------------------------------------

# The record in reverse, but the interrupts' CPUs last: what resets a device loses them again.
lines_to_undo() {
    tail -n +2 "$STATE" | tac | awk '
        /\/smp_affinity_list\t/ { late[++count] = $0; next }
        { print }
        END { for (i = 1; i <= count; i++) print late[i] }'
}

# undo_one KIND KEY BEFORE: puts one setting back. What is gone with its link or queue needs none.
undo_one() {
    local kind=$1 key=$2 before=$3 label=$2
    [ "$kind" = file ] || label="$kind $key"
    if ! get "$kind" "$key"; then
        if [ "$kind" = file ] && [ ! -e "$key" ] ||
            [ "$kind" = ethtool ] && [ ! -e "$SYSFS/class/net/${key%%:*}" ]; then
            say "$label is gone"
            return 0
        fi
        complain "cannot restore $label to $before: $reason"
        return 1
    elif same "$key" "$value" "$before"; then
        return 0
    elif [ -n "$dry" ]; then
        say "would restore $label from $value to ${before:-nothing}"
    elif put "$kind" "$key" "$before"; then
        say "restored $label from $value to ${before:-nothing}"
    else
        complain "cannot restore $label from $value to ${before:-nothing}: $reason"
        return 1
    fi
}
