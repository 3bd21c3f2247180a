//! Namespaces, links and addresses of a simulated load balancer, and the process that removes
//! them whatever happens to us.
//!
//! | namespace | link | addresses |
//! |---|---|---|
//! | `<prefix>-gwlb` | `gw0` | the nodes |
//! | `<prefix>-target` | `eth0` (its peer) | the target |
//! | `<prefix>-client<N>` | `lb0` (TUN of the simulator) | [`CLIENT_V4`], [`CLIENT_V6`] |
//! | `<prefix>-server<N>` | `lb0` (TUN of the simulator) | [`SERVER_V4`], [`SERVER_V6`] |
//!
//! That is one-arm; two-arm, which has no servers behind endpoints, is in [`super::outside`].
//!
//! Endpoint N is in client network N modulo [`Plan::networks`]. Those addresses are of network 0;
//! network K has `10.1.K.0/24` and `fd00:1:0:K::/64`. With one network, hosts of all endpoints have
//! the same addresses: overlap is the normal case.
//!
//! Removal has one path: a *reaper* process waits for the end of a pipe that only we hold, so it
//! starts when the [`Topology`] is dropped and also when the whole process is killed. It kills
//! what runs in the namespaces and deletes them.

use std::fs::File;
use std::io;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use nix::sched::CloneFlags;
use nix::sched::setns;

use super::gwlb::Host;
use super::os;
use super::outside;
use super::wire::Wire;

/// Address of every client of network 0.
pub(crate) const CLIENT_V4: &str = "10.1.0.1";
/// Address of every client of network 0.
pub(crate) const CLIENT_V6: &str = "fd00:1::1";
/// Address of every server of network 0.
pub(crate) const SERVER_V4: &str = "10.1.0.2";
/// Address of every server of network 0.
pub(crate) const SERVER_V6: &str = "fd00:1::2";

const GWLB_MAC: &str = "02:00:00:00:00:01";
const TARGET_MAC: &str = "02:00:00:00:00:02";
const TARGET_MAC_BYTES: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Where a target sends what it has inspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arms {
    /// Back into the tunnel; the server is behind the same endpoint as the client.
    One,
    /// To a server outside, by a link of its own.
    Two,
}

/// What to build.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// How the namespaces' names begin.
    pub(crate) prefix: String,
    /// Addresses of the load balancer's nodes, within 10.99.0.0/16.
    pub(crate) nodes: Vec<Ipv4Addr>,
    /// Address of the target, within 10.99.0.0/16.
    pub(crate) target: Ipv4Addr,
    pub(crate) arms: Arms,
    /// How many endpoints have hosts.
    pub(crate) endpoints: usize,
    /// How many different networks they are in, 1 to 256.
    pub(crate) networks: usize,
    /// Largest packet between load balancer and target, in bytes.
    pub(crate) outer_mtu: u16,
    /// Whether the target's link merges what arrives, as network cards do.
    pub(crate) target_gro: bool,
}

/// A named network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Namespace(pub(crate) String);

impl Namespace {
    /// A command that will run inside; its process id is the program's own.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }

