#!/usr/bin/env bash
# tests/install-tools.sh [--only] [tool:debian:fedora...]
#
# Installs, through apt-get or dnf, what the tests need and the machine lacks. Does nothing where
# nothing is missing. Needs root if something is. More tools may be named in the table's form, or,
# after --only, all that are wanted.
set -euo pipefail

# tool : Debian packages : Fedora and Amazon Linux packages
tools="
cc:gcc libc6-dev:gcc
curl:curl:curl
dig:bind9-dnsutils:bind-utils
dnsmasq:dnsmasq-base:dnsmasq
ethtool:ethtool:ethtool
flock:util-linux:util-linux-core
getent:libc-bin:glibc-common
ip:iproute2:iproute
iptables:iptables:iptables-nft
mount:mount:util-linux
nft:nftables:nftables
nsenter:util-linux:util-linux
ping:iputils-ping:iputils
python3:python3:python3
setpriv:util-linux:util-linux
sha256sum:coreutils:coreutils
tc:iproute2:iproute-tc
tshark:tshark:wireshark-cli
xargs:findutils:findutils
"

if [ "${1-}" = --only ]; then
    tools=
    shift
fi

debian=() fedora=()
while IFS=: read -r tool debian_names fedora_names; do
    if [ -n "$tool" ] && ! command -v "$tool" >/dev/null; then
        read -ra names <<<"$debian_names"
        debian+=("${names[@]}")
        read -ra names <<<"$fedora_names"
        fedora+=("${names[@]}")
    fi
done < <(printf '%s\n' "$tools" "$@")
if [ ${#debian[@]} = 0 ]; then
    exit 0
fi
mapfile -t debian < <(printf '%s\n' "${debian[@]}" | sort -u)
mapfile -t fedora < <(printf '%s\n' "${fedora[@]}" | sort -u)

if [ "$(id -u)" != 0 ]; then
    echo "tests/install-tools.sh: needs root to install: ${debian[*]}" >&2
    exit 2
elif command -v apt-get >/dev/null; then
    echo "installing: ${debian[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        "${debian[@]}" >/dev/null
elif command -v dnf >/dev/null; then
    echo "installing: ${fedora[*]}"
    dnf install -q -y "${fedora[@]}"
else
    echo "tests/install-tools.sh: neither apt-get nor dnf here; please install: ${debian[*]}" >&2
    exit 2
fi
