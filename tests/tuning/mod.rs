//! `tuning/`: the script against hosts that are only a tree of files, and in namespaces.
//!
//! A [`Host`] has the files below `/sys` and `/proc` that the script reads, and stand-ins for
//! `ethtool`, `nft`, `iptables` and `systemctl` that keep their settings in files too. So whether
//! `undo` restores a host is whether two listings of its files are equal.

mod host;
mod namespaces;

use std::fs;
use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::thread;

use self::host::Host;

/// The folder under test.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tuning");

const PROFILES: [&str; 6] = ["c5n", "c6in", "c6gn", "c7gn", "t4g", "generic"];

/// The topics that the script goes through, from its own list.
fn topics() -> Vec<String> {
    let script = fs::read_to_string(format!("{FOLDER}/tune.sh")).expect("the script");
    let list = script.lines().find_map(|line| line.strip_prefix("topics=\""));
    let list = list.expect("the list of topics").trim_end_matches('"');
    list.split(' ').map(|topic| topic.replace('_', "-")).collect()
}

#[test]
fn check_has_a_line_for_each_topic_and_changes_nothing() {
    let host = Host::new("c6in.2xlarge", 8, 2);
    let before = host.settings();
    for args in [&["check"][..], &["apply", "--dry-run"]] {
        let status = i32::from(args == ["check"]);
        let said = host.expect(status, args);
        assert!(said.err.is_empty(), "{said:?}");
        for topic in topics() {
            assert!(
                said.out.lines().any(|line| line.starts_with(&format!("{topic}: "))),
                "{topic}"
            );
        }
        said.expect_line("sysctl: would change net.core.rmem_max from 212992 to 134217728");
        assert_eq!(host.settings(), before);
    }
}

#[test]
fn applied_twice_and_undone_every_profile_leaves_all_as_it_was() {
    for (number, profile) in PROFILES.iter().enumerate() {
        let (cpus, threads) = [(8, 2), (2, 1)][number % 2];
        let host = Host::new("m9x.large", cpus, threads);
        // Set by hand, and lost when other queues or rings reset the device.
        host.write("proc/irq/31/smp_affinity_list", "0-1");
        let before = host.settings();
        let args = |verb| [verb, "--profile", profile];
        host.expect(1, &args("check"));
        host.expect(0, &args("apply"));
        let after = host.settings();
        let said = host.expect(0, &args("check"));
        assert!(!said.out.contains("would change"), "{said:?}");
        host.expect(0, &args("apply"));
        assert_eq!(host.settings(), after, "{profile}");
        // A dry run says all of it, and does none.
        let said = host.expect(0, &["undo", "--dry-run"]);
        assert_eq!(host.settings(), after);
        let restored = host.expect(0, &["undo"]).out.replace("restored", "would restore");
        // But of interrupts, whose CPUs it finds as a reset of the device leaves them.
        let kept = |line: &&str| !line.contains("/smp_affinity_list");
        assert!(restored.lines().filter(kept).eq(said.out.lines().filter(kept)), "{restored}");
        assert_eq!(host.settings(), before, "{profile}");
        host.expect(0, &["undo"]).expect_line(&format!(
            "undo: ok: nothing is recorded in {}",
            host.path("state/tune.state").display()
        ));
    }
}

/// What comes first counts, also where somebody else changed it between two applies.
#[test]
fn undo_goes_back_to_before_the_first_apply() {
    let host = Host::new("c7gn.xlarge", 4, 1);
    let before = host.settings();
    host.expect(0, &["apply"]);
    host.write("sys/class/net/eth0/tx_queue_len", "77");
    host.expect(0, &["apply"])
        .expect_line("txqueuelen: changed txqueuelen of eth0 from 77 to 4096");
    host.expect(0, &["undo"]);
    assert_eq!(host.settings(), before);
}

