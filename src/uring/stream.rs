//! Life of a multishot operation: armed once, it completes many times, until the kernel ends it.
//!
//! ```text
//!            arm                 ended: no buffer, or by itself
//!   Idle ──────────▶ Armed ─────────────────────────────────────▶ Idle
//!                      │ stop                                   ▲
//!                      ▼                                        │ (arm again)
//!                   Stopping ──────── ended ──────▶ Stopped     Idle
//!   Idle ── stop ─────────────────────────────────▶ Stopped
//! ```
//!
//! A stopped stream stays stopped: a late completion of an earlier life arms nothing.

/// State of one multishot operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stream {
    /// Not with the kernel; wants to be armed.
    #[default]
    Idle,
    /// With the kernel.
    Armed,
    /// With the kernel, cancellation requested.
    Stopping,
    /// Not with the kernel, for good.
    Stopped,
}

impl Stream {
    /// Whether the operation should be handed to the kernel now. The caller does so and the
    /// stream is armed.
    #[must_use]
    pub fn arm(&mut self) -> bool {
        let wanted = *self == Self::Idle;
        if wanted {
            *self = Self::Armed;
        }
        wanted
    }

    /// The kernel has sent a completion; `more` is its promise of further ones.
    pub fn completed(&mut self, more: bool) {
        if more {
            return;
        }
        *self = match *self {
            Self::Idle | Self::Armed => Self::Idle,
            Self::Stopping | Self::Stopped => Self::Stopped,
        };
    }

    /// Ends the stream. Returns whether the kernel must be asked to cancel it.
    #[must_use]
    pub fn stop(&mut self) -> bool {
        match *self {
            Self::Idle | Self::Stopped => {
                *self = Self::Stopped;
                false
            }
            Self::Armed => {
                *self = Self::Stopping;
                true
            }
            Self::Stopping => false,
        }
    }

    /// Whether it is to go on: nobody has stopped it.
    pub fn is_wanted(self) -> bool {
        matches!(self, Self::Idle | Self::Armed)
    }

    /// Whether the kernel is done with it for good.
    pub fn is_stopped(self) -> bool {
        self == Self::Stopped
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Arm,
        Completed(bool),
        Stop,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![Just(Step::Arm), any::<bool>().prop_map(Step::Completed), Just(Step::Stop),]
    }

    proptest! {
        /// The oracle is a count of what is with the kernel, which must never exceed one.
        #[test]
        fn the_kernel_never_has_it_twice(steps in prop::collection::vec(step(), 0..100)) {
            let mut stream = Stream::default();
            let mut with_kernel = 0_i32;
            let mut stop_requested = false;
            let mut cancels = 0;
            for step in steps {
                match step {
                    Step::Arm => if stream.arm() {
                        prop_assert!(!stop_requested, "armed after stop");
                        with_kernel += 1;
                    },
                    // The kernel completes only what it has.
                    Step::Completed(more) => if with_kernel > 0 {
                        stream.completed(more);
                        with_kernel -= i32::from(!more);
                    },
                    Step::Stop => {
                        cancels += i32::from(stream.stop());
                        stop_requested = true;
                    }
                }
                prop_assert!((0..=1).contains(&with_kernel));
                prop_assert!(cancels <= 1);
                prop_assert_eq!(stream.is_wanted(), !stop_requested);
                prop_assert_eq!(stream.is_stopped(), stop_requested && with_kernel == 0);
            }
        }
    }
}
