//! `gwlbtun doctor`: each check is made to fail in a namespace, its fix is tried, and nothing is
//! changed by looking.

use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use nix::libc;

use crate::sim::gwlb::Config;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::engine::PASSTHROUGH;
use crate::support::engine::PROGRAM;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::process::ordinary_user;
use crate::support::process::run;
use crate::support::seccomp;

/// What it said, and how it ended.
#[derive(Debug)]
struct Diagnosis {
    status: i32,
    lines: Vec<String>,
}

impl Diagnosis {
    fn of(command: &mut Command) -> Self {
        let output = command.output().expect("the program");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.is_empty() && !text.is_empty(), "{command:?}: {text}{errors}");
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        let status = output.status.code().expect("no signal");
        let diagnosis = Self { status, lines };
        diagnosis.expect_sound();
        diagnosis
    }

    /// What is true of every diagnosis.
    fn expect_sound(&self) {
        for line in &self.lines {
            let (grade, rest) = line.split_at(5);
            assert!(rest.contains(": "), "{line}");
            match grade {
                "OK   " => assert!(!line.contains("; fix: "), "{line}"),
                "WARN " | "FAIL " => assert!(line.contains("; fix: "), "{line}"),
                _ => panic!("no grade: {line}"),
            }
        }
        let has_failed = self.lines.iter().any(|line| line.starts_with("FAIL "));
        assert_eq!(self.status, i32::from(has_failed), "{self:?}");
    }

    /// The line of a check.
    fn line(&self, check: &str) -> &str {
        let head = format!("{check}: ");
        let is_it = |line: &&String| line[5..].starts_with(&head);
        self.lines.iter().find(is_it).unwrap_or_else(|| panic!("no {check} in {self:?}"))
    }

    /// The line must begin like this.
    fn expect(&self, check: &str, grade: &str, text: &str) -> &str {
        let (line, expected) = (self.line(check), format!("{grade:4} {check}: "));
        assert!(line.starts_with(&expected) && line.contains(text), "{grade} {text}: {line}");
        line
    }

    /// What it says to do.
    fn fix(&self, check: &str) -> &str {
        self.line(check).split_once("; fix: ").expect("a fix").1
    }
}

/// The doctor in the target's namespace, with `wrapper` before it.
fn command(lab: &Lab, wrapper: &[&str], flags: &[&str]) -> Command {
    let words = [&["timeout", "60"], wrapper, &[PROGRAM, "doctor"], flags].concat();
    let mut command = lab.topology.target().command(words[0]);
    command.args(&words[1..]);
    command
}

fn doctor(lab: &Lab, flags: &[&str]) -> Diagnosis {
    Diagnosis::of(&mut command(lab, &[], flags))
}

#[test]
fn what_is_wrong_is_named_and_its_fix_makes_it_ok() {
    let lab = Lab::new(0, Config::default());
    let target = lab.topology.target();
    let shell = |script: &str| run(&target, "sh", &["-ec", script]);
    let set = |path: &str, value: &str| shell(&format!("echo {value} >/proc/sys/net/{path}"));
    for family in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        set(family, "1");
    }
    for (check, spoil, grade, text) in [
        ("mtu", "ip link set dev eth0 mtu 1500", "FAIL", "eth0 has 1500, less than 8568"),
        (
            "rp-filter",
            "echo 0 >/proc/sys/net/ipv4/conf/default/rp_filter; \
             echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter",
            "FAIL",
            "net.ipv4.conf.all.rp_filter is 1 (strict)",
        ),
        (
            "rp-filter",
            "echo 2 >/proc/sys/net/ipv4/conf/default/rp_filter",
            "WARN",
            "net.ipv4.conf.default.rp_filter is 2 (loose), as new gwi have it",
        ),
        (
            "rp-filter",
            "ip tuntap add gwi-x mode tun; echo 1 >/proc/sys/net/ipv4/conf/gwi-x/rp_filter",
            "FAIL",
            "net.ipv4.conf.gwi-x.rp_filter is 1",
        ),
        ("forwarding", "echo 0 >/proc/sys/net/ipv4/ip_forward", "WARN", "off for IPv4:"),
        ("forwarding", "echo 0 >/proc/sys/net/ipv6/conf/all/forwarding", "WARN", "off for IPv6:"),
        (
            "reserved-ports",
            "echo 8080 >/proc/sys/net/ipv4/ip_local_reserved_ports",
            "WARN",
            "Linux may give the load balancer's source ports",
        ),
    ] {
        shell(spoil);
        let before = doctor(&lab, &[]);
        before.expect(check, grade, text);
        shell(before.fix(check));
        doctor(&lab, &[]).expect(check, "OK", "");
    }
    let ports = shell("cat /proc/sys/net/ipv4/ip_local_reserved_ports");
    assert_eq!(ports.trim(), "8080,60000-60001", "what was reserved stays so");
}