#[test]
fn what_is_larger_or_reserved_already_stays() {
    let host = Host::new("c6in.large", 2, 2);
    host.write("proc/sys/net/ipv4/ip_local_reserved_ports", "4789,8472");
    host.write("ethtool/rx", "16384");
    host.expect(0, &["apply"]);
    assert_eq!(host.read("proc/sys/net/ipv4/ip_local_reserved_ports"), "4789,8472,60000-60001");
    assert_eq!(host.read("proc/sys/net/core/wmem_max"), "33554432");
    assert_eq!(host.read("ethtool/rx"), "16384");
}

/// The rules cost time for each packet, so a host that tracks nothing gets none unasked.
#[test]
fn notrack_is_for_hosts_that_track() {
    let host = Host::new("c6in.large", 2, 2);
    let on = "notrack: would change notrack for UDP port 6081 (nft) from off to on";
    host.expect(1, &["check"]).expect_line(on);
    for count in [Some("0"), None] {
        let file = "proc/sys/net/netfilter/nf_conntrack_count";
        match count {
            Some(count) => host.write(file, count),
            None => fs::remove_file(host.path(file)).expect("removed"),
        }
        host.expect(1, &["check", "--two-arm"]).expect_line(on);
        host.expect(1, &["check"]).expect_line(
            "notrack: ok: this host tracks no connections; say --two-arm if its hooks will make it",
        );
    }
    // What was applied while it tracked stays until undo.
    host.expect(0, &["apply", "--two-arm"]);
    host.expect(0, &["apply"]);
    assert!(host.path("nft").exists());
    host.expect(0, &["undo"]);
    assert!(!host.path("nft").exists());
}

#[test]
fn a_quarter_of_the_cores_takes_interrupts_and_the_rest_are_the_workers() {
    let host = Host::new("c6in.2xlarge", 8, 2);
    let said = host.expect(1, &["check"]);
    said.expect_line("profile: ok: c6in, 8 CPUs, eth0");
    said.expect_line("cpus: ok: interrupts on 0,4: start gwlbtun with --cores 1-3,5-7");
    said.expect_line("queues: would change queues of eth0 from 2 to 8");
    said.expect_line("rings: would change rx ring of eth0 from 1024 to 8192");
    said.expect_line("irqs: would change CPUs of eth0's interrupts 30 31 from 7 to 0 4");
    // Workers 1, 3, 6 and interrupts' 0 share the first queue; 2, 5, 7 and 4 the second.
    said.expect_line("xps: would change xps_cpus of eth0 tx-0 tx-1 from 0 to 4b b4");
    said.expect_line(
        "c-states: would change disable of cpu0/C1E cpu0/C6 ... cpu7/C6 (16 in all) from 0 to 1",
    );
    let said = host.expect(1, &["check", "--irq-cpus", "3,2-3"]);
    said.expect_line("cpus: ok: interrupts on 2-3: start gwlbtun with --cores 0-1,4-7");
    let said = host.expect(1, &["check", "--irq-cpus", "all"]);
    said.expect_line(
        "cpus: ok: all CPUs do both, interrupts and workers: gwlbtun needs no --cores",
    );
}

/// Masks of more than 32 CPUs, and cores near the interface.
#[test]
fn large_hosts_have_long_masks_and_nodes() {
    let host = Host::new("c6in.32xlarge", 128, 2);
    host.write("sys/class/net/eth0/device/numa_node", "1");
    host.write("sys/devices/system/node/node1/cpulist", "32-63,96-127");
    host.write("ethtool/most", "32");
    let said = host.expect(1, &["check"]);
    said.expect_line(
        "cpus: ok: interrupts on 32-47,96-111: start gwlbtun with --cores 0-31,48-95,112-127",
    );
    // 32 queues: of each 32nd the first are workers 0, 48 and 80, and CPU 32 of the interrupts.
    said.expect_line(
        "xps: would change xps_cpus of eth0 tx-0 tx-1 ... tx-31 (32 in all) from 0 to \
         10000,00010001,00000001 1,00020000,00020000,00000002 ... \
         80008000,00008000,00000000,80000000 (32 in all)",
    );
    host.expect(0, &["apply"]);
    // As the kernel writes them.
    host.write("sys/class/net/eth0/queues/tx-0/xps_cpus", "00000000,00010000,00010001,00000001");
    host.expect(0, &["check"]);
}

