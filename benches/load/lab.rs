//! The two hosts of a run: two network namespaces joined by one veth pair.
//!
//! ```text
//!   sender                                   target
//!   blast (core 0) ── vA 10.9.0.1 ══ vB 10.9.0.2 ── relay or engine (core 1)
//!                      └─ nft ingress: counter, drop
//! ```
//!
//! The sink is an nft `netdev` chain at vA's ingress: what the target returns is counted and
//! dropped before the sender's IP stack sees it.
//!
//! The namespaces have no name. They live as long as somebody holds them: this process, and its
//! children, which the kernel kills together with it ([`launch`]). So nothing stays behind, however
//! the bench ends. IPv6 is off in both: the kernel's own router solicitations would count.

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::process::Stdio;
use std::thread;

use nix::sched::CloneFlags;
use nix::sched::CpuSet;
use nix::sched::sched_setaffinity;
use nix::sched::setns;
use nix::sched::unshare;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::xdp;

/// What any step of the bench can fail with: it is told to the person and ends the run.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// The target's address, to which the sender sends.
pub(crate) const TARGET: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

/// The sender's address, which stands for a load balancer node.
pub(crate) const SENDER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);

/// The core of the generator and of everything else that is not the target.
pub(crate) const SENDER_CORE: usize = 0;

/// The core that the target has for itself.
pub(crate) const TARGET_CORE: usize = 1;

/// MTU of the path between load balancer and target inside a VPC (AWS guide, "Network MTU").
const OUTER_MTU: u16 = 9001;

/// What the sink's counter counts of a datagram beside the inner packet: IPv4, UDP and GENEVE.
const OVERHEAD_BYTES: u64 = 20 + 8 + 40;

/// One of the two namespaces.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Host {
    /// Generator and sink.
    Sender,
    /// Relay or engine.
    Target,
}

/// Two fresh namespaces, joined.
#[derive(Debug)]
pub(crate) struct Lab {
    sender: File,
    target: File,
    /// The program that clears checksums at vB, if it is wanted; gone with this descriptor.
    clearing: Option<OwnedFd>,
}