#[test]
fn the_metrics_port_counts_at_its_own_address() {
    let lab = Lab::new(0, Config::default());
    let target = lab.topology.target();
    let listen = |address: &str| target.enter(|| TcpListener::bind(address)).expect("a free port");
    let expect = |address: &str, grade: &str, text: &str| {
        doctor(&lab, &["--metrics-listen", address]).expect("metrics-port", grade, text);
    };
    let _other = listen("127.0.0.2:9608");
    expect("9608", "OK", "TCP port 9608 is free");
    expect("127.0.0.2:9608", "FAIL", "TCP port 9608 is taken by process");
    expect("0.0.0.0:9608", "FAIL", "TCP port 9608 is taken by process");
    expect("192.0.2.77:9608", "FAIL", "fix: this host does not have that address");
    let _engine = Engine::start(&lab, &["--metrics-listen", "9609"]);
    expect("9609", "OK", "TCP port 9609 is that of the gwlbtun that runs");
}

#[test]
fn queues_of_the_interface_that_are_not_in_use_are_put_to_use() {
    let lab = Lab::new(0, Config::default());
    let target = lab.topology.target();
    let shell = |script: &str| run(&target, "sh", &["-ec", script]);
    shell(
        "ip link add many numrxqueues 4 numtxqueues 4 type veth peer name other; \
         ethtool -L many rx 1; ip link set many up; ip link set other up; \
         ip route replace default dev many",
    );
    let before = doctor(&lab, &["--workers", "3"]);
    before.expect("queues", "WARN", "many has 1 of 4 receive queues in use, for 3 workers");
    shell(before.fix("queues"));
    doctor(&lab, &["--workers", "3"]).expect("queues", "OK", "many can keep 3 workers busy");
    shell("ip route flush table main; ip -6 route flush table main");
    for check in ["queues", "interrupts", "rps", "xps"] {
        doctor(&lab, &[]).expect(check, "OK", "cannot be known without the interface");
    }
}

#[test]
fn where_all_is_well_nothing_fails_and_nothing_is_left_behind() {
    let lab = Lab::new(0, Config::default());
    let target = lab.topology.target();
    let script = "ip -d link; ip address; ip rule; sysctl -a -r '^net[.]ipv[46]' 2>/dev/null";
    let state = || run(&target, "sh", &["-c", script]);
    let before = state();
    let flags = ["-p", "8080", "-c", PASSTHROUGH, "--workers", "2", "--max-endpoints", "10"];
    let diagnosis = doctor(&lab, &flags);
    assert_eq!(diagnosis.status, 0, "{diagnosis:?}");
    for check in ["capabilities", "hooks", "open-files", "io-uring", "interfaces", "mtu"] {
        diagnosis.expect(check, "OK", "");
    }
    diagnosis.expect("udp-port", "OK", "UDP port 6081 is free");
    diagnosis.expect("health-port", "OK", "TCP port 8080 is free");
    diagnosis.expect("steering", "OK", "");
    assert_eq!(state(), before);
}

#[test]
fn ports_are_free_or_ours_or_a_stranger_s() {
    let lab = Lab::new(0, Config::default());
    let target = lab.topology.target();
    let flags = ["-p", "8080"];
    let udp = target.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 6081))).expect("port 6081");
    let tcp = target.enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 8080))).expect("port 8080");
    let diagnosis = doctor(&lab, &flags);
    let owner = format!("is taken by process {} (", std::process::id());
    diagnosis.expect("udp-port", "FAIL", &owner);
    diagnosis.expect("health-port", "FAIL", &owner);
    drop((udp, tcp));
    let engine = Engine::start(&lab, &[]);
    let diagnosis = doctor(&lab, &flags);
    let ours = "is that of the gwlbtun that runs";
    diagnosis.expect("udp-port", "OK", ours);
    diagnosis.expect("health-port", "OK", ours);
    assert_eq!(engine.health("/").status, 200);
}

#[test]
fn hooks_are_judged_as_at_the_start() {
    let lab = Lab::new(0, Config::default());
    doctor(&lab, &[]).expect("hooks", "OK", "none were given");
    let hook = lab.scratch.file("hook");
    let path = hook.to_str().expect("UTF-8");
    doctor(&lab, &["-c", path]).expect("hooks", "FAIL", "cannot be found");
    std::fs::write(&hook, "#!/bin/sh\n").expect("a hook");
    std::fs::set_permissions(&hook, PermissionsExt::from_mode(0o644)).expect("chmod");
    let diagnosis = doctor(&lab, &["-r", path]);
    assert!(diagnosis.fix("hooks").starts_with("chmod +x it"), "{diagnosis:?}");
    std::fs::set_permissions(&hook, PermissionsExt::from_mode(0o755)).expect("chmod");
    doctor(&lab, &["-r", path]).expect("hooks", "OK", "they can run");
}

