//! The netdev thread: whatever waits for the kernel's rtnl lock happens here and nowhere else.
//!
//! Another program may hold that lock for seconds, and closing one TUN costs about 23 ms under
//! it, so neither a worker nor control may touch it. The thread owns every TUN ioctl, and it
//! keeps an `Arc` of every queue until its link is deleted, so that a worker that lets go of a
//! queue never runs the kernel's teardown.
//!
//! All links share a group, because deleting a hundred links one by one takes 4.6 s and by group
//! 0.21 s.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use arrayvec::ArrayVec;
use crossbeam_channel::Receiver;
use crossbeam_channel::Sender;
use tokio::sync::oneshot;

use crate::stats::NicRow;
use crate::steering::links;
use crate::sys;
use crate::sys::Errno;
use crate::sys::ethtool;
use crate::sys::link;
use crate::sys::link::LinkGroup;
use crate::sys::link::LinkIndex;
use crate::sys::link::LinkSetup;
use crate::sys::link::Netlink;
use crate::sys::tun;
use crate::types::EndpointId;
use crate::types::INNER_BYTES_MAX;
use crate::types::LinkName;
use crate::types::Offload;
use crate::types::Side;
use crate::types::TUN_QUEUE_PACKETS;

/// Requests that wait. Control asks for one thing per endpoint at a time.
const REQUESTS: usize = 8192;

