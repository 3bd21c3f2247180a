//! What tshark says about the packets that come back: a judge of checksums that is not ours.
//!
//! Kernels leave the outer checksum of what goes through a veth to the card that is not there, so
//! checksum offload is off at the target's veth in this mode.

use std::io::Write;
use std::sync::Arc;

use crate::lab::Failure;
use crate::lab::Host;
use crate::lab::Lab;
use crate::report;
use crate::run::Conditions;
use crate::target::Engine;
use crate::workload::Shape;
use crate::workload::Workload;

/// Packets that tshark looks at.
const PACKETS: usize = 2000;

/// What tshark prints for a checksum that is right.
const GOOD: &str = "1";

/// Each target under the load at a moderate rate, judged; one line each.
pub(crate) fn judge(
    conditions: &Conditions<'_>,
    engines: &[Engine],
    workload: Workload,
    shape: &Shape,
) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    for engine in engines {
        let name = format!("{}, {}", workload.name(), engine.name());
        let outcome = conditions
            .run_for_tshark(*engine, shape)
            .map_err(|error| format!("{name}: {error}"))?;
        let merged = report::merged(&outcome);
        writeln!(out, "{name}: tshark finds {PACKETS} packets without a wrong checksum; {merged}")?;
    }
    Ok(())
}

/// Packets leave the target with all their checksums filled.
pub(crate) fn fill_checksums(lab: &Lab) -> Result<(), Failure> {
    lab.run(Host::Target, "ethtool -K vB tx off").map(drop)
}

/// Looks at the packets of the running load that come back.
///
/// # Errors
/// tshark finds a checksum that is wrong or missing, or too few packets.
pub(crate) fn verify(lab: &Arc<Lab>) -> Result<(), Failure> {
    let captured = lab.run(
        Host::Sender,
        &format!(
            "tshark -n -Q -l -i vA -c {PACKETS} -a duration:60 -f src(10.9.0.2) \
             -o ip.check_checksum:TRUE -o tcp.check_checksum:TRUE -o udp.check_checksum:TRUE \
             -T fields -E separator=/s -E aggregator=/s \
             -e ip.checksum.status -e udp.checksum.status -e tcp.checksum.status"
        ),
    )?;
    let lines: Vec<&str> = captured.lines().collect();
    if lines.len() < PACKETS {
        return Err(format!("tshark saw {} packets of {PACKETS}", lines.len()).into());
    }
    for line in lines {
        // Outer IP and UDP; inner UDP or TCP; inner IP, if it is IPv4.
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.len() < 3 || words.iter().any(|word| *word != GOOD) {
            return Err(format!("tshark says \"{line}\" of a packet's checksums").into());
        }
    }
    Ok(())
}
