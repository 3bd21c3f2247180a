//! Models of what threads of the program share, run under every order of their steps that the
//! memory model allows, by loom: `.ci/run loom`.
//!
//! Where a model stands for the receiving end of a mailbox it does what `worker` and `control` do
//! on a wake-up; everything else that it calls is the program's own. Each model names a mistake
//! in the program that makes it fail; all of them were made once, to see it do so.

#![cfg(gwlbtun_loom)]
#![expect(clippy::unwrap_used, reason = "a model may fail")]

use std::sync::Arc;
use std::time::Duration;

use gwlbtun::flow::FlowKey;
use gwlbtun::flow::FlowTable;
use gwlbtun::flow::HashSeed;
use gwlbtun::flow::Learned;
use gwlbtun::flow::StoredHeader;
use gwlbtun::flow::TablePlan;
use gwlbtun::flow::Tally;
use gwlbtun::flow::Templates;
use gwlbtun::flow::Ttl;
use gwlbtun::flow::Way;
use gwlbtun::stats::Counter;
use gwlbtun::stats::EndpointCell;
use gwlbtun::stats::EndpointSnapshot;
use gwlbtun::stats::WorkerCell;
use gwlbtun::stats::WorkerSnapshot;
use gwlbtun::sync::Receiver;
use gwlbtun::sys::EventFd;
use gwlbtun::types::DropReason;
use gwlbtun::types::EndpointId;
use gwlbtun::types::EndpointRef;
use gwlbtun::types::EndpointSlot;
use gwlbtun::types::Generation;
use gwlbtun::types::Moment;
use gwlbtun::types::WorkerId;
use gwlbtun::wire::Addresses;
use gwlbtun::wire::FiveTuple;
use gwlbtun::worker::mailbox::Admission;
use gwlbtun::worker::mailbox::AdmissionPlan;
use gwlbtun::worker::mailbox::Command;
use gwlbtun::worker::mailbox::Event;
use gwlbtun::worker::mailbox::Mailbox;
use loom::thread;
use loom::thread::JoinHandle;

const TTL: Ttl = Ttl { tcp_secs: 350, other_secs: 120 };
const EARLY: Moment = Moment::from_secs(1);
const LATE: Moment = Moment::from_secs(1000);
const ENDPOINT: EndpointRef = EndpointRef { slot: EndpointSlot(0), generation: Generation(1) };

/// Runs a model. Threads change places up to three times where none of them has to wait: that
/// bounds the run, and is more than any mistake below needs.
///
/// Of an atomic, loom remembers the last access only. A store by a thread that has just loaded is
/// therefore not tried before another thread's earlier load; old values, on the other hand, are
/// all tried. So it is the first thread that writes, and those that it spawns that read.
fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(run);
}

