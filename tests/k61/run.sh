#!/usr/bin/env bash
# .ci/run k61
# tests/k61/run.sh amd64|arm64 [EXTRA]
#
# Runs the program on Linux 6.1, the oldest kernel that it is made for: Debian's kernel, booted in
# qemu with an initramfs that holds the program, the simulated load balancer and real clients.
# tests/k61/init.sh says what is proved there. Exits 0 only if all of it was.
#
# The guest's processor is this machine's unless another one is named; then Rust's target and C's
# linker for it must be there, which .ci/run arm64 sees to. The files of the directory EXTRA are put
# into the guest, which runs its /k61/extra.sh after all else.
#
# Kernel and tools are Debian's packages, downloaded once, into target/k61-ARCHITECTURE; remove that
# directory to get newer ones. apt verifies them, with lists of its own: this machine's list of
# packages stays as it is. qemu emulates the processor, so that machines without KVM can run this.
set -euo pipefail
cd "$(dirname "$0")/../.."

fail() {
    echo "k61: $1" >&2
    exit 1
}

command -v apt-get >/dev/null || fail "needs Debian's kernel and apt-get; run it on Debian 12"
case ${1-$(uname -m)} in
amd64 | x86_64)
    debian=amd64 target=x86_64-unknown-linux-gnu package=qemu-system-x86
    qemu=(qemu-system-x86_64 -machine q35 -cpu max) console=ttyS0
    ;;
arm64 | aarch64)
    # The core of Graviton2, which c6gn has. (What "max" adds, pointer authentication foremost,
    # takes an emulator long.)
    debian=arm64 target=aarch64-unknown-linux-gnu package=qemu-system-arm
    qemu=(qemu-system-aarch64 -machine virt -cpu neoverse-n1) console=ttyAMA0
    ;;
*) fail "knows amd64 and arm64, not ${1-$(uname -m)}" ;;
esac
extra=${2-}
if [ "$debian" = "$(dpkg --print-architecture)" ]; then
    cargo=() built=target/release
else
    cargo=(--target "$target") built=target/$target/release
fi

cache=$PWD/target/k61-$debian
tree=$cache/tree log=$cache/guest.log
# From power-on to power-off. An emulated guest takes 10 s on an idle machine; tests of EXTRA, as
# long as they do.
limit_secs=${extra:+2400}
limit_secs=${limit_secs:-600}
# busybox has the small tools; its own shell would prefer its own ip and tc. Tests of EXTRA may
# want python3.
packages=(bash busybox-static coreutils curl dash ethtool iproute2 iputils-ping libgcc-s1 nftables
    python3 util-linux)

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
# modprobe lies where a user's PATH does not look.
PATH=$PATH:/usr/sbin:/sbin
"${as_root[@]}" tests/install-tools.sh --only cpio:cpio modprobe:kmod "${qemu[0]}:$package"

# apt for the guest's architecture, which knows of no installed package.
guest_apt() {
    "$1" -qq -o Dir::State="$cache/apt" -o Dir::State::status=/dev/null \
        -o Dir::Cache="$cache/apt" -o Debug::NoLocking=1 -o APT::Sandbox::User=root \
        -o APT::Architecture="$debian" -o APT::Architectures="$debian" "${@:2}"
}

# Puts the newest 6.1 kernel that apt knows into $cache/kernel, and the tools, with what they
# depend on, into $cache/system.
download() {
    local kernel deb
    rm -rf "$cache"
    mkdir -p "$cache"/apt/{lists/partial,archives/partial}
    guest_apt apt-get update
    kernel=$(guest_apt apt-cache search --names-only "^linux-image-6\.1\.0-[0-9]+-cloud-$debian\$" |
        cut -d' ' -f1 | sort -V | tail -n 1)
    [ -n "$kernel" ] || fail "apt knows no linux-image-6.1.0-*-cloud-$debian; run it on Debian 12"
    echo "k61: downloading $kernel and ${packages[*]}"
    (cd "$cache" && guest_apt apt-get download "$kernel")
    dpkg-deb -x "$cache"/*.deb "$cache/kernel"
    depmod -b "$cache/kernel" "$(ls "$cache/kernel/lib/modules")"
    guest_apt apt-get install --yes --no-install-recommends --download-only "${packages[@]}"
    for deb in "$cache"/apt/archives/*.deb; do
        dpkg-deb -x "$deb" "$cache/unpacked"
    done
    rm -rf "$cache"/*.deb "$cache/apt" "$cache"/unpacked/usr/share/{doc,info,locale,man}
    ln -sf dash "$cache/unpacked/bin/sh"
    # Only a complete download has this name.
    echo "${packages[*]}" >"$cache/unpacked/packages"
    mv "$cache/unpacked" "$cache/system"
}

# Copies kernel modules, and those that they need, and the order to insert them in.
add_modules() {
    local module
    for module; do
        modprobe -d "$cache/kernel" -S "$kernel" --show-depends "$module"
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' | while read -r module; do
        cp -n "$module" "$tree/modules"
        echo "/modules/${module##*/}"
    done >"$tree/modules/order"
}

build_initramfs() {
    rm -rf "$tree"
    cp -a "$cache/system" "$tree"
    mkdir -p "$tree"/{dev,etc,modules,proc,root,run,sys,tmp,k61}
    cp "$built/gwlbtun" "$built/examples/gwlb-sim" "$tree/k61"
    add_modules tun veth sch_ingress cls_u32 act_mirred act_police sch_tbf nf_tables nft_ct
    cp example-scripts/create-passthrough.sh example-scripts/hook-lib.sh "$tree/k61"
    cp tests/k61/init.sh "$tree/init"
    [ -z "$extra" ] || cp -a "$extra/." "$tree"
    (cd "$tree" && find . | cpio --quiet --create --format=newc --owner=+0:+0) >"$cache/initramfs"
    rm -rf "$tree"
}

# The guest's console goes to $log, and what it proves to standard output.
boot() {
    timeout --foreground "$limit_secs" "${qemu[@]}" -accel tcg \
        -smp 2 -m 2048 -nodefaults -display none -no-reboot -serial stdio \
        -kernel "$cache/kernel/boot/vmlinuz-$kernel" -initrd "$cache/initramfs" \
        -append "console=$console quiet panic=-1 oops=panic" </dev/null 2>&1 |
        sed -u 's/\r$//' | tee "$log" | { grep --line-buffered '^k61: ' || true; }
}

[ "$(cat "$cache/system/packages" 2>/dev/null)" = "${packages[*]}" ] || download
kernel=$(ls "$cache/kernel/lib/modules")
cargo build --release --locked --quiet "${cargo[@]}" --bin gwlbtun --example gwlb-sim
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
