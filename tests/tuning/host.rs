//! A host that is only a tree of files, with stand-ins for the tools that change one.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use super::FOLDER;
use crate::support::scratch::Scratch;
use crate::support::scratch::unique_name;

/// `ethtool` as ENA answers it; a setting is a file of its name. `refuses` names those that the
/// driver will not change, `kills` the one at which the machine takes the script away.
const ETHTOOL: &str = r#"#!/bin/bash
cd "$(dirname "$0")/../ethtool" || exit 1
case $1 in
-g) printf 'Ring parameters for %s:\nPre-set maximums:\nRX:\t\t16384\nTX:\t\t1024\n' "$2"
    printf 'Current hardware settings:\nRX:\t\t%s\nTX:\t\t%s\n' "$(<rx)" "$(<tx)" ;;
-l) printf 'Channel parameters for %s:\nPre-set maximums:\nRX:\t\tn/a\n' "$2"
    printf 'Combined:\t%s\nCurrent hardware settings:\nRX:\t\tn/a\n' "$(<most)"
    printf 'Combined:\t%s\n' "$(<combined)" ;;
-c) printf 'Coalesce parameters for %s:\nAdaptive RX: %s  TX: n/a\n' "$2" "$(<adaptive-rx)" ;;
-k) printf 'Features for %s:\ngeneric-receive-offload: %s\n' "$2" "$(<gro)" ;;
*)
    if grep -qx "$3" kills; then
        read -r _ _ _ script _ </proc/$PPID/stat
        kill -9 "$script" $PPID
    fi
    if grep -qx "$3" refuses; then echo "netlink error: Operation not supported" >&2; exit 1; fi
    echo "$4" >"$3"
    # A device that is reset makes its interrupts anew.
    case $1 in -[GL])
        for queue in ../proc/irq/3*; do cat irq-default >"$queue/smp_affinity_list"; done ;;
    esac ;;
esac
"#;

const NFT: &str = r#"#!/bin/bash
rules=$(dirname "$0")/../nft
case "$*" in
"list tables") exit 0 ;;
"list table ip gwlbtun_notrack") [ -e "$rules" ] ;;
"-f -") cat >"$rules" ;;
"delete table ip gwlbtun_notrack") rm "$rules" ;;
*) exit 1 ;;
esac
"#;

const SYSTEMCTL: &str = r#"#!/bin/bash
echo "$*" >>"$(dirname "$0")/../systemctl.log"
"#;

/// What the script printed, and its exit status.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) status: Option<i32>,
    pub(super) out: String,
    pub(super) err: String,
}

impl Said {
    /// One line on standard error and nothing else.
    pub(super) fn expect_refusal(&self, words: &str) {
        assert_eq!(self.status, Some(2), "{self:?}");
        assert!(self.out.is_empty() && self.err.lines().count() == 1, "{self:?}");
        assert!(self.err.starts_with("tune.sh: ") && self.err.contains(words), "{self:?}");
    }

    #[track_caller]
    pub(super) fn expect_line(&self, line: &str) {
        assert!(
            self.out.lines().any(|said| said == line),
            "no {line:?} in\n{}{}",
            self.out,
            self.err
        );
    }
}

/// A host that is a tree of files.
pub(super) struct Host {
    scratch: Scratch,
    /// Environment variables of the script besides its roots.
    pub(super) variables: Vec<(&'static str, String)>,
}

impl Host {
    /// A host of EC2 with `cpus` CPUs, of which each core has `threads`, and an interface with a
    /// quarter of the queues that it could have.
    pub(super) fn new(instance: &str, cpus: usize, threads: usize) -> Self {
        let host = Self { scratch: Scratch::new(&unique_name()), variables: Vec::new() };
        host.write("sys/class/dmi/id/product_name", instance);
        host.write("sys/class/dmi/id/sys_vendor", "Amazon EC2");
        host.write("sys/devices/system/cpu/online", &format!("0-{}", cpus - 1));
        for cpu in 0..cpus {
            let core = cpu % (cpus / threads);
            let siblings: Vec<_> =
                (0..threads).map(|thread| (core + thread * cpus / threads).to_string()).collect();
            let folder = format!("sys/devices/system/cpu/cpu{cpu}");
            host.write(&format!("{folder}/topology/thread_siblings_list"), &siblings.join(","));
            for (state, (name, latency)) in
                [("POLL", 0), ("C1", 2), ("C1E", 10), ("C6", 133)].iter().enumerate()
            {
                let state = format!("{folder}/cpuidle/state{state}");
                host.write(&format!("{state}/name"), name);
                host.write(&format!("{state}/latency"), &latency.to_string());
                host.write(&format!("{state}/disable"), "0");
            }
        }
        // Where the repository is may be closed to others than root.
        for name in ["tune.sh", "tune-lib.sh", "90-gwlbtun.conf"] {
            let copy = host.path("tuning").join(name);
            fs::create_dir_all(host.path("tuning")).expect("a folder");
            fs::copy(Path::new(FOLDER).join(name), copy).expect("a copy");
        }
        host.add_proc();
        host.add_interface(cpus);
        host.add_tools(cpus);
        host
    }