/// The hardware has one queue for four CPUs.
#[test]
fn software_spreads_what_the_queues_cannot() {
    let host = Host::new("t4g.xlarge", 4, 1);
    fs::remove_dir_all(host.path("sys/class/net/eth0/queues/rx-1")).expect("removed");
    fs::remove_dir_all(host.path("sys/class/net/eth0/queues/tx-1")).expect("removed");
    host.write("ethtool/combined", "1");
    host.write("ethtool/most", "1");
    let said = host.expect(1, &["check"]);
    said.expect_line("rps: would change rps_cpus of eth0 rx-0 from 0 to f");
    said.expect_line("xps: ok: eth0 has one queue");
    said.expect_line("rings: would change tx ring of eth0 from 512 to 1024");
}

/// Rings must not eat the memory of a small host.
#[test]
fn rings_take_a_sixty_fourth_of_the_memory_at_most() {
    let host = Host::new("c6in.large", 2, 2);
    host.write("proc/meminfo", "MemTotal:       4194304 kB");
    let said = host.expect(1, &["check"]);
    said.expect_line("rings: would change rx ring of eth0 from 1024 to 8192");
    host.write("proc/meminfo", "MemTotal:       1048576 kB");
    let said = host.expect(1, &["check"]);
    said.expect_line("rings: would change rx ring of eth0 from 1024 to 2048");
}

#[test]
fn irqbalance_is_told_which_cpus_to_keep_off() {
    let host = Host::new("c7gn.2xlarge", 8, 1);
    host.write("proc/18/comm", "irqbalance");
    let before = host.settings();
    let said = host.expect(0, &["apply"]);
    said.expect_line("irqs: changed CPUs banned for irqbalance from none to 2-7");
    let drop_in = "run/systemd/system/irqbalance.service.d/gwlbtun.conf";
    assert_eq!(host.read(drop_in), "[Service]\nEnvironment=IRQBALANCE_BANNED_CPULIST=2-7");
    assert_eq!(host.read("systemctl.log"), "daemon-reload\ntry-restart irqbalance.service");
    // It does it itself: nothing is set behind its back.
    assert_eq!(host.read("proc/irq/30/smp_affinity_list"), "7");
    host.expect(0, &["check"]).expect_line("irqs: ok: irqbalance keeps them on CPUs 0-1");
    host.expect(0, &["undo"]);
    assert_eq!(host.settings(), before);
    // Half of it done is none of it done.
    host.tool("systemctl", "#!/bin/bash\necho Access denied >&2\nexit 1\n");
    let said = host.expect(2, &["apply"]);
    let what = "cannot change CPUs banned for irqbalance from none to 2-7: Access denied\n";
    assert_eq!(said.err, format!("tune.sh: irqs: {what}"));
    assert!(!host.path(drop_in).exists());
    assert!(!host.read("state/tune.state").contains("irqbalance"));
    host.expect(0, &["undo"]);
    host.write("etc/default/irqbalance", "IRQBALANCE_BANNED_CPULIST=0");
    let said = host.expect(1, &["check"]);
    assert!(said.out.contains("irqs: cannot be known here: "), "{said:?}");
    assert!(said.out.contains("bans CPUs itself; make it ban 2-7, or nothing"), "{said:?}");
}

