//! Health of the target as AWS judges it, and where flows go because of it; no I/O, no clock.
//!
//! ```text
//!             healthy successes in a row           unhealthy failures in a row
//!  initial ───────────────────────────▶ healthy ─────────────────────────────▶ unhealthy
//!     └──── unhealthy failures in a row ─────────────────────────────────────────▲ │
//!                                          ▲──────── healthy successes in a row ───┘
//! ```
//!
//! Each node counts for itself, so nodes may disagree for a while. States, reasons, defaults and
//! ranges are those of the AWS guide "Health checks for Gateway Load Balancer target groups" and
//! of the API's `TargetHealth`; who gets a flow is its page "Edit target group attributes":
//!
//! | target | new flow | existing flow, `no_rebalance` | existing flow, `rebalance` |
//! |---|---|---|---|
//! | initial, healthy | target | target | target |
//! | unhealthy | other target | target | other target |
//! | draining | other target | target | target |
//! | unused (the deregistration delay is over) | other target | target | other target |
//!
//! Where there is no other target, an unhealthy one gets all the same (AWS: all unhealthy = one
//! at random), and a deregistered one gets no new flow, which is then nobody's.

use std::time::Duration;

/// How a probe of a node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A connection (TCP) or an expected status (HTTP) in time.
    Passed,
    /// Another HTTP status than expected.
    ResponseCodeMismatch(u16),
    /// No connection or no status within the time-out.
    Timeout,
    /// Refused, reset, or no HTTP.
    FailedHealthChecks,
}

impl Outcome {
    /// AWS's reason code of a failure.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Passed => "",
            Self::ResponseCodeMismatch(_) => "Target.ResponseCodeMismatch",
            Self::Timeout => "Target.Timeout",
            Self::FailedHealthChecks => "Target.FailedHealthChecks",
        }
    }
}

/// What one node thinks of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Not probed often enough.
    Initial,
    /// Passed often enough in a row.
    Healthy,
    /// Failed often enough in a row, at last so.
    Unhealthy(Outcome),
}

impl State {
    /// AWS's word.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Initial => "initial",
            Self::Healthy => "healthy",
            Self::Unhealthy(_) => "unhealthy",
        }
    }

    /// AWS's reason code; empty if healthy.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Initial => "Elb.InitialHealthChecking",
            Self::Healthy => "",
            Self::Unhealthy(last) => last.reason(),
        }
    }
}

/// Probes in a row that change a state, each at least 1; AWS takes 2 to 10.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thresholds {
    /// Successes until healthy.
    pub(crate) healthy: u32,
    /// Failures until unhealthy.
    pub(crate) unhealthy: u32,
}

/// What one node counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeHealth {
    pub(crate) state: State,
    /// Probes that passed since the start.
    pub(crate) passed: u64,
    /// Probes that failed since the start.
    pub(crate) failed: u64,
    /// Probes at the end of the sequence that ended like the last one.
    in_a_row: u32,
    last_passed: bool,
}

impl NodeHealth {
    const NEW: Self =
        Self { state: State::Initial, passed: 0, failed: 0, in_a_row: 0, last_passed: false };

    /// Takes the next outcome; returns whether the state's name changed.
    fn probed(&mut self, thresholds: Thresholds, outcome: Outcome) -> bool {
        let has_passed = outcome == Outcome::Passed;
        self.in_a_row = if has_passed == self.last_passed { self.in_a_row + 1 } else { 1 };
        self.last_passed = has_passed;
        let before = self.state;
        if has_passed {
            self.passed += 1;
            if self.in_a_row >= thresholds.healthy {
                self.state = State::Healthy;
            }
        } else {
            self.failed += 1;
            if self.in_a_row >= thresholds.unhealthy {
                self.state = State::Unhealthy(outcome);
            }
        }
        self.state.name() != before.name()
    }
}

/// What happens to the flows that a failed or deregistered target has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failover {
    /// They stay; AWS's default.
    NoRebalance,
    /// They move to the other target.
    Rebalance,
}

/// How the target group behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupConfig {
    pub(crate) thresholds: Thresholds,
    pub(crate) failover: Failover,
    /// Whether there is another target, always healthy, which sends every packet back.
    pub(crate) other_target: bool,
    /// How long a deregistered target is `draining`.
    pub(crate) deregistration_delay: Duration,
}

