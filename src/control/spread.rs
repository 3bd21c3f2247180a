//! How datagrams are spread over the workers, and what is done where that leaves some without
//! work.
//!
//! The kernel gives every outer path (addresses and source port) to one worker. That is the
//! cheapest way: datagrams of one path can be merged before they get here. A load balancer that
//! uses fewer paths than there are workers leaves some idle; where that is so for
//! `LOOKS_MIN` looks in a row under real load, and `--steer auto` is in force, control attaches
//! the program that spreads flows instead. It never goes back: every change may reorder what is
//! on its way, and with the program nothing shows whether paths have become many.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::WorkerLink;
use crate::settings::Steer;
use crate::stats::SteeringRow;
use crate::steering::receivers;
use crate::sys;
use crate::sys::udp;
use crate::types::Moment;
use crate::worker::mailbox::Command;

/// Datagrams a second, of all workers, that are worth a change: below, one worker does it all with
/// most of its time to spare.
const LOAD_MIN: u64 = 50_000;

/// A worker starves that gets less than this part of its fair share.
const SHARE_DIVISOR: u64 = 10;

/// Looks, one a second, for which that must be so.
const LOOKS_MIN: u32 = 5;

/// What decides about packets of the host: see [`crate::steering::links`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Queues {
    /// The program.
    Program,
    /// The kernel, because it was asked for.
    Kernel,
    /// The kernel, because the program could not be had.
    Refused(sys::Error),
}

impl fmt::Display for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program => f.write_str("program"),
            Self::Kernel => f.write_str("kernel"),
            Self::Refused(error) => write!(f, "kernel ({error})"),
        }
    }
}

/// What the start found out.
#[derive(Debug)]
pub struct Spreading {
    /// The receive sockets of all workers, in the order in which they were bound.
    pub receivers: Vec<Arc<OwnedFd>>,
    /// What was asked for.
    pub asked: Steer,
    /// Whether datagrams are spread by the flow inside already.
    pub by_flow: bool,
    /// What decides about packets of the host.
    pub queues: Queues,
}

impl Spreading {
    /// With one worker there is nothing to decide.
    pub const fn of_one_worker() -> Self {
        let (asked, by_flow, queues) = (Steer::Outer, false, Queues::Kernel);
        Self { receivers: Vec::new(), asked, by_flow, queues }
    }
}

/// What a look has brought to light, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Workers starve, so few outer paths there are, and it stays as it is.
    Starving(u64),
    /// Workers starved, and from now on flows are spread.
    Changed(u64),
    /// They were to be, but the kernel refused.
    Refused(sys::Error),
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starving(paths) => write!(
                f,
                "Workers get next to nothing, because datagrams come by {} only: --steer inner \
                 would spread them.",
                Paths(*paths),
            ),
            Self::Changed(paths) => write!(
                f,
                "Workers got next to nothing, because datagrams come by {} only: from now on \
                 the flow inside decides, as with --steer inner. Packets that were on their way \
                 may have been reordered, this once.",
                Paths(*paths),
            ),
            Self::Refused(error) => write!(
                f,
                "Workers get next to nothing, and no program can spread the datagrams: {error}."
            ),
        }
    }
}

/// A number of outer paths.
struct Paths(u64);

impl fmt::Display for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("one outer path"),
            paths => write!(f, "{paths} outer paths"),
        }
    }
}

/// The state of the spreading.
#[derive(Debug)]
pub(super) struct Spread {
    start: Spreading,
    watch: Watch,
    /// There has been news: once is enough.
    told: bool,
}

impl Spread {
    pub(super) fn new(start: Spreading) -> Self {
        Self { start, watch: Watch::default(), told: false }
    }

    /// Looks at what the workers got since the last look, and acts on it. Due every second.
    pub(super) fn look(&mut self, workers: &[WorkerLink], now: Moment) -> Option<News> {
        let counts = workers.iter().map(|worker| worker.cell.datagrams.packets.get()).collect();
        self.watch.look(counts, now);
        let paths = self.outer_paths(workers);
        let is_due = !self.told && !self.watch.starving().is_empty() && !self.start.by_flow;
        if !is_due || paths >= workers.len() as u64 {
            return None;
        }
        self.told = true;
        if self.start.asked != Steer::Auto {
            return Some(News::Starving(paths));
        }
        Some(match receivers::steer_by_flow(&self.start.receivers) {
            Ok(()) => {
                self.start.by_flow = true;
                for worker in workers {
                    // A worker whose mailbox is full turns no more, and health says so.
                    let _ = worker.mailbox.post(Command::StopMerging);
                }
                News::Changed(paths)
            }
            Err(error) => News::Refused(error),
        })
    }

    /// Whether datagrams are spread by the flow inside, and so not merged by the kernel.
    pub(super) const fn is_by_flow(&self) -> bool {
        self.start.by_flow
    }

