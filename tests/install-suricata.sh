#!/usr/bin/env bash
# tests/install-suricata.sh
#
# Installs Suricata through apt-get or dnf where it is missing. Debian 12 has it among its backports
# only, which this asks for once and adds to no list of the machine. Needs root if it is missing.
set -euo pipefail

! command -v suricata >/dev/null || exit 0
if ! command -v apt-get >/dev/null; then
    exec "$(dirname "$0")/install-tools.sh" suricata:suricata:suricata
fi
apt-get update -qq
options=()
if [[ $(apt-cache policy suricata) != *"Candidate: "[0-9]* ]]; then
    # shellcheck disable=SC1091 # the machine's own
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    # apt-get removes from its lists what is none.
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    chmod 755 "$folder"
    mkdir -p "$folder/lists/partial"
    signed="signed-by=/usr/share/keyrings/debian-archive-keyring.gpg"
    printf "deb [$signed] http://deb.debian.org/debian %s main\n" \
        "$release" "$release-backports" >"$folder/sources.list"
    options=(-o Dir::Etc::SourceList="$folder/sources.list" -o Dir::Etc::SourceParts=-
        -o Dir::State::lists="$folder/lists" -t "$release-backports")
    apt-get "${options[@]:0:6}" update -qq
fi
echo "installing: suricata"
DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" install -qq -y --no-install-recommends \
    suricata >/dev/null
