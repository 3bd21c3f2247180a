//! Which offloads this kernel has: each is tried once, for real as far as that goes nowhere.

use crate::settings::Settings;
use crate::sys::Error;
use crate::sys::tun;
use crate::sys::udp;
use crate::wire::ipv4;
use crate::wire::protocol;
use crate::wire::tcp;
use crate::wire::udp as wire_udp;
use crate::wire::virtio_net::Gso;
use crate::wire::virtio_net::Header;

/// Leaves of the offloads asked for those that the kernel has. What is missing is worth a line: the
/// engine is slower without it.
///
/// # Errors
/// When no TUN link can be made.
pub(super) fn probe(settings: &mut Settings) -> Result<(), Error> {
    let tcp = frame(Gso::TcpV4, tcp::HEADER_BYTES_MIN, tcp::field::CHECKSUM.start);
    let udp = frame(Gso::UdpL4, wire_udp::HEADER_BYTES, wire_udp::field::CHECKSUM.start);
    let kernel = tun::probe_offload(&tcp, &udp)?.and(udp::probe_offload());
    let wanted = settings.offload;
    settings.offload = wanted.and(kernel);
    let missing: Vec<_> = wanted
        .pieces()
        .into_iter()
        .zip(settings.offload.pieces())
        .filter(|((_, wanted), (_, left))| wanted != left)
        .map(|((name, _), _)| name)
        .collect();
    if !missing.is_empty() {
        settings.warnings.push(format!("This kernel does without {}.", missing.join(", ")));
    }
    Ok(())
}

/// A super-packet of two packets with one byte of payload each, from nowhere to nowhere, behind its
/// virtio header.
fn frame(gso: Gso, transport_bytes: usize, checksum_at: usize) -> Vec<u8> {
    let length = |bytes: usize| u16::try_from(bytes).expect("it is small");
    let headers_bytes = ipv4::HEADER_BYTES_MIN + transport_bytes;
    let header = Header {
        needs_checksum: true,
        gso,
        header_bytes: length(headers_bytes),
        gso_bytes: 1,
        checksum_start: length(ipv4::HEADER_BYTES_MIN),
        checksum_offset: length(checksum_at),
    };
    let mut packet = vec![0; headers_bytes + 2];
    packet[0] = 0x45;
    packet[ipv4::field::TOTAL_BYTES].copy_from_slice(&length(headers_bytes + 2).to_be_bytes());
    packet[ipv4::field::PROTOCOL] = if gso == Gso::UdpL4 { protocol::UDP } else { protocol::TCP };
    [&header.emit()[..], &packet].concat()
}
