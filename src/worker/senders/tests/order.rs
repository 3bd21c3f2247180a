//! Per-port order as a property, against a kernel that refuses and delays as it likes.

use proptest::prelude::*;

use super::*;

/// Ports that the jobs are for. Another program has the last one.
const PORTS: u16 = 6;
const PORT_FIRST: u16 = 61_100;

/// What the kernel says to a send.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Sends,
    IsFull,
    /// To one that it shall cut; to others as [`Self::Sends`].
    WillNotCut(Errno),
}

#[derive(Clone, Debug)]
enum Step {
    /// A plan: ports, and how many datagrams for each.
    Plan(Vec<(u16, usize)>),
    /// The kernel works on everything that was started, in order.
    Submit(Vec<Answer>),
    /// So many completions are looked at.
    Complete(usize),
    /// Sockets have room, if they were asked.
    Room,
    /// Time goes on, milliseconds.
    Later(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let answer = prop_oneof![
        8 => Just(Answer::Sends),
        1 => Just(Answer::IsFull),
        1 => prop::sample::select(vec![Errno::EIO, Errno::EINVAL]).prop_map(Answer::WillNotCut),
    ];
    prop_oneof![
        3 => prop::collection::vec((0..PORTS, 1..7_usize), 1..6).prop_map(Step::Plan),
        3 => prop::collection::vec(answer, 1..12).prop_map(Step::Submit),
        3 => (1..20_usize).prop_map(Step::Complete),
        2 => Just(Step::Room),
        1 => (1..11_000_u64).prop_map(Step::Later),
    ]
}

/// The rig, and what the other side has seen.
struct World {
    rig: Rig,
    now_ms: u64,
    /// Datagrams sent per port, and of those the last that arrived.
    sent: [u32; PORTS as usize],
    arrived: [Option<u32>; PORTS as usize],
    arrivals: u32,
    completions: VecDeque<(Token, Result<u32, Errno>)>,
}

impl World {
    fn plan(&mut self, jobs: &[(u16, usize)]) {
        // Buffers are as many as operations: what is not completed holds some.
        if self.rig.driver.in_flight() > usize::from(MANY) / 4 {
            return;
        }
        let jobs: Vec<_> = jobs
            .iter()
            .map(|&(port, count)| {
                let datagrams = (0..count).map(|_| {
                    let number = &mut self.sent[usize::from(port)];
                    *number += 1;
                    [&port.to_be_bytes()[..], &number.to_be_bytes(), b"payload"].concat()
                });
                (outer(PORT_FIRST + port), datagrams.collect())
            })
            .collect();
        self.rig.send(0, &jobs, at(self.now_ms));
    }

    fn submit(&mut self, answers: &[Answer]) {
        let mut answers = answers.iter().cycle();
        for token in self.rig.started() {
            let whole = self.rig.driver.sending(token).unwrap().datagrams > 1;
            let result = match answers.next().unwrap() {
                Answer::IsFull => Err(Errno::EAGAIN),
                Answer::WillNotCut(errno) if whole => Err(*errno),
                Answer::Sends | Answer::WillNotCut(_) => Ok(self.arrive(token)),
            };
            self.completions.push_back((token, result));
        }
    }

    fn arrive(&mut self, token: Token) -> u32 {
        let bytes = self.rig.driver.bytes_of(token);
        let mut payload = &bytes[..];
        let mut source = None;
        if token.queue == SenderId::RAW.0 {
            source = Some(u16::from_be_bytes([bytes[0], bytes[1]]));
            payload = &bytes[8..];
        } else if let Some(socket) = self.rig.senders.sockets.get(usize::from(token.queue)) {
            source = Some(socket.port);
        }
        for datagram in payload.chunks(13) {
            let port = u16::from_be_bytes([datagram[0], datagram[1]]);
            let number = u32::from_be_bytes(*datagram[2..].first_chunk().unwrap());
            assert_eq!(source, Some(PORT_FIRST + port), "it left from the wrong port");
            let last = &mut self.arrived[usize::from(port)];
            assert!(last.is_none_or(|last| last < number), "{number} of {port} after {last:?}");
            *last = Some(number);
            self.arrivals += 1;
        }
        u32::try_from(bytes.len()).unwrap()
    }

    fn complete(&mut self, count: usize) {
        for _ in 0..count {
            let Some((token, result)) = self.completions.pop_front() else {
                return;
            };
            let outcome = self.rig.complete(token, result);
            assert_eq!(matches!(outcome, Outcome::Sent(_)), result.is_ok());
        }
    }

    /// The kernel answers in order: this comes after what was started before it was asked.
    fn room(&mut self) {
        if !self.completions.is_empty() || !self.rig.driver.sends_started.is_empty() {
            return;
        }
        let own = (0..self.rig.senders.sockets.len()).map(|n| SenderId(u16::try_from(n).unwrap()));
        for id in own.chain([SenderId::RAW]).collect::<Vec<_>>() {
            self.rig.ready(id);
        }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Plan(jobs) => self.plan(jobs),
            Step::Submit(answers) => self.submit(answers),
            Step::Complete(count) => self.complete(*count),
            Step::Room => self.room(),
            Step::Later(millis) => self.now_ms += millis,
        }
    }

    /// The kernel sends everything.
    fn drain(&mut self) {
        while self.rig.driver.in_flight() > 0 {
            self.submit(&[Answer::Sends]);
            self.complete(usize::MAX);
            self.room();
        }
    }
}

proptest! {
    #[test]
    fn datagrams_of_a_port_arrive_in_order_whatever_way_they_go(
        steps in prop::collection::vec(step(), 0..80),
        has_raw: bool,
    ) {
        private_loopback();
        let _taken = UdpSocket::bind((LOCAL, PORT_FIRST + PORTS - 1)).unwrap();
        let mut world = World {
            rig: Rig::new(2, 20),
            now_ms: 0,
            sent: [0; PORTS as usize],
            arrived: [None; PORTS as usize],
            arrivals: 0,
            completions: VecDeque::new(),
        };
        if !has_raw {
            world.rig.senders.raw_retry = Moment::from_nanos(u64::MAX);
        }
        for step in &steps {
            world.run(step);
        }
        world.drain();
        let lost: u32 = world.rig.lost.iter().map(|(packets, _)| packets).sum();
        prop_assert_eq!(world.arrivals + lost, world.sent.iter().sum::<u32>());
        prop_assert!(world.rig.senders.sockets.iter().all(Socket::is_idle));
        prop_assert!(world.rig.senders.raw.is_idle() && world.rig.waiting().is_empty());
    }
}
