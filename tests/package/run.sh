#!/usr/bin/env bash
# .ci/run package [arm64]
#
# Builds the .deb and the .rpm of this machine's architecture, into target/package, and proves each
# in a clean root that knows neither Rust nor this repository: installed, the demo runs with its
# program and hooks, in namespaces of its own; removed, no file of it is left.
#
# With "arm64" it cross-compiles those for Graviton, into target/package/arm64. Their program has to
# show its help in qemu; nothing is installed, and the demo wants an arm64 kernel. (.ci/run arm64
# runs the program on one.)
#
# The root is a Debian, made by debootstrap once, in target/package/base; remove that directory to
# get a newer one. An .rpm is installed there too, without its dependencies, which Debian names
# otherwise. Exits 0 only if all of it worked.
set -euo pipefail
cd "$(dirname "$0")/../.."

# shellcheck source-path=SCRIPTDIR
. tests/package/root.sh
out=target/package
case ${1-} in
"") packages=$out target=() built=target/release objdump=objdump strip=strip ;;
arm64)
    triple=aarch64-unknown-linux-gnu
    packages=$out/arm64 target=(--target "$triple") built=target/$triple/release
    objdump=aarch64-linux-gnu-objdump strip=aarch64-linux-gnu-strip
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    ;;
*)
    echo "package: knows arm64, not ${1@Q}" >&2
    exit 64
    ;;
esac
cargo_deb=3.8.0 cargo_generate_rpm=0.21.1
# Amazon Linux 2023 has no newer one.
glibc_max=2.34

fail() {
    echo "package: $1" >&2
    exit 1
}
said() { printf 'package: %s\n' "$1"; }

[ "$(id -u)" = 0 ] || fail "makes a root; run it as root"
command -v apt-get >/dev/null || fail "the clean root is a Debian; run it on Debian"
tests/install-tools.sh debootstrap:debootstrap:debootstrap objdump:binutils:binutils \
    python3:python3:python3 rpm:rpm:rpm unshare:util-linux:util-linux

export PATH=$PWD/target/tools/bin:$PATH
for tool in "cargo-deb@$cargo_deb" "cargo-generate-rpm@$cargo_generate_rpm"; do
    [ -e "target/tools/.$tool" ] || {
        said "installing ${tool/@/ }"
        # Unoptimised, which is built in a third of the time.
        cargo install -q --locked --debug --root target/tools "$tool"
        touch "target/tools/.$tool"
    }
done

# ---- The packages ----