    /// What an operator should look at.
    pub(super) fn warning(&self, workers: &[WorkerLink]) -> Option<String> {
        let starving = self.watch.starving();
        let paths = self.outer_paths(workers);
        let is_cause = !self.start.by_flow && paths < workers.len() as u64;
        let remedy = match self.start.asked {
            Steer::Outer => "; --steer inner would spread them",
            Steer::Auto | Steer::Inner => "",
        };
        (is_cause && !starving.is_empty()).then(|| {
            format!(
                "{} of {} workers get next to nothing: datagrams come by {}{remedy}",
                starving.len(),
                workers.len(),
                Paths(paths),
            )
        })
    }

    /// Outer paths by which datagrams come. Where paths are spread, no two workers have the same;
    /// where flows are, there are no fewer than any worker has.
    fn outer_paths(&self, workers: &[WorkerLink]) -> u64 {
        let paths = workers.iter().map(|worker| worker.cell.outer_paths.get());
        if self.start.by_flow { paths.max().unwrap_or(0) } else { paths.sum() }
    }

    /// Datagrams that the kernel has dropped at the receive sockets.
    pub(super) fn dropped(&self) -> u64 {
        let dropped = |receiver| udp::dropped(receiver).map_or(0, u64::from);
        self.start.receivers.iter().map(dropped).sum()
    }

    /// What the page says; nothing where there is nothing to spread.
    pub(super) fn row(&self, workers: &[WorkerLink]) -> Option<SteeringRow> {
        (workers.len() > 1).then(|| SteeringRow {
            receive: if self.start.by_flow { "inner" } else { "outer" },
            outer_paths: self.outer_paths(workers),
            starving: self.watch.starving().to_vec(),
            queues: self.start.queues.to_string(),
        })
    }
}

/// Who gets how much.
#[derive(Debug, Default)]
struct Watch {
    /// Datagrams of each worker at the last look, and when that was.
    counts: Vec<u64>,
    looked: Moment,
    /// Who got next to nothing in the last look, and in how many in a row somebody did.
    starving: Vec<usize>,
    looks: u32,
}

impl Watch {
    fn look(&mut self, counts: Vec<u64>, now: Moment) {
        let millis = now.since(self.looked).as_millis();
        let before = std::mem::replace(&mut self.counts, counts);
        self.looked = now;
        self.starving.clear();
        // The first look has nothing to compare with.
        let got = self.counts.iter().zip(&before).map(|(now, before)| now.saturating_sub(*before));
        let got: Vec<_> = got.collect();
        let total: u64 = got.iter().sum();
        let workers = got.len() as u64;
        if u128::from(total) * 1000 >= u128::from(LOAD_MIN) * millis && total > 0 {
            let is_starving = |got: u64| got * workers * SHARE_DIVISOR < total;
            let starving = got.iter().enumerate().filter(|(_, got)| is_starving(**got));
            self.starving.extend(starving.map(|(worker, _)| worker));
        }
        self.looks = if self.starving.is_empty() { 0 } else { self.looks + 1 };
    }