    /// Runs `work` on a thread that has entered the namespace. Sockets and devices that it opens
    /// stay in the namespace when it returns them.
    pub(crate) fn enter<T: Send>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        let inside = || {
            let handle = File::open(format!("/run/netns/{}", self.0))?;
            setns(&handle, CloneFlags::CLONE_NEWNET)?;
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs lines of `ip -batch` inside.
    pub(crate) fn ip(&self, lines: &[String]) -> io::Result<()> {
        ip_batch(&["-n", &self.0], lines)
    }

    /// The same for lines in which no address says that they are of IPv6.
    pub(crate) fn ip6(&self, lines: &[String]) -> io::Result<()> {
        ip_batch(&["-6", "-n", &self.0], lines)
    }
}

/// The namespaces of one lab. Dropping it removes them and ends every process inside.
#[derive(Debug)]
pub(crate) struct Topology {
    prefix: String,
    arms: Arms,
    endpoints: usize,
    networks: usize,
    reaper: Child,
}

impl Topology {
    /// Builds everything but the hosts' links, which [`Self::host_tun`] adds.
    pub(crate) fn build(plan: &Plan) -> io::Result<Self> {
        let mut roles = vec!["gwlb".to_owned(), "target".to_owned()];
        for endpoint in 0..plan.endpoints {
            roles.push(format!("client{endpoint}"));
            match plan.arms {
                Arms::One => roles.push(format!("server{endpoint}")),
                Arms::Two => {}
            }
        }
        if plan.arms == Arms::Two {
            roles.push("internet".to_owned());
        }
        let names: Vec<_> = roles.iter().map(|role| format!("{}-{role}", plan.prefix)).collect();
        for name in &names {
            if Path::new("/run/netns").join(name).exists() {
                let why = format!("namespace {name} exists: take another prefix, or end its owner");
                return Err(io::Error::other(why));
            }
        }
        let topology = Self {
            prefix: plan.prefix.clone(),
            arms: plan.arms,
            endpoints: plan.endpoints,
            networks: plan.networks,
            reaper: reaper(&names)?,
        };
        let add = |name: &String| format!("netns add {name}");
        ip_batch(&[], &names.iter().map(add).collect::<Vec<_>>())?;
        for name in names {
            Namespace(name).ip(&["link set lo up".into()])?;
        }
        topology.connect(plan)?;
        if plan.arms == Arms::Two {
            outside::connect(&topology, plan)?;
        }
        Ok(topology)
    }

    fn connect(&self, plan: &Plan) -> io::Result<()> {
        let (gwlb, target) = (self.gwlb(), self.target());
        let mtu = plan.outer_mtu;
        gwlb.ip(&[
            format!(
                "link add gw0 mtu {mtu} address {GWLB_MAC} type veth \
                 peer name eth0 mtu {mtu} address {TARGET_MAC} netns {}",
                target.0
            ),
            "link set gw0 up".into(),
        ])?;
        let node = |node: &Ipv4Addr| format!("addr add {node}/16 dev gw0");
        gwlb.ip(&plan.nodes.iter().map(node).collect::<Vec<_>>())?;
        // Neighbours are permanent: a kernel that still asks for one queues only some packets.
        let mut lines =
            vec!["link set eth0 up".into(), format!("addr add {}/16 dev eth0", plan.target)];
        for node in &plan.nodes {
            lines.push(format!("neigh add {node} lladdr {GWLB_MAC} dev eth0 nud permanent"));
        }
        target.ip(&lines)?;
        // Checksums are computed and super-packets split before they reach the simulator, as
        // they would be on a real wire.
        let offloads = ["tx", "off", "tx-udp-segmentation", "off", "tso", "off", "gro"];
        let mut ethtool = target.command("ethtool");
        ethtool.args(["-K", "eth0"]).args(offloads);
        ethtool.arg(if plan.target_gro { "on" } else { "off" });
        succeed(&mut ethtool)?;
        if plan.target_gro { self.merge_arrivals() } else { Ok(()) }
    }

    /// Lets the target's link collect packets for as long as merging takes. A veth merges only what
    /// a sender without segmentation of its own sends, and polls at every packet unless told to
    /// wait; its queue of 256 is enough for as many microseconds.
    fn merge_arrivals(&self) -> io::Result<()> {
        let mut ethtool = self.gwlb().command("ethtool");
        succeed(ethtool.args(["-K", "gw0", "tso", "off"]))?;
        let wait = "cd /sys/class/net/eth0; \
                    echo 2 > napi_defer_hard_irqs; echo 200000 > gro_flush_timeout";
        succeed(self.target().command("sh").args(["-ec", wait]))
    }

    /// The load balancer's namespace.
    pub(crate) fn gwlb(&self) -> Namespace {
        Namespace(format!("{}-gwlb", self.prefix))
    }