# What is not a file of the repository as it is.
stage() {
    local file share=$out/share
    rm -rf "$out"/{share,units,scripts} "$packages"/*.{deb,rpm}
    mkdir -p "$packages" "$out"/{program,units,scripts} "$share"/{doc/gwlbtun,gwlbtun}
    for file in tuning/*.service; do
        # What a package installs is not local.
        sed 's,/usr/local/lib/gwlbtun,/usr/lib/gwlbtun,g' "$file" >"$out/units/${file##*/}"
    done
    cp tuning/*.sh example-scripts/*.sh "$out/scripts"
    # It builds from the repository.
    rm "$out/scripts/demo.sh"
    target/release/examples/gwlbtun-docs "$share"
    gzip -9n "$share"/man/man8/*.8
    # Where Fedora and Amazon Linux look.
    install -D -m 644 -t "$share/zsh/site-functions" "$share/zsh/vendor-completions/_gwlbtun"
    cp tuning/*.conf tuning/alerts.yml tuning/dashboard.json example-scripts/*.template \
        "$share/gwlbtun"
    rm "$share/gwlbtun/90-gwlbtun.conf"
    cp README.md LICENSE LICENSE-APACHE LICENSE-MIT "$share/doc/gwlbtun"
    cp tuning/README.md "$share/doc/gwlbtun/TUNING.md"
    cp example-scripts/README.md "$share/doc/gwlbtun/HOOKS.md"
    cp example-scripts/TOPOLOGIES.md "$share/doc/gwlbtun"
    python3 tests/package/licences.py | gzip -9n >"$share/doc/gwlbtun/THIRD-PARTY.gz"
    mkdir "$share/gwlbtun"/{container,terraform}
    cp tuning/container/* "$share/gwlbtun/container"
    cp example-scripts/terraform/* "$share/gwlbtun/terraform"
}

# The newest version of glibc that a program asks for.
glibc_of() {
    "$objdump" -T "$1" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1 | cut -d_ -f2
}

said "building"
cargo build --release --locked --bin gwlbtun --example gwlb-sim --example gwlbtun-docs
if [ "${#target[@]}" != 0 ]; then
    tests/install-tools.sh --only "$strip:binutils-aarch64-linux-gnu:" \
        aarch64-linux-gnu-gcc:"gcc-aarch64-linux-gnu libc6-dev-arm64-cross": \
        qemu-aarch64:qemu-user:
    rustup target list --installed | grep -qx "$triple" || rustup target add "$triple"
    cargo build --release --locked "${target[@]}" --bin gwlbtun
fi
stage
newest=$(glibc_of "$built/gwlbtun")
[ "$(printf '%s\n' "$newest" "$glibc_max" | sort -V | tail -n 1)" = "$glibc_max" ] ||
    fail "the program needs glibc $newest, but Amazon Linux 2023 has $glibc_max"
# With the names of its functions, for perf, and without lines of its source: a quarter of the size.
"$strip" --strip-debug -o "$out/program/gwlbtun" "$built/gwlbtun"
cargo deb --quiet --no-build --no-strip "${target[@]}" --output "$packages"
cargo generate-rpm "${target[@]}" --output "$packages"
deb=$(echo "$packages"/*.deb) rpm=$(echo "$packages"/*.rpm)
said "made ${deb##*/} and ${rpm##*/}; glibc $newest or later"
rpm -K "$rpm" | grep -q 'digests OK' || fail "rpm finds $rpm damaged"

# Both hold the same files, but for what each format adds.
files() { sed 's,^\.*,,' | grep -v '/$' | grep -vE '/doc/gwlbtun/(copyright|changelog)' | sort; }
dpkg-deb --fsys-tarfile "$deb" | tar t |
    sed 's,^\./lib/systemd,/usr/lib/systemd,' | files >"$out/deb-files"
rpm -qpl "$rpm" | files >"$out/rpm-files"
diff "$out/deb-files" "$out/rpm-files" || fail "the packages hold different files"

if [ "${#target[@]}" != 0 ]; then
    [ "$(dpkg-deb -f "$deb" Architecture) $(rpm -qp --qf '%{arch}' "$rpm")" = "arm64 aarch64" ] ||
        fail "the packages are for another machine"
    # Its help has the status of a wrong command line.
    { qemu-aarch64 -L /usr/aarch64-linux-gnu "$out/program/gwlbtun" -h 2>&1 || true; } |
        grep -q 'AWS Gateway Load Balancer' || fail "gwlbtun does not run"
    said "arm64: its program runs in qemu; nothing was installed"
    exit
fi

# ---- A clean root ----

base=$out/base root=
cleanup() {
    [ -z "$root" ] || rm -rf --one-file-system "$root"
}
trap cleanup EXIT

# Its tools are those that the demo wants, so that it need not install any.
make_base() {
    local mirror release
    # shellcheck source=/dev/null
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    # shellcheck disable=SC2016 # apt knows it
    mirror=$(apt-get indextargets --format '$(SITE)' "Created-By: Packages" "Codename: $release" |
        head -n 1)
    [ -n "$mirror" ] || fail "apt knows no mirror of $release"
    said "making a clean $release"
    rm -rf --one-file-system "$base" "$base.new"
    debootstrap --variant=minbase --include=ca-certificates "$release" "$base.new" "$mirror" \
        >"$out/base.log" || fail "debootstrap failed: see $out/base.log"
    cp -r /etc/apt/. "$base.new/etc/apt/"
    cp /etc/resolv.conf "$base.new/etc/resolv.conf"
    mkdir -p "$base.new/demo/example-scripts" "$base.new/demo/tests"
    cp tests/install-tools.sh "$base.new/demo/tests"
    within "$base.new" "" /demo/tests/install-tools.sh --only curl:curl: dig:bind9-dnsutils: \
        dnsmasq:dnsmasq-base: ethtool:ethtool: ip:iproute2: iperf3:iperf3: nft:nftables: \
        ping:iputils-ping: python3:python3: tcpdump:tcpdump:
    mv "$base.new" "$base"
}

inside() { within "$root" --net "$@"; }

# Every file in the root that is not the package manager's own; an .rpm leaves folders.
listing() {
    (cd "$root" && find . -xdev \( -path ./var/lib/dpkg -o -path ./var/lib/rpm -o -path ./var/log \
        -o -path ./var/cache \) -prune -o ! -type d -print | sort)
}

# prove <name> <command that installs> <command that removes>
prove() {
    root=$out/root
    rm -rf --one-file-system "$root"
    cp -a "$base" "$root"
    cp example-scripts/demo.sh "$root/demo/example-scripts"
    cp tests/install-tools.sh "$root/demo/tests"
    cp target/release/examples/gwlb-sim "$root/demo"
    listing >"$out/before"
    $2
    # Its help has the status of a wrong command line.
    { inside gwlbtun -h 2>&1 || true; } | grep -q 'AWS Gateway Load Balancer' ||
        fail "$1: gwlbtun does not run"
    inside env GWLBTUN=/usr/bin/gwlbtun HOOKS=/usr/lib/gwlbtun GWLB_SIM=/demo/gwlb-sim \
        /demo/example-scripts/demo.sh || fail "$1: the demo failed"
    inside /usr/lib/gwlbtun/tune.sh apply --dry-run --dev lo >/dev/null || fail "$1: tune.sh failed"
    $3
    listing >"$out/after"
    diff "$out/before" "$out/after" || fail "$1: removing it leaves files"
    rm -rf --one-file-system "$root"
    root=
    said "$1: installed, the demo passed, removed"
}

install_deb() {
    cp "$deb" "$root/gwlbtun.deb"
    # With the network of this machine, for what it depends on.
    within "$root" "" apt-get install -qq -y --no-install-recommends /gwlbtun.deb \
        >"$out/apt.log" 2>&1 || fail "apt-get install: see $out/apt.log"
    rm "$root/gwlbtun.deb"
    inside getent passwd gwlbtun >/dev/null || fail "deb: the user gwlbtun is missing"
}
remove_deb() {
    inside apt-get purge -qq -y --auto-remove gwlbtun >"$out/apt.log" 2>&1 ||
        fail "apt-get purge: see $out/apt.log"
}
# The package's scripts run in the root.
install_rpm() { in_root --nosignature -i "$rpm"; }
remove_rpm() { in_root -e gwlbtun; }
# Debian keeps the database below /root otherwise.
in_root() { rpm --root "$PWD/$root" --dbpath /var/lib/rpm --nodeps "$@"; }

[ -d "$base" ] || make_base
prove deb install_deb remove_deb
prove rpm install_rpm remove_rpm