    /// Workers that have had next to nothing for long, by number.
    fn starving(&self) -> &[usize] {
        if self.looks >= LOOKS_MIN { &self.starving } else { &[] }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::net::UdpSocket;
    use std::time::Duration;

    use crossbeam_channel::Receiver;

    use super::*;
    use crate::stats::WorkerCell;
    use crate::sys::EventFd;
    use crate::sys::udp;
    use crate::types::WorkerId;
    use crate::worker::mailbox::Mailbox;

    const START: Moment = Moment::from_secs(1000);
    const SECOND: Duration = Duration::from_secs(1);

    /// Control's view of workers that have these outer paths, and what it tells them.
    fn workers_and_commands(paths: &[u64]) -> (Vec<WorkerLink>, Vec<Receiver<Command>>) {
        let links = (0..).zip(paths).map(|(id, &paths)| {
            let wake = Arc::new(EventFd::new().unwrap());
            let cell = Arc::new(WorkerCell::default());
            cell.outer_paths.set(paths);
            let (mailbox, commands) = Mailbox::new(1, wake);
            (WorkerLink { id: WorkerId(id), thread_id: 0, mailbox, cell }, commands)
        });
        links.unzip()
    }

    fn workers(paths: &[u64]) -> Vec<WorkerLink> {
        workers_and_commands(paths).0
    }

    fn spread(asked: Steer, receivers: Vec<Arc<OwnedFd>>) -> Spread {
        let by_flow = asked == Steer::Inner;
        Spread::new(Spreading { receivers, asked, by_flow, queues: Queues::Program })
    }

    /// Looks once a second while workers get so many datagrams in each; all news.
    fn looks(
        spread: &mut Spread,
        workers: &[WorkerLink],
        first: u64,
        count: u64,
        got: &[u64],
    ) -> Vec<News> {
        let look = |second: u64| {
            for (worker, got) in workers.iter().zip(got) {
                worker.cell.datagrams.count_many(*got, 0);
            }
            spread.look(workers, START.after(SECOND * u32::try_from(second).unwrap()))
        };
        (first..first + count).filter_map(look).collect()
    }

    #[test]
    fn workers_that_starve_are_seen_under_load_and_after_a_while() {
        let workers = workers(&[1, 0, 1, 0]);
        for (got, is_starving) in [
            ([30_000, 0, 30_000, 0], true),
            ([30_000, 1000, 30_000, 1500], true),
            ([30_000, 2000, 30_000, 2000], false),
            ([20_000, 0, 20_000, 0], false),
            ([0, 0, 0, 0], false),
        ] {
            let mut spread = spread(Steer::Outer, Vec::new());
            // The first look only takes the measure.
            assert_eq!(looks(&mut spread, &workers, 0, 5, &got), []);
            assert_eq!(spread.warning(&workers), None);
            let news = looks(&mut spread, &workers, 5, 5, &got);
            let (expected, starving) = if is_starving {
                (&[News::Starving(2)][..], &[1, 3][..])
            } else {
                (&[][..], &[][..])
            };
            assert_eq!(news, expected, "{got:?}");
            let row = spread.row(&workers).unwrap();
            assert_eq!((&row.starving[..], row.receive, row.outer_paths), (starving, "outer", 2));
            assert_eq!(spread.warning(&workers).is_some(), is_starving);
            assert_eq!(looks(&mut spread, &workers, 10, 1, &[20_000; 4]), []);
            assert_eq!(spread.warning(&workers), None, "they have work again");
        }
    }

    #[test]
    fn enough_outer_paths_are_no_reason() {
        let workers = workers(&[3, 0]);
        let mut spread = spread(Steer::Auto, Vec::new());
        assert_eq!(looks(&mut spread, &workers, 0, 20, &[90_000, 0]), []);
        assert_eq!(spread.warning(&workers), None);
        assert_eq!(spread.row(&workers).unwrap().starving, [1], "but it is shown");
        assert_eq!(spread.row(&workers[..1]), None);
    }

    /// How many of the sockets get something of 100 flows that come by one outer path.
    fn sockets_with_flows(receivers: &[Arc<OwnedFd>]) -> usize {
        let node = UdpSocket::bind((Ipv4Addr::LOCALHOST, 60_000)).unwrap();
        for port in 0..100 {
            let mut datagram = [0; 8 + 28];
            datagram[8] = 0x45;
            datagram[8 + 9] = 17;
            datagram[8 + 21] = port;
            node.send_to(&datagram, (Ipv4Addr::LOCALHOST, 6081)).unwrap();
        }
        let drained = |receiver: &Arc<OwnedFd>| {
            let read = |_: &i32| nix::unistd::read(receiver, &mut [0; 100]).is_ok();
            (0..1000).take_while(read).count()
        };
        let counts: Vec<_> = receivers.iter().map(drained).collect();
        assert_eq!(counts.iter().sum::<usize>(), 100);
        counts.iter().filter(|count| **count > 0).count()
    }

    #[test]
    fn auto_spreads_flows_when_workers_starve_and_says_so_once() {
        let test = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                .expect("this test needs root");
            let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
            assert!(up.unwrap().success());
            let open = |_| Arc::new(udp::open_receiver(0, true).unwrap());
            let receivers: Vec<_> = (0..4).map(open).collect();
            let (workers, commands) = workers_and_commands(&[0, 1, 0, 0]);
            let got = [0, 60_000, 0, 0];
            let mut auto = spread(Steer::Auto, receivers.clone());
            assert_eq!(sockets_with_flows(&receivers), 1);
            assert_eq!(looks(&mut auto, &workers, 0, 20, &got), [News::Changed(1)]);
            assert_eq!(sockets_with_flows(&receivers), 4);
            for commands in &commands {
                let [command] = &commands.try_iter().collect::<Vec<_>>()[..] else {
                    panic!("one command");
                };
                assert!(matches!(command, Command::StopMerging), "{command:?}");
            }
            assert_eq!(auto.row(&workers).unwrap().receive, "inner");
            let same = &workers[2].cell.outer_paths;
            same.set(1);
            assert_eq!(auto.row(&workers).unwrap().outer_paths, 1);
            assert_eq!(auto.warning(&workers), None, "it is not the outer paths any more");
        };
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn a_refusal_is_told_once_and_changes_nothing() {
        let workers = workers(&[1, 0]);
        let (socket, _) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let mut auto = spread(Steer::Auto, vec![Arc::new(socket.into())]);
        let news = looks(&mut auto, &workers, 0, 20, &[60_000, 0]);
        let [News::Refused(error)] = &news[..] else { panic!("{news:?}") };
        assert!(news[0].to_string().contains(&error.to_string()));
        assert_eq!(auto.row(&workers).unwrap().receive, "outer");
        assert!(auto.warning(&workers).unwrap().contains("1 of 2 workers"));
    }
}