#[test]
fn rights_devices_and_limits_that_are_missing_fail_with_what_to_do() {
    let lab = Lab::new(0, Config::default());
    let under =
        |wrapper: &[&str], flags: &[&str]| Diagnosis::of(&mut command(&lab, wrapper, flags));

    let nothing = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    let diagnosis = under(&nothing, &["-p", "80"]);
    let text = "without CAP_NET_ADMIN no interfaces, without CAP_NET_BIND_SERVICE no health port";
    diagnosis.expect("capabilities", "FAIL", text);
    diagnosis.expect("interfaces", "FAIL", "Operation not permitted");

    let one = ["setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all"];
    let diagnosis = under(&one, &[]);
    diagnosis.expect("capabilities", "WARN", "without CAP_NET_RAW");
    diagnosis.expect("interfaces", "OK", "they can be made");

    let script = r#"mount -t tmpfs none /dev/net && exec "$@""#;
    let without_tun = ["unshare", "--mount", "sh", "-c", script, "without-tun"];
    let diagnosis = under(&without_tun, &[]);
    diagnosis.expect("interfaces", "FAIL", "/dev/net/tun");
    assert!(diagnosis.fix("interfaces").starts_with("load the tun module"), "{diagnosis:?}");

    let few = ["prlimit", "--nofile=100:100"];
    let diagnosis = under(&few, &[]);
    diagnosis.expect("open-files", "FAIL", "the limit on open files is 100");
    assert!(diagnosis.fix("open-files").starts_with("set LimitNOFILE="), "{diagnosis:?}");
    let some = ["prlimit", "--nofile=1000:1000"];
    under(&some, &["--workers", "2"]).expect("open-files", "WARN", "The limit on open files, 1000");

    let mut forbidden = command(&lab, &[], &[]);
    seccomp::forbid(&mut forbidden, libc::SYS_io_uring_setup);
    Diagnosis::of(&mut forbidden).expect("io-uring", "FAIL", "cannot use io_uring");
}

#[test]
fn locked_memory_is_reckoned_with_for_all_workers() {
    let lab = Lab::new(0, Config::default());
    // Locked memory is counted by user: a user of its own has no other rings.
    let user = ordinary_user(60_000 + std::process::id() % 5_000);
    // Where the program was built may be closed to others.
    let program = lab.scratch.file("gwlbtun");
    std::fs::copy(PROGRAM, &program).expect("a copy");
    let look = |limit: &str| {
        let mut command = lab.topology.target().command("prlimit");
        command.arg(format!("--memlock={limit}:{limit}")).args(&user);
        Diagnosis::of(command.arg(&program).args(["doctor", "--workers", "4"]))
    };
    look("65536").expect("io-uring", "FAIL", "which does not carry the rings of 4 workers");
    look("300000").expect("locked-memory", "WARN", "make the rings of the workers smaller");
    look("1000000").expect("locked-memory", "OK", "976 KiB are enough");
}

/// Some kernels show this limit in the first namespace alone, so the doctor looks there, without
/// the rights to make anything.
#[test]
fn a_receive_queue_above_the_limit_needs_a_capability() {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all", PROGRAM, "doctor"]);
    let diagnosis = Diagnosis::of(command.args(["--rcvbuf", "1023"]));
    diagnosis.expect("buffers", "WARN", "net.core.rmem_max is ");
    let fix = format!("sysctl -w net.core.rmem_max={}", 1023 << 20);
    assert!(diagnosis.fix("buffers").starts_with(&fix), "{diagnosis:?}");
    let lab = Lab::new(0, Config::default());
    doctor(&lab, &["--rcvbuf", "1023"]).expect("buffers", "OK", "by CAP_NET_ADMIN");
}

#[test]
fn what_only_traffic_shows() {
    let lab = Lab::new(0, Config::default());
    let target = lab.topology.target();
    let unknown = "cannot be known while gwlbtun does not run";
    doctor(&lab, &[]).expect("source-dest-check", "OK", unknown);
    let chain = "chain x { type filter hook prerouting priority 0; ct state new; }";
    run(&target, "nft", &[&format!("table ip x {{\n{chain}\n}}")]);
    // Without a hook nothing comes back.
    let engine = Engine::start(&lab, &["-j"]);
    let mut injector = lab.injector();
    for number in 0..200 {
        injector.send(endpoint_id(0), &packets::ping(V4, number, b"one way"));
    }
    let written = || engine.status()["enis"][0]["tunnelIn"]["pktsOut"].as_u64();
    wait_until("they are in", || written() >= Some(100));
    let diagnosis = doctor(&lab, &[]);
    diagnosis.expect("source-dest-check", "WARN", "none came back");
    diagnosis.expect("conntrack", "WARN", "GENEVE is tracked");
}

#[test]
fn flags_are_judged_as_those_of_the_program() {
    let lab = Lab::new(0, Config::default());
    for (flags, said) in [
        (&["--nonsense"][..], "unexpected argument '--nonsense' found"),
        (&["-p", "99999"], "99999 is not in 0..=65535"),
        (&["--workers", "257"], "a TUN has at most 256 queues"),
    ] {
        let output = command(&lab, &[], flags).output().expect("ip");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{flags:?}: {errors}");
        assert!(errors.lines().count() == 1 && errors.contains(said), "{flags:?}: {errors}");
        assert!(output.stdout.is_empty(), "{flags:?}");
    }
    let output = command(&lab, &[], &["--help"]).output().expect("ip");
    let help = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && help.contains("Usage: gwlbtun doctor [FLAGS]..."), "{help}");
    doctor(&lab, &["-t", "5s"]).expect("flags", "WARN", "5s");
}
