//! Why a packet did not go on. Every packet that came in either went out or is in exactly one
//! of these counters.

use std::fmt;

/// Declares the enum, its list and its names from one table, so that none can be forgotten.
macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal,)+) => {
        /// Why a packet was dropped. The names are part of the program's surface: counters,
        /// metrics and documents use them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropReason {
            /// Every reason, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Name of the reason: lower case with underscores.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// One sentence for a person who looks at the counter.
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc,)+).trim_ascii_start(),)+ }
            }
        }
    };
}

drop_reasons! {
    /// The datagram's sender is in none of the networks of --allow-source.
    SourceDenied => "source_denied",
    /// The datagram came to a broadcast or multicast address.
    NotUnicast => "not_unicast",
    /// The datagram is shorter than a GENEVE header.
    Short => "short",
    /// The GENEVE version is not 0.
    BadVersion => "bad_version",
    /// The GENEVE control (OAM) bit is set: the datagram carries no packet of a host.
    Oam => "oam",
    /// The GENEVE options end after the datagram or overlap their own end.
    OptionsOverrun => "options_overrun",
    /// The endpoint id, the attachment id or the flow cookie is missing.
    OptionMissing => "option_missing",
    /// An AWS option stands twice.
    OptionDuplicate => "option_duplicate",
    /// An AWS option has a length other than AWS documents.
    OptionBadLength => "option_bad_length",
    /// An option that nobody here knows says that it must be understood (RFC 8926 §3.5).
    CriticalOptionUnknown => "critical_option_unknown",
    /// The endpoint already uses as many distinct option sets as are kept for one.
    OptionSetLimit => "option_set_limit",
    /// The GENEVE protocol type is neither IPv4 nor IPv6.
    BadEthertype => "bad_ethertype",
    /// The first nibble of the inner packet contradicts the GENEVE protocol type.
    InnerVersionMismatch => "inner_version_mismatch",
    /// The inner packet is shorter than its own header says.
    InnerTruncated => "inner_truncated",
    /// The inner header contradicts itself: a header length below the minimum.
    InnerMalformed => "inner_malformed",
    /// The endpoint is not among those of --allow-endpoint.
    EndpointDenied => "endpoint_denied",
    /// The endpoint is new and the limit on endpoints is reached.
    EndpointLimit => "endpoint_limit",
    /// The endpoint is new and endpoints were created too fast just before.
    EndpointRate => "endpoint_rate",
    /// The endpoint could not be set up; the next attempt is due later.
    EndpointFailed => "endpoint_failed",
    /// The endpoint is being set up and its share of the hold queue is full.
    NotReady => "not_ready",
    /// A packet from the host belongs to no flow that the load balancer has sent.
    FlowUnknown => "flow_unknown",
    /// A later fragment from the host did not see its packet's first one in time.
    FragmentUnmatched => "fragment_unmatched",
    /// A packet from the host, with nothing to be returned.
    NoReturn => "no_return",
    /// The flow table is full and nothing in reach may be evicted.
    FlowLimit => "flow_limit",
    /// The flow is pinned to another outer source address.
    SourcePinned => "source_pinned",
    /// The TUN link is down or gone.
    TunDown => "tun_down",
    /// The TUN refused the packet for another reason.
    TunError => "tun_error",
    /// A frame read from the TUN is no IP packet, was cut, or stands for more than 1,400 packets.
    TunBadFrame => "tun_bad_frame",
    /// The packet is larger than the load balancer or the path takes.
    Mtu => "mtu",
    /// The socket refused the datagram.
    SendError => "send_error",
    /// The send queue of the outer source port is full, or a later packet of that port got ahead.
    SendFull => "send_full",
    /// No operation slot was free, or no buffer for the headers of a super-packet's packets.
    NoBuffer => "no_buffer",
    /// The program was stopping, or the endpoint was let go when its last packets came.
    Shutdown => "shutdown",
}

impl DropReason {
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Position of the reason in [`Self::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_reason_has_its_own_name_place_and_sentence() {
        let mut names = HashSet::new();
        for (place, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), place);
            assert!(names.insert(reason.name()), "{reason} twice");
            assert!(reason.explanation().ends_with('.'), "{reason}");
        }
        assert_eq!(names.len(), DropReason::COUNT);
    }
}
