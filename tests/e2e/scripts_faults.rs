//! The example hooks by hand, on links that stay: CREATE and DESTROY twice, failures at every step,
//! wrong arguments, missing tools, missing rights. What is left is compared with what was there.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::process::Output;

use super::scripts::script;
use crate::sim::gwlb::Config;
use crate::sim::netns::Namespace;
use crate::support::kernel_state::assert_same;
use crate::support::kernel_state::kernel_state;
use crate::support::kernel_state::wait_for_address;
use crate::support::lab::Lab;
use crate::support::process::run;

const SCRIPTS: [&str; 9] = [
    "passthrough",
    "route",
    "nat",
    "nat-overlapping",
    "local",
    "shape",
    "netns",
    "suricata",
    "proxy",
];

const A: [&str; 3] = ["gwi-A", "gwo-A", "02b8ee1d4db0c51c4"];
const B: [&str; 3] = ["gwi-B", "gwo-B", "02b8ee1d4db0c51c5"];

/// Calls of tools that one CREATE makes at most.
const CALLS_MAX: usize = 100;

/// A target with the links of two endpoints, a way out, and settings that scripts must change.
struct Bench {
    lab: Lab,
}

impl Bench {
    fn new() -> Self {
        let lab = Lab::new(0, Config::default());
        let target = lab.topology.target();
        // What moves to another namespace and back has the default again.
        let settings = "echo 1 >/proc/sys/net/ipv6/conf/default/addr_gen_mode";
        run(&target, "sh", &["-ec", settings]);
        let mut lines = vec![
            "link add eth1 type veth peer name far1".to_owned(),
            "link set far1 up".to_owned(),
            "link set eth1 up".to_owned(),
            "addr add 192.0.2.1/24 dev eth1".to_owned(),
            "addr add 2001:db8:1::1/64 dev eth1 nodad".to_owned(),
            "route add default via 192.0.2.2".to_owned(),
            "route add default via 2001:db8:1::2".to_owned(),
        ];
        for link in [A[0], A[1], B[0], B[1]] {
            lines.push(format!("tuntap add {link} mode tun"));
            lines.push(format!("link set {link} up"));
        }
        target.ip(&lines).unwrap();
        // One link forwards already, and another filters less than "all" says.
        let settings = "cd /proc/sys/net; echo 1 >ipv4/conf/all/rp_filter; \
                        echo 2 >ipv4/conf/far1/rp_filter; echo 1 >ipv6/conf/far1/forwarding";
        run(&target, "sh", &["-ec", settings]);
        wait_for_address(&target, "2001:db8:1::1");
        Self { lab }
    }

    fn target(&self) -> Namespace {
        self.lab.topology.target()
    }

    fn state(&self) -> String {
        kernel_state(&self.target())
    }

    /// Runs a script by `wrapper`, with more environment.
    fn call(
        &self,
        name: &str,
        args: &[&str],
        wrapper: &[&str],
        environment: &[(&str, &str)],
    ) -> Output {
        let path = script(name);
        let words = [wrapper, &[&path], args].concat();
        // Into the namespace, but not into a view of its own of the file system, in which
        // namespaces that a script makes would end with it.
        let mut command = Command::new("nsenter");
        command.args([&format!("--net=/run/netns/{}", self.target().0), "env"]);
        command.arg(format!("GWLBTUN_STATE_DIR={}", self.notes()));
        command.arg(format!("NETNS_PREFIX={}-", self.notes().rsplit_once('/').unwrap().1));
        command.arg("LOCAL_ADDRESSES=198.51.100.10 2001:db8::10");
        command.args(environment.iter().map(|(key, value)| format!("{key}={value}")));
        command.args(words).output().unwrap()
    }

    /// Where the scripts keep notes; its name is the machine's only one.
    fn notes(&self) -> String {
        let dir = self.lab.scratch.file("");
        let name = dir.file_name().unwrap().to_str().unwrap();
        format!("{}/state-{name}", dir.display())
    }

    fn succeed(&self, name: &str, action: &str, of: [&str; 3], environment: &[(&str, &str)]) {
        let args = [&[action], &of[..]].concat();
        let output = self.call(name, &args, &[], environment);
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(output.status.success() && said == ["", ""], "{name} {args:?}: {said:?}");
    }

    /// A directory with these programs of the machine.
    fn tools(&self, name: &str, programs: &[&str]) -> String {
        let dir = self.lab.scratch.file(name);
        std::fs::create_dir(&dir).unwrap();
        for program in programs {
            symlink(find(program), dir.join(program)).unwrap();
        }
        dir.to_str().unwrap().to_owned()
    }
}

