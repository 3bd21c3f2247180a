# Sourced by the scripts of this directory: commands in the clean root of .ci/run package.
# shellcheck shell=bash

# within <root> <unshare's options> <command>: runs it in a root, with a network of its own if the
# options say so.
within() {
    # shellcheck disable=SC2016,SC2086 # that shell knows it; options are words
    unshare --mount --pid --fork --kill-child $2 sh -c '
        set -e
        root=$1
        shift
        # ip wants its / to be a mount.
        mount --bind "$root" "$root"
        mount -t proc proc "$root/proc"
        mount -t sysfs sysfs "$root/sys"
        mount -t tmpfs tmpfs "$root/run"
        mount -t tmpfs tmpfs "$root/dev"
        for node in null zero urandom random; do
            : >"$root/dev/$node"
            mount --bind "/dev/$node" "$root/dev/$node"
        done
        ln -s /proc/self/fd "$root/dev/fd"
        mkdir "$root/dev/net"
        mknod "$root/dev/net/tun" c 10 200
        exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root "$@"
    ' sh "$1" "${@:3}"
}