#[test]
fn what_fails_is_told_and_not_recorded_and_the_rest_is_done() {
    let host = Host::new("c6gn.xlarge", 4, 1);
    host.write("ethtool/refuses", "rx\nadaptive-rx");
    let before = host.settings();
    let said = host.expect(2, &["apply"]);
    let why = "netlink error: Operation not supported";
    let expected = format!(
        "tune.sh: rings: cannot change rx ring of eth0 from 1024 to 8192: {why}\n\
         tune.sh: moderation: cannot change adaptive-rx of eth0 from off to on: {why}\n"
    );
    assert_eq!(said.err, expected);
    let record = host.read("state/tune.state");
    assert!(!record.contains("eth0:rx") && record.contains("eth0:tx"), "{record}");
    assert_eq!(host.read("sys/class/net/eth0/tx_queue_len"), "4096");
    host.expect(0, &["undo"]);
    assert_eq!(host.settings(), before);
}

#[test]
fn what_cannot_be_undone_stays_in_the_record() {
    let host = Host::new("c6gn.xlarge", 4, 1);
    let before = host.settings();
    host.expect(0, &["apply"]);
    host.write("ethtool/refuses", "rx");
    let said = host.expect(2, &["undo"]);
    assert!(said.err.contains("cannot restore ethtool eth0:rx from 8192 to 1024"), "{said:?}");
    let record = host.read("state/tune.state");
    assert_eq!(record.lines().skip(1).collect::<Vec<_>>(), ["ethtool\teth0:rx\t1024"]);
    host.write("ethtool/refuses", "");
    host.expect(0, &["undo"]);
    assert_eq!(host.settings(), before);
}

#[test]
fn killed_half_way_it_can_still_undo() {
    let host = Host::new("c6in.2xlarge", 8, 2);
    let before = host.settings();
    host.write("ethtool/kills", "tx");
    let said = host.run(&["apply"]);
    assert_eq!(said.status, None, "{said:?}");
    assert_eq!(host.read("ethtool/rx"), "8192");
    host.write("ethtool/kills", "");
    host.expect(0, &["undo"]);
    assert_eq!(host.settings(), before);
}

/// What cannot be recorded is not changed, and what the disk had room for is no record.
#[test]
fn a_full_disk_changes_nothing() {
    let host = Host::new("c6gn.xlarge", 4, 1);
    let state = host.path("state");
    fs::create_dir(&state).expect("a folder");
    let before = host.settings();
    let full = "cd $0 && mount -t tmpfs -o size=4k none . && cd $0 &&
        head -c 4096 /dev/zero >fill && \"$@\"; status=$?; ls $0; exit $status";
    let state = state.to_str().expect("UTF-8");
    let said = host.run_under(&["unshare", "--mount", "sh", "-c", full, state], &["apply"]);
    assert_eq!(said.status, Some(2), "{said:?}");
    let words = "tune.sh: cannot write ";
    assert!(said.err.starts_with(words) && said.err.ends_with("; is the disk full?\n"), "{said:?}");
    assert!(said.out.ends_with("\nfill\n"), "{said:?}");
    assert_eq!(host.settings(), before);
}

#[test]
fn one_works_at_a_time() {
    let host = Host::new("c6gn.xlarge", 4, 1);
    host.expect(0, &["apply"]);
    let state = host.path("state");
    let held = ["flock", state.to_str().expect("UTF-8")];
    for verb in ["apply", "undo"] {
        host.run_under(&held, &[verb]).expect_refusal("another tune.sh is at work in ");
    }
    host.expect(0, &["undo"]);
}

