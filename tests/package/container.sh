#!/usr/bin/env bash
# .ci/run container
#
# Builds the image of tuning/container/Containerfile from the .deb that .ci/run package made, and
# runs the demo with gwlbtun in a container of it: crun with the network of the demo's target,
# seccomp.json, a read-only root and the capabilities of daemonset.yaml, and no other right. Without
# io_uring in the profile it must not start, so the profile is in force. Needs root.
#
# The image's base is the clean root of .ci/run package, so nothing is pulled.
set -euo pipefail
cd "$(dirname "$0")/../.."

out=target/package
profile=tuning/container/seccomp.json

fail() {
    echo "container: $1" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || fail "makes namespaces; run it as root"
if ! ls "$out"/{base/etc,*.deb} >/dev/null 2>&1; then
    fail "run .ci/run package first"
fi
tests/install-tools.sh buildah:buildah:buildah crun:crun:crun jq:jq:jq

work=$(mktemp -d)
export STORAGE_DRIVER=vfs CONTAINERS_STORAGE_CONF=$work/storage.conf
# shellcheck disable=SC2317 # the trap calls it
cleanup() {
    crun --root "$work/crun" delete --force gwlbtun 2>/dev/null || true
    [ -z "${mounted-}" ] || buildah umount gwlbtun-proof >/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
cat >"$work/storage.conf" <<END
[storage]
driver = "vfs"
graphroot = "$work/storage"
runroot = "$work/run"
END
cat >"$work/policy.json" <<END
{"default": [{"type": "insecureAcceptAnything"}]}
END

# ---- The image ----

echo "container: building the image"
base=$(buildah from --name gwlbtun-base scratch)
buildah add -q "$base" "$out/base" / >/dev/null
buildah commit -q --rm "$base" localhost/base >/dev/null
# No other namespaces than the file system's: the machine may itself be a container.
buildah build -q --isolation chroot --network host --signature-policy "$work/policy.json" \
    --build-arg BASE=localhost/base -f tuning/container/Containerfile -t gwlbtun "$out" \
    >"$out/image.log" 2>&1 || fail "the image cannot be built: see $out/image.log"
buildah from -q --name gwlbtun-proof --signature-policy "$work/policy.json" gwlbtun >/dev/null
root=$(buildah mount gwlbtun-proof)
mounted=1
buildah inspect --type image --format '{{index .OCIv1.Config.Entrypoint 0}}' gwlbtun |
    grep -qx /usr/bin/gwlbtun || fail "the image does not start gwlbtun"

# ---- A container of it ----

# What an engine would make of daemonset.yaml: its capabilities are read from there.
capabilities=$(sed -n 's/^ *add: \[\(.*\)\]$/\1/p' tuning/container/daemonset.yaml |
    tr -d ' ' | sed 's/\([A-Z_]*\)/"CAP_\1"/g')
[ -n "$capabilities" ] || fail "daemonset.yaml adds no capability"

# bundle <directory> <seccomp profile>: all but the arguments.
bundle() {
    mkdir -p "$1"
    jq -n --arg root "$root" --argjson capabilities "[$capabilities]" --slurpfile seccomp "$2" '{
        ociVersion: "1.0.2",
        process: {
            user: {uid: 0, gid: 0},
            env: ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            cwd: "/",
            noNewPrivileges: true,
            capabilities: {
                bounding: $capabilities, effective: $capabilities, permitted: $capabilities
            }
        },
        root: {path: $root, readonly: true},
        mounts: [
            {destination: "/proc", type: "proc", source: "proc"},
            {destination: "/dev", type: "tmpfs", source: "tmpfs", options: ["mode=755"]},
            {destination: "/sys", type: "bind", source: "/sys", options: ["rbind", "ro"]},
            {destination: "/run", type: "tmpfs", source: "tmpfs", options: ["mode=755"]}
        ],
        linux: {
            namespaces: [{type: "pid"}, {type: "mount"}, {type: "ipc"}, {type: "uts"}],
            devices: [{path: "/dev/net/tun", type: "c", major: 10, minor: 200, fileMode: 438}],
            readonlyPaths: ["/proc/sys"],
            maskedPaths: ["/proc/kcore"],
            seccomp: $seccomp[0]
        }
    }' >"$1/config.base"
}

# A program that takes gwlbtun's arguments and runs it in a container, in the network of its caller.
cat >"$work/gwlbtun" <<END
#!/bin/sh
[ -n "\${PRIVATE-}" ] || PRIVATE=1 exec unshare --mount "\$0" "\$@"
cd "\${BUNDLE:-$work/bundle}" || exit 99
jq '.process.args = ["/usr/bin/gwlbtun"] + \$ARGS.positional' config.base --args -- "\$@" \\
    >config.json || exit 99
# crun refuses machines with both versions of cgroups, though it is to use neither.
umount -R /sys/fs/cgroup 2>/dev/null
mount -t cgroup2 none /sys/fs/cgroup || exit 99
exec crun --root "$work/crun" --cgroup-manager disabled run gwlbtun
END
chmod +x "$work/gwlbtun"
bundle "$work/bundle" "$profile"

# The same without io_uring, as engines have it by default.
jq 'del(.syscalls[] | select(.names | index("io_uring_setup")))' "$profile" >"$work/default.json"
bundle "$work/default" "$work/default.json"
status=0
said=$(BUNDLE=$work/default unshare --net "$work/gwlbtun" -p 8080 2>&1) || status=$?
[[ "$status $said" = "5 "*"seccomp profile"* ]] ||
    fail "without io_uring it ended with status $status: $said"
echo "container: without io_uring in the profile: $said"

# Only the first half of the demo has a hook that needs nothing but links.
export ONLY=one-arm GWLBTUN=$work/gwlbtun HOOKS=/usr/lib/gwlbtun
export GWLB_SIM=target/release/examples/gwlb-sim
example-scripts/demo.sh || fail "the demo failed in a container"
echo "container: the demo passed with seccomp.json, a read-only root, and $capabilities"
