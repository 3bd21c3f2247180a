//! The constant part of GENEVE headers, stored once per endpoint instead of once per flow.
//!
//! Of the 40 bytes that a Gateway Load Balancer puts before a packet only the 4 bytes of the flow
//! cookie differ between the flows of one endpoint and family. A *template* is the header with
//! the cookie zeroed and the place where it belongs; a flow stores a template's number and its
//! cookie, 6 bytes instead of 40, and the header comes back byte for byte.
//!
//! Unknown options are part of the template, so an endpoint whose options vary uses several.
//! There is room for [`Templates::CAPACITY`]; a header beyond that is refused, and its packet
//! counted as `option_set_limit`. Templates live as long as the endpoint.

use arrayvec::ArrayVec;

use crate::sync::OnceLock;

/// Longest GENEVE header in bytes: 8 and the 63 words of options that 6 bits can say
/// (RFC 8926 §3.4).
pub const HEADER_BYTES_MAX: usize = 260;

/// Bytes of the flow cookie (AWS option type 3).
pub const COOKIE_BYTES: usize = 4;

/// Number of a template of one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TemplateId(u16);

impl TemplateId {
    /// The number itself, for a table that stores it in two bytes.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The id with this number. A number that no template has gives an id that
    /// [`Templates::write_before`] answers with nothing.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }
}

/// A header with its cookie zeroed.
#[derive(Debug, PartialEq, Eq)]
struct Template {
    bytes: ArrayVec<u8, HEADER_BYTES_MAX>,
    cookie_at: usize,
}

impl Template {
    fn matches(&self, header: &[u8], cookie_at: usize) -> bool {
        self.cookie_at == cookie_at
            && self.bytes.len() == header.len()
            && self.bytes[..cookie_at] == header[..cookie_at]
            && self.bytes[cookie_at + COOKIE_BYTES..] == header[cookie_at + COOKIE_BYTES..]
    }
}

/// The templates of one endpoint: append-only, shared by all workers, read without a lock.
#[derive(Debug)]
pub struct Templates {
    places: Box<[OnceLock<Template>]>,
}

impl Default for Templates {
    fn default() -> Self {
        Self { places: (0..Self::CAPACITY).map(|_| OnceLock::new()).collect() }
    }
}

impl Templates {
    /// Distinct headers, cookies apart, that are kept for one endpoint. A load balancer needs
    /// two: IPv4 and IPv6.
    pub const CAPACITY: usize = 64;

    /// The number of the template that gives `header`, entered if it is new.
    ///
    /// `cookie_at` is the offset of the cookie's value in the header. Returns nothing when the
    /// endpoint has no room for another template.
    ///
    /// # Panics
    /// If the header is longer than [`HEADER_BYTES_MAX`] or the cookie is not inside it.
    pub fn intern(&self, header: &[u8], cookie_at: usize) -> Option<TemplateId> {
        assert!(cookie_at + COOKIE_BYTES <= header.len() && header.len() <= HEADER_BYTES_MAX);
        for (number, place) in (0_u16..).zip(self.places.iter()) {
            let template = place.get_or_init(|| {
                let mut bytes: ArrayVec<u8, HEADER_BYTES_MAX> = header.iter().copied().collect();
                bytes[cookie_at..cookie_at + COOKIE_BYTES].fill(0);
                Template { bytes, cookie_at }
            });
            if template.matches(header, cookie_at) {
                return Some(TemplateId(number));
            }
        }
        None
    }

    /// Writes the header of template `id` with `cookie` to the end of `room`, where the packet
    /// begins, and returns its length in bytes. Nothing if there is no such template or the room
    /// is too short.
    pub fn write_before(
        &self,
        id: TemplateId,
        cookie: [u8; COOKIE_BYTES],
        room: &mut [u8],
    ) -> Option<usize> {
        let template = self.places.get(usize::from(id.0))?.get()?;
        let start = room.len().checked_sub(template.bytes.len())?;
        let header = &mut room[start..];
        header.copy_from_slice(&template.bytes);
        header[template.cookie_at..][..COOKIE_BYTES].copy_from_slice(&cookie);
        Some(header.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(tag: u8, cookie: [u8; 4]) -> Vec<u8> {
        let mut bytes = vec![tag; 40];
        bytes[36..].copy_from_slice(&cookie);
        bytes
    }

    #[test]
    fn a_header_comes_back_byte_for_byte() {
        let templates = Templates::default();
        let one = templates.intern(&header(1, *b"abcd"), 36).unwrap();
        let same = templates.intern(&header(1, *b"wxyz"), 36).unwrap();
        let other = templates.intern(&header(2, *b"abcd"), 36).unwrap();
        assert_eq!(one, same, "the cookie is no part of a template");
        assert_ne!(one, other);
        let mut room = [0xff; 50];
        assert_eq!(templates.write_before(same, *b"wxyz", &mut room), Some(40));
        assert_eq!(room[10..], header(1, *b"wxyz"));
        assert_eq!(room[..10], [0xff; 10]);
    }

    #[test]
    fn room_is_bounded_and_what_is_in_stays() {
        let templates = Templates::default();
        for tag in 0..64 {
            assert!(templates.intern(&header(tag, [0; 4]), 36).is_some());
        }
        assert_eq!(templates.intern(&header(64, [0; 4]), 36), None);
        assert_eq!(templates.intern(&header(63, [9; 4]), 36), Some(TemplateId(63)));
    }

    #[test]
    fn a_number_without_template_gives_nothing() {
        let templates = Templates::default();
        let mut room = [0; HEADER_BYTES_MAX];
        assert_eq!(templates.write_before(TemplateId::new(0), [0; 4], &mut room), None);
        assert_eq!(templates.write_before(TemplateId::new(999), [0; 4], &mut room), None);
        let id = templates.intern(&header(1, [0; 4]), 36).unwrap();
        assert_eq!(templates.write_before(id, [0; 4], &mut room[..39]), None, "too short");
    }

    #[test]
    fn workers_that_race_agree() {
        let templates = Templates::default();
        let ids: Vec<Vec<_>> = std::thread::scope(|scope| {
            let one = || (0..64).map(|tag| templates.intern(&header(tag, [0; 4]), 36)).collect();
            let handles = [scope.spawn(one), scope.spawn(one)];
            handles.into_iter().map(|handle| handle.join().unwrap()).collect()
        });
        assert_eq!(ids[0], ids[1]);
        assert!(ids[0].iter().all(Option::is_some));
    }
}
