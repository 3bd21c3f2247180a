#!/usr/bin/env bash
# .ci/run service
#
# Boots the clean root of .ci/run package, with the .deb installed, as a machine with systemd:
# Debian on the kernel of .ci/run k61, emulated. tests/package/service-guest.sh says what is proved
# there. Exits 0 only if all of it was. Run both others first; needs root.
set -euo pipefail
cd "$(dirname "$0")/../.."

# shellcheck source-path=SCRIPTDIR
. tests/package/root.sh
out=target/package
architecture=$(dpkg --print-architecture)
kernel=target/k61-$architecture/kernel
work=$out/service
# From power-on to power-off: 75 s on an idle machine.
limit_secs=900

fail() {
    echo "service: $1" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || fail "makes a root; run it as root"
ls "$out"/{base/etc,*.deb} >/dev/null 2>&1 || fail "run .ci/run package first"
ls "$kernel/boot" >/dev/null 2>&1 || fail "run .ci/run k61 first"
case $architecture in
amd64) qemu=(qemu-system-x86_64 -machine q35 -cpu max) console=ttyS0 ;;
arm64) qemu=(qemu-system-aarch64 -machine virt -cpu neoverse-n1) console=ttyAMA0 ;;
*) fail "knows amd64 and arm64, not $architecture" ;;
esac

# As a machine has it that was installed.
install_system() {
    cp "$out"/gwlbtun_*.deb "$work/root/gwlbtun.deb"
    within "$work/root" "" apt-get update -qq
    within "$work/root" "" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
        --no-install-recommends dbus kmod systemd systemd-sysv udev /gwlbtun.deb
    rm "$work/root/gwlbtun.deb"
    rm -rf "$work/root"/var/{cache/apt,lib/apt/lists}/* "$work/root"/usr/share/{doc,info,locale}
}

# Those of the network; what else there is, a machine without disks does without.
install_modules() {
    local version=$1 to
    to=$work/root/lib/modules/$version
    mkdir -p "$to/kernel/drivers"
    cp "$kernel/lib/modules/$version"/modules.* "$to"
    cp -a "$kernel/lib/modules/$version"/kernel/{lib,net} "$to/kernel"
    cp -a "$kernel/lib/modules/$version/kernel/drivers/net" "$to/kernel/drivers"
}

rm -rf --one-file-system "$work"
mkdir "$work"
cp -a "$out/base" "$work/root"
install_system >"$work/apt.log" 2>&1 || fail "the system cannot be installed: see $work/apt.log"
version=$(ls "$kernel/lib/modules")
install_modules "$version"
cp target/release/examples/gwlb-sim "$work/root/usr/local/bin"
install -m 755 tests/package/service-guest.sh "$work/root/usr/local/bin/service-guest"
cat >"$work/root/etc/systemd/system/proof.service" <<'END'
[Service]
ExecStart=/usr/local/bin/service-guest
StandardOutput=tty
TTYPath=/dev/console
END
ln -s ../proof.service "$work/root/etc/systemd/system/multi-user.target.wants/proof.service"
ln -s sbin/init "$work/root/init"
(cd "$work/root" && find . -xdev | cpio --quiet --create --format=newc --owner=+0:+0) \
    >"$work/initramfs"
rm -rf --one-file-system "$work/root"

# The console is the proof's alone.
units="systemd.show_status=0 systemd.getty_auto=0"
echo "service: booting Debian on $version, emulated"
status=0
timeout --foreground "$limit_secs" "${qemu[@]}" -accel tcg -smp 2 -m 3072 -nodefaults \
    -display none -no-reboot -serial stdio -kernel "$kernel/boot/vmlinuz-$version" \
    -initrd "$work/initramfs" -append "console=$console quiet panic=-1 $units" \
    </dev/null 2>&1 | sed -u 's/\r$//' | tee "$work/console.log" |
    { grep --line-buffered '^service: ' || true; } || status=$?
rm -f "$work/initramfs"
if [ "$status" = 0 ] && grep -q '^service: all proved$' "$work/console.log"; then
    exit 0
fi
[ "$status" != 124 ] || echo "service: the guest did not end within $limit_secs s" >&2
echo "service: FAILED; see $work/console.log, which ends so:" >&2
tail -n 60 "$work/console.log" >&2
exit 1