    fn add_proc(&self) {
        for (key, value) in [
            ("net/ipv4/ip_local_reserved_ports", ""),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/gwi-5bqWvzLwwkk/rp_filter", "2"),
            ("net/core/rmem_max", "212992"),
            ("net/core/wmem_max", "33554432"),
            ("net/core/netdev_max_backlog", "1000"),
            ("net/core/netdev_budget", "300"),
            ("vm/min_free_kbytes", "67584"),
            ("net/netfilter/nf_conntrack_count", "3"),
            ("kernel/random/boot_id", "11111111-2222"),
        ] {
            self.write(&format!("proc/sys/{key}"), value);
        }
        self.write("proc/meminfo", "MemTotal:       33554432 kB\nMemFree: 1 kB");
        self.write(
            "proc/net/route",
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
             eth0\t00000000\t010A0A0A\t0003\t0\t0\t0\t00000000\n\
             eth1\t000A0A0A\t00000000\t0001\t0\t0\t0\t00FFFFFF",
        );
        self.write("proc/17/comm", "sshd");
    }

    fn add_interface(&self, cpus: usize) {
        let net = "sys/class/net";
        for (link, length) in [("eth0", "1000"), ("gwi-5bqWvzLwwkk", "500")] {
            self.write(&format!("{net}/{link}/tx_queue_len"), length);
            self.write(&format!("{net}/{link}/mtu"), "9001");
        }
        self.write(&format!("{net}/eth0/device/numa_node"), "-1");
        let queues = (cpus / 4).clamp(2, 32);
        for queue in 0..queues {
            self.write(&format!("{net}/eth0/queues/rx-{queue}/rps_cpus"), "0");
            self.write(&format!("{net}/eth0/queues/tx-{queue}/xps_cpus"), "0");
            let irq = 30 + queue;
            self.write(&format!("{net}/eth0/device/msi_irqs/{irq}"), "msix");
            self.write(&format!("proc/irq/{irq}/smp_affinity_list"), &(cpus - 1).to_string());
            self.write(&format!("proc/irq/{irq}/eth0-Tx-Rx-{queue}/spurious"), "count 0");
        }
        self.write(&format!("{net}/eth0/device/msi_irqs/29"), "msix");
        self.write("proc/irq/29/smp_affinity_list", "1");
        self.write("proc/irq/29/ena-mgmnt@pci:0000:00:05.0/spurious", "count 0");
    }

    fn add_tools(&self, cpus: usize) {
        let queues = (cpus / 4).clamp(2, 32);
        let most = cpus.min(32);
        for (name, value) in [
            ("rx", "1024"),
            ("tx", "512"),
            ("combined", &queues.to_string()),
            ("most", &most.to_string()),
            ("adaptive-rx", "off"),
            ("gro", "on"),
            ("refuses", ""),
            ("kills", ""),
            ("irq-default", &(cpus - 1).to_string()),
        ] {
            self.write(&format!("ethtool/{name}"), value);
        }
        self.tool("ethtool", ETHTOOL);
        self.tool("nft", NFT);
        self.tool("iptables-save", "#!/bin/bash\nexit 1\n");
        self.tool("systemctl", SYSTEMCTL);
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.scratch.file(name)
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("below the scratch")).expect("a folder");
        fs::write(path, format!("{text}\n")).expect("a file");
    }

    pub(super) fn read(&self, name: &str) -> String {
        let text = fs::read_to_string(self.path(name));
        text.unwrap_or_else(|error| panic!("{name}: {error}")).trim().to_owned()
    }

    pub(super) fn tool(&self, name: &str, script: &str) {
        self.write(&format!("bin/{name}"), script);
        let path = self.path(&format!("bin/{name}"));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("executable");
    }

    /// Every file that the script might change, with its content. An attempt to talk to systemd
    /// is no setting.
    pub(super) fn settings(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.path("")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() && !path.is_symlink() {
                    folders.push(path);
                } else if !path.ends_with("systemctl.log") {
                    let text = fs::read_to_string(&path).expect("text");
                    found.insert(path, text.trim().to_owned());
                }
            }
        }
        found
    }

    fn command(&self, wrapper: &[&str], args: &[&str]) -> Command {
        let script = self.path("tuning/tune.sh");
        let words = [wrapper, &[script.to_str().expect("UTF-8")], args].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::null());
        for (name, path) in [
            ("SYSFS", "sys"),
            ("PROC", "proc"),
            ("RUN", "run"),
            ("ETC", "etc"),
            ("STATE", "state/tune.state"),
        ] {
            command.env(name, self.path(path));
        }
        let path = std::env::var("PATH").expect("a PATH");
        command.env("PATH", format!("{}:{path}", self.path("bin").display()));
        // Nobody is to be asked but whom a test names.
        command.env("IMDS", "http://127.0.0.1:9");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    pub(super) fn run_under(&self, wrapper: &[&str], args: &[&str]) -> Said {
        let output = self.command(wrapper, args).output().expect("it starts");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Said { status: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    pub(super) fn run(&self, args: &[&str]) -> Said {
        self.run_under(&[], args)
    }

    #[track_caller]
    pub(super) fn expect(&self, status: i32, args: &[&str]) -> Said {
        let said = self.run(args);
        assert_eq!(said.status, Some(status), "{args:?}:\n{}{}", said.out, said.err);
        said
    }
}
