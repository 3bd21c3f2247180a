//! What to do about drops, in a line each: for whoever has just read a counter.

use crate::types::DropReason;

/// What to do about drops for this reason. README.md says it at length.
pub const fn remedy(reason: DropReason) -> &'static str {
    use DropReason as Of;
    match reason {
        Of::SourceDenied => "add the subnet to --allow-source if the log names one of the balancer",
        Of::NotUnicast => "find out who sends GENEVE to a broadcast address; it harms nobody",
        Of::Short | Of::BadVersion | Of::Oam | Of::OptionsOverrun => {
            "no load balancer sends this: let its subnets alone in, with --allow-source"
        }
        Of::OptionMissing | Of::OptionDuplicate | Of::OptionBadLength => {
            "another cloud's balancer needs --profile; else let its subnets alone in"
        }
        Of::CriticalOptionUnknown => "the load balancer speaks something newer: update gwlbtun",
        Of::OptionSetLimit => "somebody makes options up: let the balancer's subnets alone in",
        Of::BadEthertype => {
            "the sender tunnels Ethernet: only a Gateway Load Balancer belongs here"
        }
        Of::InnerVersionMismatch | Of::InnerTruncated | Of::InnerMalformed => {
            "a client sends broken packets: gwlbtun -x shows which one"
        }
        Of::EndpointDenied => "add the endpoint to --allow-endpoint if it is yours; see the log",
        Of::EndpointLimit => "raise --max-endpoints, or keep made-up ids out: --allow-endpoint",
        Of::EndpointRate => "passes by itself; if not, somebody makes ids up: --allow-source",
        Of::EndpointFailed => "the log says why the interfaces could not be made",
        Of::NotReady => "make the CREATE hook faster: gwlbtun show hooks has its times",
        Of::FlowUnknown => "set -i to the balancer's TCP idle time; or this host sends by itself",
        Of::FragmentUnmatched => "look for what loses first fragments between gwi and gwo",
        Of::NoReturn => "find out what this host sends into gwi: tcpdump shows it",
        Of::FlowLimit => "raise --max-flows",
        Of::SourcePinned => "passes 120 s after a failover; else find the sender with -x",
        Of::TunDown => "set the interface up: ip link set gwi-... up",
        Of::TunError => "see the warnings above; else free some memory on this host",
        Of::TunBadFrame => "find the program that writes this into gwi or gwo",
        Of::Mtu => "ip link set dev eth0 mtu 9001, or clamp TCP with --clamp-mss",
        Of::SendError => "see the warnings above; else look for a lost route, or a firewall",
        Of::SendFull => "the network interface takes less than is sent: a larger instance",
        Of::NoBuffer => "more traffic than the workers carry: give them more cores",
        Of::Shutdown => "nothing: the program was stopping",
    }
}

/// What to do about drops of Linux at the receive sockets.
pub const SOCKETS: &str = "more traffic than the workers carry: more cores, or a larger --rcvbuf";

/// And at the queues of the interfaces.
pub const QUEUES: &str = "workers read too late: give them cores of their own with --cores";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_one_that_fits_a_line() {
        let remedies = DropReason::ALL.iter().map(|&reason| remedy(reason));
        for remedy in remedies.chain([SOCKETS, QUEUES]) {
            assert!(!remedy.is_empty() && !remedy.ends_with('.'), "{remedy}");
            let chars = remedy.chars().count();
            assert!(chars <= 76, "{chars} with four blanks are above 80: {remedy}");
        }
    }
}