impl Default for GroupConfig {
    /// AWS's defaults, and no other target.
    fn default() -> Self {
        Self {
            thresholds: Thresholds { healthy: 5, unhealthy: 2 },
            failover: Failover::NoRebalance,
            other_target: false,
            deregistration_delay: Duration::from_mins(5),
        }
    }
}

/// Who gets the packets of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// The target.
    Target,
    /// The other target.
    Other,
    /// Nobody.
    Nowhere,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Registration {
    Registered,
    Draining { until: Duration },
    Unused,
}

/// The target group: one target, what the nodes think of it, and whether it is registered.
#[derive(Debug)]
pub(crate) struct Group {
    config: GroupConfig,
    nodes: Vec<NodeHealth>,
    registration: Registration,
}

impl Group {
    /// A group whose target has just been registered.
    ///
    /// # Panics
    /// If a threshold is zero.
    pub(crate) fn new(config: GroupConfig, nodes: usize) -> Self {
        let Thresholds { healthy, unhealthy } = config.thresholds;
        assert!(healthy > 0 && unhealthy > 0, "thresholds count from one");
        Self { config, nodes: vec![NodeHealth::NEW; nodes], registration: Registration::Registered }
    }

    /// Takes a probe's outcome; returns what the node thinks now if that is another word than
    /// before. A target that is not registered is not judged.
    pub(crate) fn probed(&mut self, node: usize, outcome: Outcome) -> Option<State> {
        if self.registration != Registration::Registered {
            return None;
        }
        let health = &mut self.nodes[node];
        health.probed(self.config.thresholds, outcome).then_some(health.state)
    }

    /// Deregisters the target, or registers it anew if it is not registered.
    pub(crate) fn toggle_registration(&mut self, now: Duration) {
        if self.registration == Registration::Registered {
            let until = now + self.config.deregistration_delay;
            self.registration = Registration::Draining { until };
        } else {
            self.registration = Registration::Registered;
            for node in &mut self.nodes {
                *node = NodeHealth { passed: node.passed, failed: node.failed, ..NodeHealth::NEW };
            }
        }
    }

    /// Ends the deregistration delay if it is over; returns whether it just was.
    pub(crate) fn advance(&mut self, now: Duration) -> bool {
        let Registration::Draining { until } = self.registration else {
            return false;
        };
        let is_over = now >= until;
        if is_over {
            self.registration = Registration::Unused;
        }
        is_over
    }

    /// Whether the state depends on the time.
    pub(crate) fn is_draining(&self) -> bool {
        matches!(self.registration, Registration::Draining { .. })
    }

    /// What `describe-target-health` would say from the sight of a node: state and reason.
    pub(crate) fn described(&self, node: usize) -> (&'static str, &'static str) {
        match self.registration {
            Registration::Registered => {
                let state = self.nodes[node].state;
                (state.name(), state.reason())
            }
            Registration::Draining { .. } => ("draining", "Target.DeregistrationInProgress"),
            Registration::Unused => ("unused", "Target.NotRegistered"),
        }
    }

    /// What a node counted.
    pub(crate) fn node(&self, node: usize) -> NodeHealth {
        self.nodes[node]
    }

    /// Who gets a flow that begins at a node.
    pub(crate) fn way_of_new(&self, node: usize) -> Way {
        let is_registered = self.registration == Registration::Registered;
        let is_unhealthy = matches!(self.nodes[node].state, State::Unhealthy(_));
        if is_registered && !(is_unhealthy && self.config.other_target) {
            Way::Target
        } else if self.config.other_target {
            Way::Other
        } else {
            Way::Nowhere
        }
    }

    /// Who gets the next packet of a flow that went `way` until now.
    pub(crate) fn way_of_existing(&self, way: Way, node: usize) -> Way {
        let has_left = match self.registration {
            Registration::Registered => matches!(self.nodes[node].state, State::Unhealthy(_)),
            Registration::Draining { .. } => false,
            Registration::Unused => true,
        };
        let moves = self.config.failover == Failover::Rebalance && self.config.other_target;
        match way {
            Way::Target if has_left && moves => Way::Other,
            Way::Target | Way::Other => way,
            Way::Nowhere => self.way_of_new(node),
        }
    }
}