fn all<T>(threads: impl IntoIterator<Item = JoinHandle<T>>) -> Vec<T> {
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

// Flow table.

fn key(port: u16) -> (FlowKey, Way) {
    let addresses = Addresses::V4 { src: [10, 1, 0, 1], dst: [10, 2, 0, 1] };
    FlowKey::new(ENDPOINT, &FiveTuple { addresses, protocol: 17, src_port: port, dst_port: 53 })
}

fn learn(table: &FlowTable, port: u16, now: Moment) -> Learned {
    let (key, way) = key(port);
    table.learn(&key, way, &StoredHeader::NONE, now, &mut Tally::default())
}

fn is_known(table: &FlowTable, port: u16) -> bool {
    let (key, way) = key(port);
    table.find(&key, way, EARLY, &mut Tally::default()).is_some()
}

fn new_table(flows_max: usize) -> FlowTable {
    FlowTable::new(
        TablePlan { shards: 2, endpoints_max: 1, ..TablePlan::new(flows_max, 1) },
        HashSeed::fixed(1),
    )
}

/// Flows that have expired in a shard.
fn expire(table: &FlowTable, shard: usize) -> usize {
    let mut gone = 0;
    table.expire(shard, 16, &TTL, LATE, &mut Tally::default(), |_| gone += 1);
    gone
}

/// A table for so many flows in two shards, and a flow of each shard.
fn table(flows_max: usize) -> (Arc<FlowTable>, [u16; 2]) {
    let flow_of = |shard| {
        let is_of_shard = |port: &u16| {
            let table = new_table(1);
            learn(&table, *port, EARLY);
            expire(&table, shard) == 1
        };
        (1..100).find(is_of_shard).unwrap()
    };
    (Arc::new(new_table(flows_max)), [0, 1].map(flow_of))
}

/// Two workers, one free place, two shards. Fails if the place is looked for and taken in two
/// steps (a load and a store in `count_one_more`).
#[test]
fn a_table_never_holds_more_flows_than_it_may() {
    model(|| {
        let (table, ports) = table(1);
        let workers = ports.map(|port| {
            let table = Arc::clone(&table);
            thread::spawn(move || learn(&table, port, EARLY))
        });
        let learned = all(workers);
        let entered = |learned: &&Learned| **learned == Learned::New { evicted: None };
        assert_eq!(learned.iter().filter(entered).count(), 1, "{learned:?}");
        assert_eq!(table.len(), 1);
        assert_eq!(ports.iter().filter(|&&port| is_known(&table, port)).count(), 1);
    });
}

/// One worker enters a flow, another finds it expired. Fails if a flow is counted after it is
/// entered (`count_one_more` behind `insert`): the count then goes below nothing.
#[test]
fn a_flow_is_counted_before_it_can_expire() {
    model(|| {
        let (table, [port, _]) = table(1);
        let other = thread::spawn({
            let table = Arc::clone(&table);
            move || {
                let gone = expire(&table, 0);
                assert!(table.len() <= 1, "{}", table.len());
                gone
            }
        });
        assert_eq!(learn(&table, port, EARLY), Learned::New { evicted: None });
        let gone = other.join().unwrap();
        assert_eq!(table.len() + gone, 1);
        assert_eq!(is_known(&table, port), gone == 0);
    });
}

/// One worker enters a flow of one shard while another expires one of the other shard. Fails if
/// what has expired is subtracted in two steps.
#[test]
fn flows_that_come_and_go_add_up() {
    model(|| {
        let (table, [old, new]) = table(2);
        learn(&table, old, EARLY);
        let other = thread::spawn({
            let table = Arc::clone(&table);
            move || expire(&table, 0)
        });
        assert_eq!(learn(&table, new, LATE), Learned::New { evicted: None });
        assert_eq!(other.join().unwrap(), 1);
        assert_eq!((table.len(), is_known(&table, new)), (1, true));
    });
}

/// Two workers get the first packets of one flow. Fails if the shard is let go between the look
/// for the flow and its entry: there would be two.
#[test]
fn a_flow_is_entered_once() {
    model(|| {
        let (table, [port, _]) = table(1);
        let workers = [0; 2].map(|_| {
            let table = Arc::clone(&table);
            thread::spawn(move || learn(&table, port, EARLY))
        });
        let mut learned = all(workers);
        learned.sort_by_key(|learned| *learned == Learned::Known);
        assert_eq!(learned, [Learned::New { evicted: None }, Learned::Known]);
        assert_eq!(table.len(), 1);
    });
}

// Templates.

/// Two workers enter the same two headers, each another one first. Fails if a worker takes the
/// number of a place that it found empty for that of its own header.
#[test]
fn templates_get_one_number_from_all_workers() {
    const HEADERS: [[u8; 40]; 2] = [[1; 40], [2; 40]];
    model(|| {
        let templates = Arc::new(Templates::default());
        let workers = [[0, 1], [1, 0]].map(|order| {
            let templates = Arc::clone(&templates);
            thread::spawn(move || {
                let mut ids = order.map(|tag| (tag, templates.intern(&HEADERS[tag], 36).unwrap()));
                ids.sort_by_key(|(tag, _)| *tag);
                // What a worker has interned it can write, whoever entered it.
                for (tag, id) in ids {
                    let mut room = [0; 40];
                    assert_eq!(templates.write_before(id, [0; 4], &mut room), Some(40));
                    assert_eq!(room[..36], HEADERS[tag][..36]);
                }
                ids
            })
        });
        let ids = all(workers);
        assert_eq!(ids[0], ids[1]);
    });
}

// Mailboxes.

/// The receiving end, as `Worker::on_completion` and `Control::hear` have it: woken, drained
/// first, read second, until `last` says that this was all.
fn hear<T>(wake: &EventFd, inbox: &Receiver<T>, mut last: impl FnMut(T) -> bool) {
    loop {
        wake.wait();
        wake.drain();
        while let Ok(message) = inbox.try_recv() {
            if last(message) {
                return;
            }
        }
    }
}

/// A message of each of two senders. Fails, because the receiver sleeps for ever, if `post` wakes
/// before it sends, or if [`hear`] drains after it has read.
#[test]
fn no_message_is_slept_over() {
    model(|| {
        let wake = Arc::new(EventFd::new().unwrap());
        let (mailbox, inbox) = Mailbox::new(2, Arc::clone(&wake));
        let senders = [1, 2].map(|message: u32| {
            let mailbox = mailbox.clone();
            thread::spawn(move || mailbox.post(message).unwrap())
        });
        let mut heard = Vec::new();
        hear(&wake, &inbox, |message| {
            heard.push(message);
            heard.len() == 2
        });
        heard.sort_unstable();
        assert_eq!(heard, [1, 2]);
        all(senders);
    });
}

/// Two senders, room for one message; who finds the box full keeps its message for its next
/// turn, as a worker's outbox does. Fails if a full box takes a message without keeping it.
#[test]
fn a_full_mailbox_loses_nothing() {
    model(|| {
        let wake = Arc::new(EventFd::new().unwrap());
        let (mailbox, inbox) = Mailbox::new(1, Arc::clone(&wake));
        let senders = [1, 2].map(|mut message: u32| {
            let mailbox = mailbox.clone();
            thread::spawn(move || {
                while let Err(back) = mailbox.post(message) {
                    message = back;
                    thread::yield_now();
                }
            })
        });
        let mut heard = Vec::new();
        hear(&wake, &inbox, |message| {
            heard.push(message);
            heard.len() == 2
        });
        heard.sort_unstable();
        assert_eq!(heard, [1, 2]);
        all(senders);
    });
}

// Admission.

fn admission(endpoints_max: u32) -> Arc<Admission> {
    let interval = Duration::from_secs(1);
    let plan = AdmissionPlan { workers: 1, endpoints_max, burst: 1, interval, allowed: None };
    Arc::new(Admission::new(plan))
}

/// Two workers that see an endpoint, room for two, one announcement in time. Fails if the next
/// one's time is looked at and set in two steps.
#[test]
fn a_burst_of_one_announces_one() {
    model(|| {
        let admission = admission(2);
        let workers = [1, 2].map(|id| {
            let admission = Arc::clone(&admission);
            thread::spawn(move || admission.announce(EndpointId(id), EARLY))
        });
        let mut answers = all(workers);
        answers.sort_by_key(Result::is_err);
        assert_eq!(answers, [Ok(()), Err(DropReason::EndpointRate)]);
        assert_eq!(admission.announce(EndpointId(2), LATE), Ok(()));
    });
}

// Counters.

/// A number that is read while it grows never steps back, and nothing is lost. Fails if `add`
/// writes anything in between.
#[test]
fn a_counter_only_grows() {
    model(|| {
        let counter = Arc::new(Counter::default());
        let reader = thread::spawn({
            let counter = Arc::clone(&counter);
            move || {
                let mut before = 0;
                for _ in 0..3 {
                    let now = counter.get();
                    assert!(now >= before && now.is_multiple_of(2), "{now} after {before}");
                    before = now;
                }
            }
        });
        (0..2).for_each(|_| counter.add(2));
        assert_eq!(counter.get(), 4);
        reader.join().unwrap();
    });
}

/// Why a cell has one writer. And a proof that the models see a lost update.
#[test]
#[should_panic(expected = "an update was lost")]
fn a_counter_with_two_writers_loses() {
    model(|| {
        let counter = Arc::new(Counter::default());
        let writers = [0; 2].map(|_| {
            let counter = Arc::clone(&counter);
            thread::spawn(move || counter.add(1))
        });
        all(writers);
        assert_eq!(counter.get(), 2, "an update was lost");
    });
}

/// A packet that its own worker got back is nobody else's, whenever the counters are read. Fails
/// without the fence in `WorkerCell::end_turn` or the one in `foreign`: a processor that is not an
/// x86 may show the later number first.
#[test]
fn a_snapshot_sees_no_packet_return_before_it_came() {
    model(|| {
        let cells = Arc::new((EndpointCell::default(), WorkerCell::default()));
        let control = thread::spawn({
            let cells = Arc::clone(&cells);
            move || {
                assert_eq!(EndpointSnapshot::sum([&cells.0]).foreign, 0);
            }
        });
        let (endpoint, worker) = &*cells;
        endpoint.from_gwlb.count(100);
        worker.end_turn(EARLY);
        endpoint.from_gwo.count(100);
        control.join().unwrap();
        let all = EndpointSnapshot::sum([endpoint]);
        assert_eq!((all.from_gwlb, all.from_gwlb.packets), (all.from_gwo, 1));
    });
}

// Shutdown.

/// A worker whose packets are all there at the start: one is held for an endpoint that control is
/// about to set up, or not. It counts as `Worker` does, and ends when it is told to.
fn work(
    counted: &WorkerCell,
    (wake, commands): (&EventFd, &Receiver<Command>),
    (events, admission): (&Mailbox<Event>, &Admission),
) {
    counted.datagrams.count(100);
    counted.held_in.add(1);
    admission.announce(EndpointId(1), EARLY).unwrap();
    events.post(Event::EndpointSeen(WorkerId(0), EndpointId(1))).unwrap();
    let mut holds = 1;
    hear(wake, commands, |command| {
        match command {
            Command::Forget(_, reason) => {
                counted.drops.add(reason, std::mem::take(&mut holds));
                counted.held_out.add(1);
            }
            Command::Detach(endpoint) => {
                events.post(Event::Detached(WorkerId(0), endpoint)).unwrap();
            }
            Command::Stop => {
                counted.drops.add(DropReason::Shutdown, holds);
                counted.held_out.add(holds);
                return true;
            }
            Command::Attach(_)
            | Command::Closing(_)
            | Command::StopMerging
            | Command::Policy(_) => {}
        }
        false
    });
}

/// The end while an endpoint is announced and another one detached: control hears the announcement
/// before it says `Stop`, or after. Fails if `post` wakes before it sends, and if control looked at
/// the counters before it has waited for the worker's end.
#[test]
fn at_the_end_every_packet_is_counted_and_every_permit_is_back() {
    model(|| {
        let (counted, admission) = (Arc::new(WorkerCell::default()), admission(1));
        let (wake, control_wake) =
            (Arc::new(EventFd::new().unwrap()), Arc::new(EventFd::new().unwrap()));
        let (mailbox, commands) = Mailbox::new(4, Arc::clone(&wake));
        let (events, inbox) = Mailbox::new(4, control_wake);
        let worker = thread::spawn({
            let (counted, admission) = (Arc::clone(&counted), Arc::clone(&admission));
            move || work(&counted, (&wake, &commands), (&events, &admission))
        });
        let mut detached = 0;
        let mut on_event = |event| {
            if let Event::EndpointSeen(_, id) = event {
                admission.begin(EARLY).unwrap();
                admission.release();
                // A worker that has ended does not read it, and has counted what it held.
                mailbox.post(Command::Forget(id, DropReason::Shutdown)).unwrap();
            } else {
                assert!(matches!(event, Event::Detached(_, ENDPOINT)), "{event:?}");
                detached += 1;
            }
        };
        mailbox.post(Command::Detach(ENDPOINT)).unwrap();
        inbox.try_iter().for_each(&mut on_event);
        mailbox.post(Command::Stop).unwrap();
        worker.join().unwrap();
        inbox.try_iter().for_each(&mut on_event);
        assert_eq!(detached, 1);
        let last = WorkerSnapshot::from(&*counted);
        assert_eq!((last.datagrams.packets, last.held), (1, 0));
        assert_eq!(last.drops.get(DropReason::Shutdown), 1);
        assert_eq!(admission.begin(LATE), Ok(()), "the permit is back");
    });
}
