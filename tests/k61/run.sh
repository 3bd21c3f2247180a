#!/usr/bin/env bash
# .ci/run k61
#
# Runs the program on Linux 6.1, the oldest kernel that it is made for: Debian's kernel, booted in
# qemu with an initramfs that holds the program, the simulated load balancer and real clients.
# tests/k61/init.sh says what is proved there. Exits 0 only if all of it was.
#
# The kernel is downloaded once, into target/k61; remove that directory to get a newer one. qemu
# emulates the processor, so that machines without KVM can run this too.
set -euo pipefail
cd "$(dirname "$0")/../.."

cache=target/k61
tree=$cache/tree log=$cache/guest.log
# From power-on to power-off. An emulated guest takes 10 s on an idle machine.
limit_secs=600

fail() {
    echo "k61: $1" >&2
    exit 1
}

command -v apt-get >/dev/null || fail "needs Debian's kernel and apt-get; run it on Debian 12"
case $(uname -m) in
x86_64)
    debian=amd64 qemu=qemu-system-x86_64 package=qemu-system-x86
    machine=q35 console=ttyS0
    ;;
aarch64)
    debian=arm64 qemu=qemu-system-aarch64 package=qemu-system-arm
    machine=virt console=ttyAMA0
    ;;
*) fail "runs on x86_64 and aarch64, not on $(uname -m)" ;;
esac

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
# modprobe lies where a user's PATH does not look.
PATH=$PATH:/usr/sbin:/sbin
"${as_root[@]}" tests/install-tools.sh busybox:busybox-static cpio:cpio modprobe:kmod \
    "$qemu:$package"

# Puts the newest 6.1 kernel that apt knows, verified by apt, into $cache/kernel.
download_kernel() {
    local name
    "${as_root[@]}" apt-get update -qq
    name=$(apt-cache search --names-only "^linux-image-6\.1\.0-[0-9]+-cloud-$debian\$" |
        cut -d' ' -f1 | sort -V | tail -n 1)
    [ -n "$name" ] || fail "apt knows no linux-image-6.1.0-*-cloud-$debian; run it on Debian 12"
    echo "k61: downloading $name"
    rm -rf "$cache"
    mkdir -p "$cache/deb"
    (cd "$cache/deb" && apt-get download -qq -o APT::Sandbox::User=root "$name")
    dpkg-deb -x "$cache"/deb/*.deb "$cache/unpacked"
    depmod -b "$cache/unpacked" "$(ls "$cache/unpacked/lib/modules")"
    # Only a complete download has this name.
    mv "$cache/unpacked" "$cache/kernel"
}

# Copies programs, and the libraries that they need, to where they are on this machine.
add_programs() {
    local program
    for program; do
        cp -L --parents "$program" "$tree"
        # ldd fails where a program needs none.
        { ldd "$program" 2>/dev/null || true; } | sed -n 's|^[^/]*\(/[^ ]*\).*|\1|p' |
            xargs -r cp -L --parents -t "$tree"
    done
}

# Copies kernel modules, and those that they need, and the order to insert them in.
add_modules() {
    local module
    for module; do
        modprobe -d "$cache/kernel" -S "$kernel" --show-depends "$module"
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | while read -r module; do
        cp -n "$module" "$tree/modules"
        echo "/modules/${module##*/}"
    done >"$tree/modules/order"
}

build_initramfs() {
    local tool
    rm -rf "$tree"
    mkdir -p "$tree"/{bin,dev,etc,modules,proc,root,run,sys,tmp,k61}
    for tool in curl ethtool ip ping setpriv tc; do
        add_programs "$(command -v "$tool")"
    done
    # busybox has the small tools. Its own shell would prefer its own ip and tc.
    add_programs /bin/bash /bin/sh /bin/busybox
    add_programs target/release/gwlbtun target/release/examples/gwlb-sim
    mv "$tree"/target/release/gwlbtun "$tree"/target/release/examples/gwlb-sim "$tree/k61"
    add_modules tun veth sch_ingress cls_u32 act_mirred act_police
    cp example-scripts/create-passthrough.sh example-scripts/hook-lib.sh "$tree/k61"
    cp tests/k61/init.sh "$tree/init"
    (cd "$tree" && find . | cpio --quiet --create --format=newc --owner=+0:+0) >"$cache/initramfs"
}

# The guest's console goes to $log, and what it proves to standard output.
boot() {
    timeout --foreground "$limit_secs" "$qemu" -accel tcg -machine "$machine" -cpu max \
        -smp 2 -m 1024 -nodefaults -display none -no-reboot -serial stdio \
        -kernel "$cache/kernel/boot/vmlinuz-$kernel" -initrd "$cache/initramfs" \
        -append "console=$console quiet panic=-1 oops=panic" </dev/null 2>&1 |
        sed -u 's/\r$//' | tee "$log" | { grep --line-buffered '^k61: ' || true; }
}

[ -d "$cache/kernel" ] || download_kernel
kernel=$(ls "$cache/kernel/lib/modules")
cargo build --release --locked --quiet --bin gwlbtun --example gwlb-sim
build_initramfs
echo "k61: booting $kernel, emulated"
status=0
boot || status=$?
if [ "$status" = 0 ] && grep -q '^k61: total: [1-9][0-9]* ok, 0 failed$' "$log"; then
    exit 0
fi
[ "$status" != 124 ] || echo "k61: the guest did not end within $limit_secs s" >&2
echo "k61: FAILED; the guest's console:" >&2
cat "$log" >&2
exit 1