/// Both of a two-arm target with an interface to each side.
#[test]
fn every_default_route_has_its_interface_tuned() {
    let host = Host::new("c7gn.xlarge", 4, 1);
    let route = host.read("proc/net/route");
    let net = "sys/class/net";
    for (file, value) in [("mtu", "1500"), ("tx_queue_len", "1000")] {
        host.write(&format!("{net}/eth1/{file}"), value);
    }
    for queue in ["rx-0/rps_cpus", "rx-1/rps_cpus", "tx-0/xps_cpus", "tx-1/xps_cpus"] {
        host.write(&format!("{net}/eth1/queues/{queue}"), "0");
    }
    let before = host.settings();
    host.expect(1, &["check"]).expect_line("profile: ok: c7gn, 4 CPUs, eth0");
    let both = ["apply", "--dev", "eth0", "--dev", "eth1", "--dev", "eth0"];
    let said = host.expect(0, &both);
    said.expect_line("profile: ok: c7gn, 4 CPUs, eth0 eth1");
    said.expect_line("mtu: changed mtu of eth1 from 1500 to 9001");
    said.expect_line("xps: changed xps_cpus of eth0 tx-0 tx-1 from 0 to 5 a");
    said.expect_line("xps: changed xps_cpus of eth1 tx-0 tx-1 from 0 to 5 a");
    host.expect(0, &["undo"]);
    assert_eq!(host.settings(), before);
    host.write("proc/net/route", &format!("{route}\neth1\t00000000\t0\t3\t0\t0\t9\t00000000"));
    host.expect(1, &["check"]).expect_line("profile: ok: c7gn, 4 CPUs, eth0 eth1");
}

/// A link that went since takes its settings with it.
#[test]
fn what_is_gone_needs_no_undoing() {
    let host = Host::new("c6gn.xlarge", 4, 1);
    host.expect(0, &["apply"]);
    fs::remove_dir_all(host.path("sys/class/net/gwi-5bqWvzLwwkk")).expect("removed");
    let said = host.expect(0, &["undo"]);
    assert!(said.out.contains("gwi-5bqWvzLwwkk/tx_queue_len is gone\n"), "{said:?}");
}

#[test]
fn a_record_of_an_earlier_boot_is_nothing_to_undo() {
    let host = Host::new("c6gn.xlarge", 4, 1);
    host.expect(0, &["apply"]);
    host.write("proc/sys/kernel/random/boot_id", "33333333-4444");
    host.write("sys/class/net/eth0/tx_queue_len", "1000");
    for args in [&["undo", "--dry-run"][..], &["undo"]] {
        let said = host.expect(0, args);
        assert!(said.out.contains("is of an earlier boot, whose settings are gone"), "{said:?}");
        assert!(!said.out.contains("restore"), "{said:?}");
    }
    assert!(!host.path("state/tune.state").exists());
    assert_eq!(host.read("sys/class/net/eth0/tx_queue_len"), "1000");
    host.write("state/tune.state", "my diary");
    host.run(&["apply"]).expect_refusal("is no record of this program; move it away");
}

#[test]
fn wrong_calls_get_one_line_and_change_nothing() {
    let host = Host::new("c6gn.xlarge", 4, 1);
    let before = host.settings();
    for (args, words) in [
        (&[][..], "usage: tune.sh check|apply|undo"),
        (&["tune"], "usage: tune.sh check|apply|undo"),
        (&["apply", "--force"], "unknown word \"--force\""),
        (&["apply", "--profile"], "--profile needs a value"),
        (&["apply", "--profile", "c9x"], "no profile \"c9x\"; take c5n, c6in"),
        (&["apply", "--dev", "eth7"], "no link eth7 here; see: ip link"),
        (&["apply", "--dev", ".."], "no link .. here"),
        (&["apply", "--dev", "../net/eth0"], "no link ../net/eth0 here"),
        (&["apply", "--irq-cpus", "a-b"], "\"a-b\" is no list of CPUs"),
        (&["apply", "--irq-cpus", "3-4"], "CPU 4 is not among those online, 0-3"),
        (&["apply", "--irq-cpus", "3-1"], "--irq-cpus 3-1 has no CPU: the smaller number first"),
    ] {
        host.run(args).expect_refusal(words);
    }
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    for verb in ["apply", "undo"] {
        host.run_under(&nobody, &[verb]).expect_refusal("needs root; run: sudo tune.sh");
    }
    let bare = host.path("bare");
    fs::create_dir(&bare).expect("a folder");
    for tool in ["dirname", "readlink"] {
        symlink(format!("/usr/bin/{tool}"), bare.join(tool)).expect("a link");
    }
    let path = format!("PATH={}", bare.display());
    host.run_under(&["env", &path, "/bin/bash"], &["apply"]).expect_refusal("awk is missing");
    fs::remove_dir_all(bare).expect("removed");
    let conf = host.path("tuning/90-gwlbtun.conf");
    fs::rename(&conf, host.path("conf")).expect("renamed");
    host.run(&["apply"]).expect_refusal("no 90-gwlbtun.conf beside tune.sh or in ");
    fs::rename(host.path("conf"), &conf).expect("renamed back");
    host.write("proc/net/route", "Iface\tDestination");
    host.run(&["apply"]).expect_refusal("no default route names the interface to tune");
    host.write("proc/net/route", &before[&host.path("proc/net/route")]);
    assert_eq!(host.settings(), before);
    assert!(!host.path("state").exists());
}