/// It failed, in one line that has these words.
fn assert_refused(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(words.iter().all(|word| said.contains(word)), "{words:?} in {said}");
    assert!(output.stdout.is_empty());
}

/// Where a program of the machine is.
fn find(program: &str) -> std::path::PathBuf {
    let path = std::env::var("PATH").unwrap();
    let mut places = path.split(':').map(|dir| Path::new(dir).join(program));
    places.find(|place| place.exists()).unwrap_or_else(|| panic!("no {program}"))
}

/// A state without the lines that begin so.
fn without(state: &str, begin: &str) -> String {
    let kept: Vec<_> = state.lines().filter(|line| !line.starts_with(begin)).collect();
    kept.join("\n")
}

/// CREATE and DESTROY of two endpoints, one by one and at a time, each twice.
fn there_and_back(name: &str, environment: &[(&str, &str)]) {
    let bench = Bench::new();
    let before = bench.state();
    let alone = [A, B].map(|of| {
        bench.succeed(name, "CREATE", of, environment);
        let alone = bench.state();
        assert_ne!(alone, before, "{name} changes nothing");
        bench.succeed(name, "CREATE", of, environment);
        assert_same(&alone, &bench.state());
        bench.succeed(name, "DESTROY", of, environment);
        assert_same(&before, &bench.state());
        alone
    });
    for of in [A, B] {
        bench.succeed(name, "CREATE", of, environment);
    }
    bench.succeed(name, "DESTROY", A, environment);
    bench.succeed(name, "DESTROY", A, environment);
    // As long as B is there, what is moved from "all" to all links is not to A's, which is about
    // to go.
    let without_setting = |state| without(state, "ipv4/conf/gwi-A/rp_filter");
    assert_same(&without_setting(&alone[1]), &without_setting(&bench.state()));
    bench.succeed(name, "DESTROY", B, environment);
    bench.succeed(name, "DESTROY", B, environment);
    assert_same(&before, &bench.state());
    let notes = std::fs::read_dir(bench.notes());
    assert_eq!(notes.map_or(0, Iterator::count), 0, "{name} leaves notes");
}

#[test]
fn destroy_undoes_create_exactly() {
    for name in SCRIPTS {
        there_and_back(name, &[]);
    }
}

#[test]
fn destroy_undoes_create_exactly_with_iptables() {
    for name in ["nat-overlapping", "local", "suricata"] {
        there_and_back(name, &[("FIREWALL", "iptables")]);
    }
}

#[test]
fn destroy_undoes_create_exactly_where_a_way_out_is_mapped() {
    let map = format!("{} eth1 192.0.2.9 fe80::9; vpce-{} eth1", A[2], B[2]);
    there_and_back("nat-overlapping", &[("NAT_MAP", &map)]);
}

/// The program was killed, so its links went without a DESTROY, and it starts again.
#[test]
fn what_a_crash_left_is_taken_up() {
    for name in ["passthrough", "route", "nat", "local", "shape", "suricata", "proxy"] {
        let bench = Bench::new();
        // Links that come while IPv6 is forwarded keep what was the default then.
        let state = || {
            let state = without(&bench.state(), "ipv6/conf/gwi-A/accept_ra");
            without(&state, "ipv6/conf/gwo-A/accept_ra")
        };
        let before = state();
        let make_links_anew = || {
            let lines = [A[0], A[1]].into_iter().flat_map(|link| {
                let del = format!("link del {link}");
                [del, format!("tuntap add {link} mode tun"), format!("link set {link} up")]
            });
            bench.target().ip(&lines.collect::<Vec<_>>()).unwrap();
        };
        bench.succeed(name, "CREATE", A, &[]);
        make_links_anew();
        bench.succeed(name, "CREATE", A, &[]);
        bench.succeed(name, "DESTROY", A, &[]);
        assert_same(&before, &state());
        bench.succeed(name, "CREATE", A, &[]);
        make_links_anew();
        bench.succeed(name, "DESTROY", A, &[]);
        assert_same(&before, &state());
    }
}

/// As with `--hook-jobs`: the last DESTROY removes the notes while the next CREATE begins.
#[test]
fn hooks_side_by_side_do_not_take_each_others_notes() {
    let bench = Bench::new();
    let before = bench.state();
    for _ in 0..5 {
        std::thread::scope(|scope| {
            for action in ["CREATE", "DESTROY", "DESTROY", "DESTROY"] {
                for of in [A, B] {
                    let bench = &bench;
                    scope.spawn(move || bench.succeed("route", action, of, &[]));
                }
            }
        });
    }
    bench.succeed("route", "DESTROY", A, &[]);
    bench.succeed("route", "DESTROY", B, &[]);
    assert_same(&before, &bench.state());
}

