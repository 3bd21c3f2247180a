#!/usr/bin/env bash
# sudo tests/demo.sh
#
# Runs example-scripts/demo.sh to its end, and three times until Ctrl-C at different moments; each
# time nothing may be left behind. Needs root; builds in release mode, as the demo does.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Namespaces, programs and directories of demos.
leftovers() {
    ip netns list | grep '^gwlbtun-demo-' || true
    grep -lsaE 'gwlbtun-demo-[0-9]' /proc/[0-9]*/cmdline || true
    find "$TMPDIR" -mindepth 1
}
fail() {
    echo "tests/demo.sh: $1" >&2
    cat "$work/said" >&2
    exit 1
}
mkdir "$work/tmp"
export TMPDIR=$work/tmp

example-scripts/demo.sh 2>&1 | tee "$work/said"
[ -z "$(leftovers)" ] || fail "left behind: $(leftovers)"

for moment in "one arm" "iperf3, to the server" "health page"; do
    # A group of its own gets the signal, as that of a terminal does. A shell that runs something
    # in the background lets it ignore SIGINT; setsid's child would inherit that, env resets it.
    env --default-signal=INT setsid example-scripts/demo.sh >"$work/said" 2>&1 &
    demo=$!
    until grep -q "^$moment" "$work/said"; do
        kill -0 "$demo" 2>/dev/null || fail "ended before: $moment"
        sleep 0.1
    done
    kill -INT -- "-$demo"
    status=0
    wait "$demo" || status=$?
    [ "$status" = 130 ] || fail "after Ctrl-C at \"$moment\" its status is $status"
    [ -z "$(leftovers)" ] || fail "after Ctrl-C at \"$moment\" left behind: $(leftovers)"
    echo "Ctrl-C after \"$moment\": status 130, nothing left behind"
done