impl Lab {
    /// Makes both namespaces. `gro` says whether vB merges what arrives (and polls with NAPI),
    /// `clears_checksums` whether it clears outer checksums before that.
    pub(crate) fn build(gro: bool, clears_checksums: bool) -> Result<Self, Failure> {
        let mut lab =
            Self { sender: fresh_namespace()?, target: fresh_namespace()?, clearing: None };
        let target = lab.path(Host::Target);
        lab.run(
            Host::Sender,
            &format!("ip link add vA mtu {OUTER_MTU} type veth peer name vB mtu {OUTER_MTU}"),
        )?;
        lab.run(Host::Sender, &format!("ip link set vB netns {target}"))?;
        for (host, link, address) in [(Host::Sender, "vA", SENDER), (Host::Target, "vB", TARGET)] {
            lab.run(host, "sysctl -qw net.ipv6.conf.default.disable_ipv6=1")?;
            lab.run(host, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1")?;
            lab.run(host, &format!("ethtool -K {link} tso off gso off tx-udp-segmentation off"))?;
            lab.run(host, "ip link set lo up")?;
            lab.run(host, &format!("ip addr add {address}/24 dev {link}"))?;
            lab.run(host, &format!("ip link set {link} up"))?;
        }
        let gro = if gro { "on" } else { "off" };
        lab.run(Host::Target, &format!("ethtool -K vB gro {gro}"))?;
        lab.install_sink()?;
        if clears_checksums {
            let namespace = lab.target.try_clone()?;
            let attach = thread::spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
                xdp::clear_checksums("vB")
            });
            lab.clearing = Some(attach.join().map_err(|_| "the attaching thread panicked")??);
        }
        Ok(lab)
    }

    /// A command that will run in `host`, pinned to `core`, and die with this process.
    pub(crate) fn command(&self, host: Host, core: usize) -> Result<Command, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["launch", "--netns", &self.path(host)]).args([
            "--core",
            &core.to_string(),
            "--",
        ]);
        Ok(command)
    }

    /// Runs one command line (words separated by blanks) in `host` and gives what it printed.
    pub(crate) fn run(&self, host: Host, line: &str) -> Result<String, Failure> {
        let output = self
            .command(host, SENDER_CORE)?
            .args(line.split_whitespace())
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            return Err(format!("\"{line}\" ended with {}", output.status).into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Moves the calling thread into `host`.
    pub(crate) fn enter(&self, host: Host) -> Result<(), Failure> {
        Ok(setns(self.file(host), CloneFlags::CLONE_NEWNET)?)
    }

    /// Datagrams for port 6081 that have arrived at the sink since the lab was built.
    pub(crate) fn returned(&self) -> Result<Returned, Failure> {
        let listing = self.run(Host::Sender, "nft -j list counter netdev sink returned")?;
        let listing: serde_json::Value = serde_json::from_str(&listing)?;
        let counter = listing["nftables"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|object| &object["counter"])
            .find_map(|counter| Some((counter["packets"].as_u64()?, counter["bytes"].as_u64()?)));
        let (packets, bytes) =
            counter.ok_or_else(|| format!("no counter in nft's answer {listing}"))?;
        Ok(Returned { packets, inner_bytes: bytes - packets * OVERHEAD_BYTES })
    }

    /// What the kernel counted on the way, whatever the target says about itself.
    pub(crate) fn books(&self) -> Result<Books, Failure> {
        let links = |host| -> Result<Vec<serde_json::Value>, Failure> {
            Ok(serde_json::from_str(&self.run(host, "ip -j -s link show")?)?)
        };
        let sum = |links: &[serde_json::Value], prefix: &str, way: &str, what: &str| -> u64 {
            links
                .iter()
                .filter(|link| link["ifname"].as_str().is_some_and(|n| n.starts_with(prefix)))
                .filter_map(|link| link["stats64"][way][what].as_u64())
                .sum()
        };
        let target = links(Host::Target)?;
        Ok(Books {
            written_gwi: sum(&target, "gwi-", "rx", "packets"),
            read_gwo: sum(&target, "gwo-", "tx", "packets"),
            lost_at_sink: sum(&links(Host::Sender)?, "vA", "rx", "dropped"),
            returned: self.returned()?.packets,
        })
    }

    fn install_sink(&self) -> Result<(), Failure> {
        let mut nft = self
            .command(Host::Sender, SENDER_CORE)?
            .args(["nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()?;
        let rules = "table netdev sink {
            counter returned { }
            chain ingress {
                type filter hook ingress device \"vA\" priority 0
                udp dport 6081 counter name \"returned\" drop
            }
        }";
        nft.stdin.take().ok_or("nft has no input")?.write_all(rules.as_bytes())?;
        match nft.wait()? {
            status if status.success() => Ok(()),
            status => Err(format!("nft ended with {status}").into()),
        }
    }

    fn file(&self, host: Host) -> &File {
        match host {
            Host::Sender => &self.sender,
            Host::Target => &self.target,
        }
    }

    /// A path under which other processes of root find the namespace.
    fn path(&self, host: Host) -> String {
        let descriptor = self.file(host).as_raw_fd();
        format!("/proc/{}/fd/{descriptor}", std::process::id())
    }
}

/// What the sink counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Returned {
    /// Datagrams, each with one inner packet.
    pub(crate) packets: u64,
    /// Bytes of these inner packets.
    pub(crate) inner_bytes: u64,
}

/// Packets since the lab was built, as the kernel counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Books {
    /// Written by the target into gwi.
    pub(crate) written_gwi: u64,
    /// Read by the target from gwo.
    pub(crate) read_gwo: u64,
    /// Sent by the target, but dropped in vA's receive queue: core 1 was too busy with others.
    pub(crate) lost_at_sink: u64,
    /// Counted at the sink.
    pub(crate) returned: u64,
}

impl Books {
    /// Datagrams that the target sent and that reached vA.
    pub(crate) fn arrived(&self) -> u64 {
        self.returned + self.lost_at_sink
    }
}

/// What a child of ours does first: it enters the namespace at `netns`, pins itself to `core`,
/// asks to be killed when this bench dies, and becomes `command`. Returns only if that failed.
pub(crate) fn launch(netns: &str, core: usize, command: &[String]) -> Result<(), Failure> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    setns(File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
    pin(core)?;
    let (program, arguments) = command.split_first().ok_or("nothing to launch")?;
    let error = Command::new(program).args(arguments).exec();
    Err(format!("{program}: {error}").into())
}

/// Pins the calling thread, and what it starts later, to one core.
pub(crate) fn pin(core: usize) -> Result<(), Failure> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cores)?)
}

/// A new network namespace. A thread makes it for itself and ends; the open file keeps it.
fn fresh_namespace() -> Result<File, Failure> {
    thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(File::open("/proc/thread-self/ns/net")?)
    })
    .join()
    .map_err(|_| "the thread that makes a namespace panicked")?
}