/// A tool that fails once, at each of its calls in turn: CREATE then says so and leaves nothing, or
/// did without that call.
fn no_step_leaves_half(name: &str, environment: &[(&str, &str)]) {
    let bench = Bench::new();
    let before = bench.state();
    let dir = bench.tools("failing", &[]);
    for tool in ["ip", "tc", "nft", "iptables-restore", "ip6tables-restore"] {
        let text = format!(
            "#!/bin/sh\nread -r left <{dir}/left\nleft=$((left - 1))\necho $left >{dir}/left\n\
             if [ $left = 0 ]; then echo 'on purpose,' >&2; echo broken >&2; exit 1; fi\n\
             exec {} \"$@\"\n",
            find(tool).display()
        );
        let wrapper = format!("{dir}/{tool}");
        std::fs::write(&wrapper, text).unwrap();
        std::fs::set_permissions(&wrapper, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let path = format!("{dir}:{}", std::env::var("PATH").unwrap());
    let environment = [environment, &[("PATH", path.as_str())]].concat();
    let mut refused = 0;
    let whole = (1..CALLS_MAX).find(|call| {
        std::fs::write(format!("{dir}/left"), format!("{call}\n")).unwrap();
        let args = [&["CREATE"], &A[..]].concat();
        let output = bench.call(name, &args, &[], &environment);
        if output.status.success() {
            bench.succeed(name, "DESTROY", A, &[]);
        } else {
            refused += 1;
            assert_refused(&output, &[]);
            assert_same(&before, &bench.state());
        }
        let left = std::fs::read_to_string(format!("{dir}/left")).unwrap();
        left.trim().parse::<i64>().unwrap() > 0
    });
    assert!(whole.is_some(), "{name} calls tools without end");
    assert!(refused > 0, "{name} does not look whether its tools succeed");
}

#[test]
fn a_failing_step_leaves_nothing_of_passthrough_route_and_shape() {
    for name in ["passthrough", "route", "shape"] {
        no_step_leaves_half(name, &[]);
    }
}

#[test]
fn a_failing_step_leaves_nothing_of_suricata_and_proxy() {
    no_step_leaves_half("suricata", &[("SURICATA_QUEUES", "0-3")]);
    no_step_leaves_half("proxy", &[("PROXY_DOWN", "refuse")]);
}

#[test]
fn a_failing_step_leaves_nothing_of_nat() {
    no_step_leaves_half("nat", &[]);
}

#[test]
fn a_failing_step_leaves_nothing_of_nat_overlapping_with_iptables() {
    let map = format!("{} eth1 192.0.2.9", A[2]);
    no_step_leaves_half("nat-overlapping", &[("NAT_MAP", &map), ("FIREWALL", "iptables")]);
}

#[test]
fn a_failing_step_leaves_nothing_of_local_and_netns() {
    no_step_leaves_half("local", &[]);
    no_step_leaves_half("netns", &[]);
}

#[test]
fn wrong_arguments_are_refused_in_a_line() {
    let bench = Bench::new();
    let before = bench.state();
    let id = A[2];
    let refusals: [(&[&str], &str); 12] = [
        (&[], "usage:"),
        (&["CREATE", "gwi-A", "gwo-A"], "usage:"),
        (&["CREATE", "gwi-A", "gwo-A", id, "more"], "usage:"),
        (&["create", "gwi-A", "gwo-A", id], "expected CREATE or DESTROY"),
        (&["CREATE", "gwo-A", "gwi-A", id], "gwi-<X>"),
        (&["CREATE", "", "gwo-A", id], "gwi-<X>"),
        (&["CREATE", "gwi-A;id", "gwo-A", id], "letters, digits and -"),
        (&["CREATE", "gwi-A\nid", "gwo-A", id], "letters, digits and -"),
        (&["CREATE", "gwi-A", "gwo-A", "vpce-1"], "hexadecimal"),
        (&["CREATE", "gwi-A", "gwo-Z", id], "no link gwo-Z"),
        (&["CREATE", "gwi-A", "none", id], "--no-return"),
        (&["DESTROY", "gwi-A", "none", id], "--no-return"),
    ];
    for name in SCRIPTS {
        for (args, word) in refusals {
            assert_refused(&bench.call(name, args, &[], &[]), &["create-", word]);
        }
    }
    assert_same(&before, &bench.state());
}

#[test]
fn missing_rights_are_told_in_a_line() {
    let bench = Bench::new();
    let before = bench.state();
    let without = ["setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin"];
    for name in SCRIPTS {
        let args = [&["CREATE"], &A[..]].concat();
        assert_refused(&bench.call(name, &args, &without, &[]), &["CAP_NET_ADMIN"]);
    }
    assert_same(&before, &bench.state());
}

#[test]
fn missing_tools_are_told_in_a_line() {
    let bench = Bench::new();
    let before = bench.state();
    let basic = ["sh", "sed", "cat", "tr", "grep", "stat", "mkdir", "rmdir", "dirname"];
    let basic = bench.tools("basic", &basic);
    let more = bench.tools("more", &["ip", "flock"]);
    let without_filters = format!("{basic}:{more}");
    let refusals = [
        ("passthrough", &basic, "", "tc is missing; install the package iproute2"),
        ("shape", &basic, "", "tc is missing; install the package iproute2"),
        ("route", &basic, "", "ip is missing; install the package iproute2"),
        ("netns", &basic, "", "ip is missing; install the package iproute2"),
        ("proxy", &basic, "", "nft is missing; install the package nftables"),
        ("suricata", &without_filters, "", "iptables-restore is missing; install the package"),
        ("nat", &without_filters, "", "iptables-restore is missing; install the package iptables"),
        ("nat", &without_filters, "nft", "nft is missing; install the package nftables"),
        ("local", &without_filters, "", "better nftables"),
        ("nat-overlapping", &without_filters, "", "aws is missing"),
    ];
    for (name, path, firewall, words) in refusals {
        let args = [&["CREATE"], &A[..]].concat();
        let environment = [("PATH", path.as_str()), ("FIREWALL", firewall), ("NAT_LOOKUP", "aws")];
        assert_refused(&bench.call(name, &args, &[], &environment), &[words]);
    }
    assert_same(&before, &bench.state());
}

#[test]
fn settings_that_make_no_sense_are_told_in_a_line() {
    let bench = Bench::new();
    let before = bench.state();
    let unknown = format!("{} eth7", A[2]);
    let refusals: [(&str, (&str, &str), &str); 15] = [
        ("nat", ("FIREWALL", "pf"), "FIREWALL is nft or iptables"),
        ("nat", ("NAT_INTERFACE", "eth7"), "no link eth7"),
        ("nat-overlapping", ("NAT_MAP", &unknown), "eth7"),
        ("local", ("LOCAL_ADDRESSES", "198.51.100.10 nonsense"), "nonsense"),
        ("shape", ("SHAPE_RATE", "fast"), "fast"),
        ("netns", ("NETNS_PREFIX", "no/where/"), "no/where/"),
        ("suricata", ("SURICATA_QUEUES", "all"), "SURICATA_QUEUES"),
        ("suricata", ("SURICATA_QUEUES", "1-"), "SURICATA_QUEUES"),
        ("suricata", ("SURICATA_QUEUES", "3-0"), "wrong way round"),
        ("suricata", ("SURICATA_DOWN", "open"), "SURICATA_DOWN is pass or drop"),
        ("suricata", ("FIREWALL", "pf"), "FIREWALL is nft or iptables"),
        ("proxy", ("PROXY_DOWN", "drop"), "PROXY_DOWN is pass or refuse"),
        ("proxy", ("PROXY_PORTS", "80"), "PROXY_PORTS"),
        ("proxy", ("PROXY_PORTS", "80:3129 http:3130"), "PROXY_PORTS"),
        ("route", ("GWLBTUN_STATE_DIR", "/proc/no"), "GWLBTUN_STATE_DIR"),
    ];
    for (name, setting, word) in refusals {
        let args = [&["CREATE"], &A[..]].concat();
        assert_refused(&bench.call(name, &args, &[], &[setting]), &[word]);
    }
    assert_same(&before, &bench.state());
}

#[test]
fn nat_without_a_way_out_says_so() {
    let bench = Bench::new();
    let none = ["route del default", "route del ::/0"].map(str::to_owned);
    bench.target().ip(&none).unwrap();
    let before = bench.state();
    for name in ["nat", "nat-overlapping"] {
        let args = [&["CREATE"], &A[..]].concat();
        assert_refused(&bench.call(name, &args, &[], &[]), &["default route"]);
    }
    assert_same(&before, &bench.state());
}
