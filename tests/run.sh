#!/usr/bin/env bash
# sudo tests/run.sh [--full] [part of a test's name]
#
# Runs every test on a machine that has only the Rust toolchain: installs missing tools by name
# through apt-get or dnf, builds, tests, prints totals. Needs root, because the tests make network
# namespaces. Exits 0 only if every test passed.
#
# With --full also those that are ignored otherwise, because they take long or need more tools.
#
# Uses cargo-nextest where it is installed, unless RUNNER=cargo; both run the same tests.
set -euo pipefail
cd "$(dirname "$0")/.."

nextest_options=() libtest_options=()
if [ "${1:-}" = --full ]; then
    nextest_options=(--run-ignored all) libtest_options=(-- --include-ignored)
    shift
fi

if [ "$(id -u)" != 0 ]; then
    echo "tests/run.sh: the tests make network namespaces; run: sudo tests/run.sh" >&2
    exit 2
fi

log=$(mktemp)
caller_home=${HOME:-/root}
# What was built and fetched belongs to the caller of sudo.
# shellcheck disable=SC2317 # the trap calls it
finish() {
    rm -f "$log"
    if [ -n "${SUDO_UID:-}" ]; then
        find target "$caller_home/.cargo" -user root \
            -exec chown -h "$SUDO_UID:${SUDO_GID:-}" {} + 2>/dev/null || true
    fi
}
trap finish EXIT
# Under sudo the toolchain is the caller's.
if [ -n "${SUDO_USER:-}" ]; then
    caller_home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
    # Where the toolchain is not in the home directory, it is where the machine says.
    [ ! -d "$caller_home/.cargo" ] || export CARGO_HOME="${CARGO_HOME:-$caller_home/.cargo}"
    [ ! -d "$caller_home/.rustup" ] || export RUSTUP_HOME="${RUSTUP_HOME:-$caller_home/.rustup}"
fi
export PATH="$caller_home/.cargo/bin:$PATH"

tests/install-tools.sh
command -v cargo >/dev/null || {
    echo "tests/run.sh: no cargo on PATH; install the Rust toolchain first" >&2
    exit 2
}

# Sums what nextest ("Summary ... 5 passed, 1 failed, 1 timed out, 2 skipped") and libtest
# ("test result: ok. 5 passed; 1 failed; 2 ignored; ...") say. Of each test binary the last line
# counts: a test that runs its own binary has such a line too.
totals() {
    awk 'function add(line, words, count, word) {
            count = split(line, words, " ")
            for (word = 2; word <= count; word++) {
                if (words[word] ~ /^passed/) passed += words[word - 1]
                if (words[word] ~ /^failed/ || words[word] == "timed") failed += words[word - 1]
                if (words[word] ~ /^(skipped|ignored)/) skipped += words[word - 1]
            }
        }
        /^ *(Running|Doc-tests) / { add(result); result = "" }
        /^ *Summary \[/ { add($0) }
        /^test result:/ { result = $0 }
        END {
            add(result)
            printf "total: %d passed, %d failed, %d skipped\n", passed, failed, skipped
        }' "$log"
}

# What libtest shows of a failure is enough; a backtrace hides it. Colours would hide the totals.
export RUST_BACKTRACE=0 CARGO_TERM_COLOR=never
status=0
if [ "${RUNNER:-}" != cargo ] && cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --no-fail-fast "${nextest_options[@]}" "$@" 2>&1 |
        tee "$log" || status=$?
    # nextest leaves the examples in the documentation out.
    cargo test --locked --quiet --doc "$@" 2>&1 | tee -a "$log" || status=$?
else
    # Takes a processor away from the whole machine, so nothing may run beside it. For nextest,
    # .config/nextest.toml says so.
    alone=e2e::faults::r28_a_processor_that_goes_offline_takes_no_traffic_along
    [ ${#libtest_options[@]} = 0 ] || libtest_options+=(--skip "$alone")
    cargo test --locked --no-fail-fast "$@" "${libtest_options[@]}" 2>&1 |
        tee "$log" || status=$?
    if [ ${#libtest_options[@]} != 0 ] && [[ $alone = *"${1-}"* ]]; then
        cargo test --locked --test tests -- --ignored --exact "$alone" 2>&1 |
            tee -a "$log" || status=$?
    fi
fi
totals
exit "$status"