    /// The target's namespace.
    pub(crate) fn target(&self) -> Namespace {
        Namespace(format!("{}-target", self.prefix))
    }

    /// The namespace of the router and server outside, which two-arm has.
    pub(crate) fn internet(&self) -> Namespace {
        Namespace(format!("{}-internet", self.prefix))
    }

    /// How many endpoints have hosts.
    pub(crate) fn endpoints(&self) -> usize {
        self.endpoints
    }

    /// Which hosts an endpoint has.
    pub(crate) fn hosts(&self) -> &'static [Host] {
        match self.arms {
            Arms::One => &[Host::Client, Host::Server],
            Arms::Two => &[Host::Client],
        }
    }

    /// The addresses of a host of endpoint number `endpoint`.
    pub(crate) fn addresses(&self, endpoint: usize, host: Host) -> (Ipv4Addr, Ipv6Addr) {
        let network = u8::try_from(endpoint % self.networks).expect("at most 256 networks");
        let last = match host {
            Host::Client => 1,
            Host::Server => 2,
        };
        let v6 = Ipv6Addr::new(0xfd00, 1, 0, network.into(), 0, 0, 0, last.into());
        (Ipv4Addr::new(10, 1, network, last), v6)
    }

    /// The namespace of a host of endpoint number `endpoint`.
    pub(crate) fn host(&self, endpoint: usize, host: Host) -> Namespace {
        let role = match host {
            Host::Client => "client",
            Host::Server => "server",
        };
        Namespace(format!("{}-{role}{endpoint}", self.prefix))
    }

    /// The namespace of the first server, which is outside if there are two arms.
    pub(crate) fn first_server(&self) -> Namespace {
        match self.arms {
            Arms::One => self.host(0, Host::Server),
            Arms::Two => self.internet(),
        }
    }

    /// The load balancer's end of the link to the target.
    pub(crate) fn open_wire(&self) -> io::Result<Wire> {
        self.gwlb().enter(|| Wire::open("gw0", TARGET_MAC_BYTES))
    }

    /// Gives a host its link, addresses and routes. The host is online while the descriptor
    /// lives.
    pub(crate) fn host_tun(&self, endpoint: usize, host: Host, mtu: u16) -> io::Result<OwnedFd> {
        let namespace = self.host(endpoint, host);
        let tun = namespace.enter(|| os::tun("lb0"))?;
        let (v4, v6) = self.addresses(endpoint, host);
        let mut lines = vec![
            format!("link set lb0 mtu {mtu} txqueuelen 4096 addrgenmode none up"),
            format!("addr add {v4}/24 dev lb0"),
            format!("addr add {v6}/64 dev lb0 nodad"),
        ];
        if self.arms == Arms::Two {
            lines.extend(["route add default dev lb0", "route add ::/0 dev lb0"].map(Into::into));
        }
        namespace.ip(&lines)?;
        Ok(tun)
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        drop(self.reaper.stdin.take());
        let _ = self.reaper.wait();
    }
}

/// Starts the process that removes `names` once its standard input ends. It has a session of its
/// own, so that what kills our process group does not reach it. The shell's own kill: not every
/// machine has the program.
fn reaper(names: &[String]) -> io::Result<Child> {
    let script = r#"
        read -r _
        for name; do for pid in $(ip netns pids "$name"); do kill -9 "$pid"; done; done
        for name; do ip netns del "$name"; done
    "#;
    Command::new("setsid")
        .args(["sh", "-c", script, "reaper"])
        .args(names)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| io::Error::other(format!("setsid: {error}")))
}

fn ip_batch(options: &[&str], lines: &[String]) -> io::Result<()> {
    let mut command = Command::new("ip");
    command.args(options).args(["-batch", "-"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::other(format!("ip: {error}")))?;
    let mut input = child.stdin.take().expect("piped");
    input.write_all(lines.join("\n").as_bytes())?;
    drop(input);
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("ip {options:?}: {stderr}\n{}", lines.join("\n"))))
}

fn succeed(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{command:?}: {stderr}")))
}
