//! What the fuzzers look for: each target is a function of bytes that panics if a promise is
//! broken. libFuzzer calls them through `targets/`, the tests with every file of `corpus/`.
//!
//! | target | bytes are | promise |
//! |---|---|---|
//! | [`parser`] | a datagram | the parsers agree with the oracle |
//! | [`path`] | events, one by one | each packet planned, held or counted, once, and unchanged |
//! | [`coalescer`] | packets of a sender, nearly | what is merged, and cut again, is as it came |
//! | [`segmenter`] | a frame from a TUN | segments have the payload, and right headers |
//! | [`controls`] | command lines, lists, requests | an answer, whatever was said |
//!
//! `.ci/run fuzz` runs them, see tests/README.md.

mod coalescer;
mod controls;
mod craft;
mod expected;
mod input;
mod parser;
mod path;
#[cfg(test)]
mod replay;
pub(crate) mod rig;
mod segmenter;
mod stream;

#[cfg(test)]
pub(crate) use parser::agree;

/// What is run on an input, and panics if it finds something.
type Target = fn(&[u8]);

/// The targets by name.
pub(crate) const TARGETS: [(&str, Target); 5] = [
    ("parser", parser::run),
    ("path", path::run),
    ("coalescer", coalescer::run),
    ("segmenter", segmenter::run),
    ("controls", controls::run),
];

/// Runs a target on one input.
///
/// # Panics
/// If the target finds something, or if there is no such target.
pub(crate) fn run(target: &str, input: &[u8]) {
    let found = TARGETS.iter().find(|(name, _)| *name == target);
    let (_, run) = found.unwrap_or_else(|| panic!("no target is called {target}"));
    run(input);
}
