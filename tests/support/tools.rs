//! What the tests need from the machine.

use std::path::Path;

/// Programs that the tests start; `tests/run.sh` installs their packages.
const TOOLS: &[&str] = &[
    "curl",
    "dig",
    "dnsmasq",
    "ethtool",
    "flock",
    "ip",
    "ip6tables-restore",
    "iptables-restore",
    "nft",
    "nsenter",
    "ping",
    "python3",
    "setpriv",
    "setsid",
    "sha256sum",
    "tc",
    "timeout",
    "tshark",
    "unshare",
    "xargs",
];

/// Names tools, between blanks, that a machine goes without because it runs only tests that need
/// none of them: `tests/arm64.sh` does.
const WITHOUT: &str = "GWLBTUN_TESTS_WITHOUT";

/// Fails the test, naming everything that is missing.
pub(crate) fn require() {
    let mut missing = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        missing.push("root".to_owned());
    }
    if !Path::new("/dev/net/tun").exists() {
        missing.push("/dev/net/tun".to_owned());
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let without = std::env::var(WITHOUT).unwrap_or_default();
    for tool in TOOLS.iter().filter(|tool| !without.split(' ').any(|other| other == **tool)) {
        if !path.split(':').any(|dir| Path::new(dir).join(tool).exists()) {
            missing.push(format!("the program {tool}"));
        }
    }
    assert!(
        missing.is_empty(),
        "the tests need {}; run them with: sudo tests/run.sh",
        missing.join(", ")
    );
}

/// Whether a TUN of this kernel takes and gives UDP super-packets: since Linux 6.2.
pub(crate) fn kernel_merges_udp() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc");
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(Result::ok).expect("a number");
    (next(), next()) >= (6, 2)
}