/// The instance type is the firmware's, else the metadata service's, asked as `IMDSv2` wants it.
#[test]
fn the_profile_is_that_of_the_instance() {
    for (instance, profile) in
        [("c5n.9xlarge", "c5n"), ("t4g.micro", "t4g"), ("m5.large", "generic")]
    {
        let host = Host::new(instance, 2, 1);
        let said = host.expect(1, &["check"]);
        said.expect_line(&format!("profile: ok: {profile}, 2 CPUs, eth0"));
    }
    let mut host = Host::new("HVM domU", 2, 1);
    let service = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = service.local_addr().expect("an address");
    host.variables.push(("IMDS", format!("http://{address}")));
    let answers = thread::spawn(move || {
        ["token", "c7gn.large"].map(|answer| {
            let (mut stream, _) = service.accept().expect("a client");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("a head");
                head.extend(byte);
            }
            let length = answer.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{answer}");
            stream.write_all(answer.as_bytes()).expect("written");
            String::from_utf8(head).expect("text")
        })
    });
    host.expect(1, &["check"]).expect_line("profile: ok: c7gn, 2 CPUs, eth0");
    let [first, second] = answers.join().expect("two requests");
    assert!(first.starts_with("PUT /latest/api/token "), "{first}");
    assert!(first.contains("X-aws-ec2-metadata-token-ttl-seconds: 60\r\n"), "{first}");
    assert!(second.starts_with("GET /latest/meta-data/instance-type "), "{second}");
    assert!(second.contains("X-aws-ec2-metadata-token: token\r\n"), "{second}");
    // Other hosts are not asked to ask.
    host.write("sys/class/dmi/id/sys_vendor", "QEMU");
    host.expect(1, &["check"]).expect_line("profile: ok: generic, 2 CPUs, eth0");
}

#[test]
fn the_page_explains_every_topic() {
    let page = fs::read_to_string(format!("{FOLDER}/README.md")).expect("the page");
    for topic in topics() {
        assert!(page.contains(&format!("\n### {topic}")), "tuning/README.md lacks ### {topic}");
    }
    for profile in PROFILES {
        assert!(
            page.contains(&format!("\n| {profile} |")),
            "its table of profiles lacks {profile}"
        );
    }
}

/// The drop-in takes back each fence of the unit.
#[test]
fn unfenced_is_without_any_fence() {
    let read = |name| fs::read_to_string(format!("{FOLDER}/{name}")).expect("a file");
    let (unit, drop_in) = (read("gwlbtun.service"), read("unfenced.conf"));
    let fences = unit.split("\n\n").skip_while(|part| !part.contains("\nCapabilityBoundingSet="));
    let mut count = 0;
    for line in fences.take_while(|part| !part.starts_with("[Install]")).flat_map(str::lines) {
        let Some((key, _)) = line.split_once('=') else { continue };
        // A folder of its own and the error number fence nothing.
        if !["StateDirectory", "SystemCallErrorNumber"].contains(&key) {
            assert!(drop_in.contains(&format!("\n{key}=")), "unfenced.conf leaves {key}");
            count += 1;
        }
    }
    assert!(count > 20, "{count}");
}