/// The links of one endpoint, as [`Handle::create`] made them.
#[derive(Debug)]
pub struct LinkPair {
    /// The queues of each worker, in the order of [`Side::BOTH`].
    pub queues: Vec<ArrayVec<Arc<OwnedFd>, 2>>,
    /// The links, in the order of [`Side::BOTH`].
    pub indexes: ArrayVec<LinkIndex, 2>,
    /// Why no program chooses the queues of this pair, if one was to.
    pub unsteered: Option<sys::Error>,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetdevError {
    /// The kernel refused.
    #[error(transparent)]
    Sys(#[from] sys::Error),
    /// The thread has ended, or is so far behind that its queue is full.
    #[error("the netdev thread does not take requests")]
    Gone,
}

type Reply<T> = oneshot::Sender<Result<T, sys::Error>>;

#[derive(Debug)]
enum Request {
    Create(EndpointId, usize, Reply<LinkPair>),
    Destroy(ArrayVec<LinkIndex, 2>, Reply<()>),
    DestroyAll(Reply<()>),
    Probe(Reply<()>),
    Allowances(Reply<Vec<NicRow>>),
}

/// The way to the thread. It ends when the last handle is gone, and takes its links with it.
#[derive(Clone, Debug)]
pub struct Handle {
    requests: Sender<Request>,
}

impl Handle {
    /// Creates the links of an endpoint with `workers` queues each, and brings them up. Nothing is
    /// done if the future is dropped while the request waits; links that it was too late for go
    /// with the others at the end.
    ///
    /// # Errors
    /// What the kernel refused; nothing of the pair is left then.
    pub async fn create(&self, id: EndpointId, workers: usize) -> Result<LinkPair, NetdevError> {
        self.ask(|reply| Request::Create(id, workers, reply)).await
    }

    /// Deletes the links of an endpoint and closes their queues.
    ///
    /// # Errors
    /// What the kernel refused. Links that were gone already are no error.
    pub async fn destroy(&self, pair: LinkPair) -> Result<(), NetdevError> {
        let LinkPair { queues, indexes, .. } = pair;
        // The thread has its own references, which must be the last ones.
        drop(queues);
        self.ask(|reply| Request::Destroy(indexes, reply)).await
    }

    /// Deletes every link that is left, in one request to the kernel.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn destroy_all(&self) -> Result<(), NetdevError> {
        self.ask(Request::DestroyAll).await
    }

    /// Tries whether any link can be made.
    ///
    /// # Errors
    /// See [`tun::probe`].
    pub async fn probe(&self) -> Result<(), NetdevError> {
        self.ask(Request::Probe).await
    }

    /// Reads what AWS says of the instance's allowances, of each network interface that tells.
    ///
    /// # Errors
    /// [`NetdevError::Gone`].
    pub async fn allowances(&self) -> Result<Vec<NicRow>, NetdevError> {
        self.ask(Request::Allowances).await
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, NetdevError> {
        let (reply, answer) = oneshot::channel();
        self.requests.try_send(request(reply)).map_err(|_| NetdevError::Gone)?;
        Ok(answer.await.map_err(|_| NetdevError::Gone)??)
    }
}

/// Starts the thread in the caller's network namespace. Its links hand over what `offload` allows.
/// With `steers_queues` a program chooses the queue of every packet, so that what a worker wrote to
/// `gwi` comes back to it. An endpoint gets the links of `sides`, which are [`Side::BOTH`] or their
/// beginning.
///
/// # Errors
/// When there is no netlink socket, no randomness for the group's number, or no thread.
pub fn spawn(
    offload: Offload,
    steers_queues: bool,
    sides: &'static [Side],
) -> Result<(Handle, thread::JoinHandle<()>), sys::Error> {
    let (requests, queue) = crossbeam_channel::bounded(REQUESTS);
    let mut netdev = Netdev::new(offload, steers_queues, sides)?;
    let thread = thread::Builder::new()
        .name("gwlbtun netdev".to_owned())
        .spawn(move || netdev.run(&queue))
        .map_err(|error| sys::Error::from_io("clone", "netdev thread", &error))?;
    Ok((Handle { requests }, thread))
}

/// A group number that no other process uses: two of us may share a network namespace.
fn random_group() -> Result<LinkGroup, sys::Error> {
    let number =
        getrandom::u32().map_err(|_| sys::Error::new("getrandom", "link group", Errno::EAGAIN))?;
    // Clear of the small numbers that people give to groups, and positive where it is printed.
    Ok(LinkGroup(number >> 2 | 0x4000_0000))
}

/// The thread's own state.
#[derive(Debug)]
struct Netdev {
    netlink: Netlink,
    group: LinkGroup,
    /// What the links may hand over.
    offload: Offload,
    steers_queues: bool,
    /// The links that an endpoint has.
    sides: &'static [Side],
    /// The queues of all sides, by the index of `gwi`.
    held: HashMap<LinkIndex, Vec<ArrayVec<Arc<OwnedFd>, 2>>>,
}

impl Netdev {
    fn new(
        offload: Offload,
        steers_queues: bool,
        sides: &'static [Side],
    ) -> Result<Self, sys::Error> {
        let (netlink, group) = (Netlink::open()?, random_group()?);
        Ok(Self { netlink, group, offload, steers_queues, sides, held: HashMap::new() })
    }

    fn run(&mut self, requests: &Receiver<Request>) {
        for request in requests {
            self.serve(request);
        }
        // Nobody is left to hear of a failure, and the links go with their queues anyway.
        let _ = self.destroy_all();
    }

    fn serve(&mut self, request: Request) {
        // Whoever asked may have stopped waiting; the work is done either way.
        match request {
            // Except for links, which cost too much at the end of the program to be in vain.
            Request::Create(_, _, reply) if reply.is_closed() => {}
            Request::Create(id, workers, reply) => {
                let _ = reply.send(self.create(id, workers));
            }
            Request::Destroy(indexes, reply) => {
                let _ = reply.send(self.destroy(&indexes));
            }
            Request::DestroyAll(reply) => {
                let _ = reply.send(self.destroy_all());
            }
            Request::Probe(reply) => {
                let _ = reply.send(tun::probe());
            }
            Request::Allowances(reply) => {
                let _ = reply.send(Ok(allowances()));
            }
        }
    }

    /// An error drops what exists of the pair, and the kernel deletes a link with its last queue.
    fn create(&mut self, id: EndpointId, workers: usize) -> Result<LinkPair, sys::Error> {
        let mut create_side = |side| {
            let name = LinkName::of(id, side);
            let queues = tun::create(name, workers, self.offload)?;
            let index = link::index_of(name)?;
            let setup = LinkSetup {
                mtu_bytes: u32::try_from(INNER_BYTES_MAX).expect("8500 fits"),
                queue_packets: TUN_QUEUE_PACKETS,
                group: self.group,
            };
            self.netlink.bring_up(index, setup)?;
            Ok((queues, index))
        };
        let mut links: ArrayVec<Vec<OwnedFd>, 2> = ArrayVec::new();
        let mut indexes = ArrayVec::new();
        for &side in self.sides {
            let (queues, index) = create_side(side)?;
            links.push(queues);
            indexes.push(index);
        }
        let gwi = indexes[Side::Gwi.index()];
        // Without it packets find their way too, and take longer.
        let unsteered =
            (self.steers_queues && workers > 1).then(|| steer(gwi, &links)).and_then(Result::err);
        let mut queues = vec![ArrayVec::new(); workers];
        for (of_worker, queue) in links.into_iter().flat_map(|link| (0..).zip(link)) {
            queues[of_worker].push(Arc::new(queue));
        }
        self.held.insert(gwi, queues.clone());
        Ok(LinkPair { queues, indexes, unsteered })
    }

    /// What is not deleted by its number goes with its queues. That takes longer, but a number may
    /// be a stranger's by now: of a link that somebody deleted, or moved to another namespace.
    fn destroy(&mut self, indexes: &[LinkIndex]) -> Result<(), sys::Error> {
        let queues = self.held.remove(&indexes[Side::Gwi.index()]);
        let first = queues.iter().flatten().next();
        let outcomes = indexes.iter().enumerate().map(|(side, &index)| {
            if first.and_then(|sides| tun::index_of(&sides[side])) == Some(index.0) {
                return gone_is_fine(self.netlink.delete(index));
            }
            Ok(())
        });
        // Both are tried before the first failure is told.
        let outcomes: ArrayVec<_, 2> = outcomes.collect();
        outcomes.into_iter().collect()
    }

    fn destroy_all(&mut self) -> Result<(), sys::Error> {
        let outcome = if self.held.is_empty() {
            Ok(())
        } else {
            gone_is_fine(self.netlink.delete_group(self.group))
        };
        self.held.clear();
        outcome
    }
}

/// How the ENA driver names what it counts there (AWS guide, "Monitor network performance for ENA
/// settings on your EC2 instance").
const EXCEEDED: &str = "_allowance_exceeded";

/// The allowances that were exceeded. A driver that does not count them is passed over.
pub fn allowances() -> Vec<NicRow> {
    let exceeded_of = |name: &str| {
        let found = ethtool::statistics(name, |name| name.ends_with(EXCEEDED)).unwrap_or_default();
        let short = |name: String| name.trim_end_matches(EXCEEDED).to_owned();
        found.into_iter().map(|(name, count)| (short(name), count)).collect::<Vec<_>>()
    };
    let nics = ethtool::devices().into_iter();
    let nics = nics.map(|name| NicRow { exceeded: exceeded_of(&name), name });
    nics.filter(|nic| !nic.exceeded.is_empty()).collect()
}

/// Gives the links of an endpoint the program that chooses their queues.
fn steer(gwi: LinkIndex, links: &[Vec<OwnedFd>]) -> Result<(), sys::Error> {
    let program = links::load(gwi, links[0].len())?;
    let mut of_each_link = links.iter().filter_map(|link| link.first());
    of_each_link.try_for_each(|queue| tun::set_steering(queue, &program))
}

/// A link that somebody else deleted is deleted.
fn gone_is_fine(outcome: Result<(), sys::Error>) -> Result<(), sys::Error> {
    match outcome {
        Err(error) if error.errno == Errno::ENODEV => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::TryRecvError;
    use nix::sched::CloneFlags;
    use nix::sched::unshare;
    use std::future::Future;

    /// Runs a future to its end, in a network namespace that ends with the test's thread.
    fn in_private_namespace<T: Send + 'static, F: Future<Output = T>>(
        body: impl FnOnce() -> F + Send + 'static,
    ) -> T {
        let run = move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(body())
        };
        thread::spawn(run).join().unwrap()
    }

    /// What `ip -d link` says about all links but loopback.
    fn link_lines() -> String {
        let output = std::process::Command::new("ip").args(["-d", "-o", "link"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|line| !line.contains(" lo:")).collect::<Vec<_>>().join("\n")
    }

    /// Others keep the kernel busy with links meanwhile: what it says by itself on a new link, some
    /// milliseconds after that is up, must find room in the queue already.
    #[test]
    fn a_link_that_is_up_has_room() {
        in_private_namespace(|| async {
            let mut netdev = Netdev::new(Offload::ALL.floor(), false, &Side::BOTH).unwrap();
            let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
            let others = move || {
                unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
                while stopped.try_recv() == Err(TryRecvError::Empty) {
                    let name = LinkName::of(EndpointId(1), Side::Gwi);
                    drop(tun::create(name, 2, Offload::ALL.floor()).unwrap());
                }
            };
            let others = [others.clone(), others].map(thread::spawn);
            for id in 1..=20 {
                netdev.create(EndpointId(id), 2).unwrap();
            }
            drop(stop);
            let dropped = link::dropped().unwrap();
            assert!(dropped.len() > 40 && dropped.values().all(|&count| count == 0), "{dropped:?}");
            for thread in others {
                thread.join().unwrap();
            }
        });
    }

    #[test]
    fn links_come_up_as_asked_and_go() {
        in_private_namespace(|| async {
            let (netdev, thread) = spawn(Offload::ALL.floor(), true, &Side::BOTH).unwrap();
            let mut pairs = Vec::new();
            for id in 1..=3 {
                pairs.push(netdev.create(EndpointId(id), 2).await.unwrap());
            }
            assert_eq!(pairs[0].queues.len(), 2);
            assert!(pairs.iter().all(|pair| pair.unsteered.is_none()), "{pairs:?}");
            let text = link_lines();
            assert_eq!(text.lines().count(), 6, "{text}");
            for line in text.lines() {
                let words = ["mtu 8500", "qlen 4096", "qdisc noqueue", ",UP,", "numqueues 2"];
                for word in words {
                    assert!(line.contains(word), "{word}: {line}");
                }
            }
            for name in ["gwi-1:", "gwo-1:", "gwi-3:", "gwo-3:"] {
                assert!(text.contains(name), "{name}: {text}");
            }

            let again = netdev.create(EndpointId(1), 2).await.unwrap_err();
            assert_eq!(again.to_string(), "ioctl TUNSETIFF(gwi-1): Device or resource busy");

            netdev.destroy(pairs.remove(0)).await.unwrap();
            let text = link_lines();
            assert!(text.lines().count() == 4 && !text.contains("gwi-1:"), "{text}");
            pairs.push(netdev.create(EndpointId(1), 1).await.unwrap());
            assert_eq!(link_lines().lines().count(), 6);

            netdev.destroy_all().await.unwrap();
            assert_eq!(link_lines(), "");
            netdev.destroy(pairs.remove(0)).await.unwrap();
            drop(netdev);
            thread.join().unwrap();
        });
    }

    #[test]
    fn r26_a_stranger_with_the_number_of_a_deleted_link_stays() {
        in_private_namespace(|| async {
            let (netdev, thread) = spawn(Offload::ALL.floor(), true, &Side::BOTH).unwrap();
            let pair = netdev.create(EndpointId(1), 2).await.unwrap();
            let ip = |line: &str| {
                let status =
                    std::process::Command::new("ip").args(line.split(' ')).status().unwrap();
                assert!(status.success(), "ip {line}");
            };
            let index = pair.indexes[0].0;
            ip("link del gwi-1");
            ip(&format!("link add stranger index {index} type veth peer name peer"));
            ip("link set gwo-1 down");
            ip("link set gwo-1 name renamed");
            netdev.destroy(pair).await.unwrap();
            let text = link_lines();
            assert!(text.contains("stranger") && !text.contains("renamed"), "{text}");
            drop(netdev);
            thread.join().unwrap();
        });
    }

    #[test]
    fn links_go_with_the_last_handle() {
        in_private_namespace(|| async {
            let (netdev, thread) = spawn(Offload::ALL.floor(), true, &Side::BOTH).unwrap();
            let pair = netdev.create(EndpointId(9), 3).await.unwrap();
            assert_eq!(link_lines().lines().count(), 2);
            drop(netdev);
            thread.join().unwrap();
            assert_eq!(link_lines(), "");
            drop(pair);
        });
    }

    #[test]
    fn the_kernel_s_reason_comes_back() {
        in_private_namespace(|| async {
            let (netdev, thread) = spawn(Offload::ALL.floor(), true, &Side::BOTH).unwrap();
            let error = netdev.create(EndpointId(1), 257).await.unwrap_err();
            let NetdevError::Sys(error) = error else {
                panic!("{error}");
            };
            assert_eq!((error.call, error.errno), ("ioctl TUNSETIFF", Errno::E2BIG));
            // A process that another test is just starting has copies of the queues until its exec.
            let gone = (0..1000).any(|_| link_lines().is_empty());
            assert!(gone, "left of a pair that failed: {}", link_lines());
            drop(netdev);
            thread.join().unwrap();
        });
    }

    #[test]
    fn links_that_nobody_waits_for_are_not_made() {
        in_private_namespace(|| async {
            let mut netdev = Netdev::new(Offload::ALL.floor(), true, &Side::BOTH).unwrap();
            for id in 1..=3 {
                let (reply, waits) = oneshot::channel();
                let waits = (id == 2).then_some(waits);
                netdev.serve(Request::Create(EndpointId(id), 1, reply));
                assert_eq!(waits.is_some_and(|mut reply| reply.try_recv().is_ok()), id == 2);
            }
            let made = link_lines();
            assert!(made.contains("gwi-2:") && made.lines().count() == 2, "{made}");
        });
    }
}
