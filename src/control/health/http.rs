//! The little HTTP that the gate speaks: heads in, heads out (RFC 9112).

use std::fmt::Write;

/// Bytes of a request's head that are read at most.
pub const HEAD_BYTES_MAX: usize = 8 << 10;

/// Header fields in a head at most.
const FIELDS_MAX: usize = 64;

/// What the gate must know of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHead {
    /// Bytes of the head; what follows belongs to the body or the next request.
    pub bytes: usize,
    /// Whether the answer has no body.
    pub is_head: bool,
    /// Whether the connection is for another request afterwards.
    pub keep_alive: bool,
    /// The path that is asked for, without a query; empty if it is no HTTP.
    pub path: String,
    /// The media types that the client takes, as it lists them.
    pub accept: String,
}

/// What the bytes so far are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A whole head.
    Head(RequestHead),
    /// The start of one.
    Partial,
    /// None that could be answered; the answer has this status.
    Refused(u16),
}

/// Looks for a request's head at the start of `bytes`.
pub fn parse_request(bytes: &[u8]) -> Parsed {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_BYTES_MAX => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Parsed::Partial,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Parsed::Refused(431),
        // What is no HTTP gets the page too, as with the reference program, and then a FIN.
        Err(_) => {
            return Parsed::Head(RequestHead { bytes: bytes.len(), ..RequestHead::default() });
        }
    };
    let values = |name: &'static str| {
        let fields = request.headers.iter();
        let fields = fields.filter(move |field| field.name.eq_ignore_ascii_case(name));
        fields.filter_map(|field| std::str::from_utf8(field.value).ok())
    };
    let says = |name: &'static str, word: &str| {
        let mut parts = values(name).flat_map(|value| value.split(','));
        parts.any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    let has = |name: &str| {
        let mut fields = request.headers.iter();
        fields.any(|field| field.name.eq_ignore_ascii_case(name))
    };
    // A body is not read: the connection ends after the answer instead.
    let has_body =
        has("Transfer-Encoding") || (has("Content-Length") && !says("Content-Length", "0"));
    // Who types a request by hand leaves the Host out, and waits for the end of the connection.
    let persistent = match request.version {
        Some(1) => !says("Connection", "close") && has("Host"),
        _ => says("Connection", "keep-alive"),
    };
    Parsed::Head(RequestHead {
        bytes: length,
        is_head: request.method == Some("HEAD"),
        keep_alive: persistent && !has_body,
        path: path_of(request.path.unwrap_or_default()).to_owned(),
        accept: values("Accept").collect::<Vec<_>>().join(","),
    })
}

/// The path in a request's target, which may be a whole URL (RFC 9112 §3.2).
fn path_of(target: &str) -> &str {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let Some((_, rest)) = path.split_once("://") else { return path };
    rest.find('/').map_or("/", |start| &rest[start..])
}

/// An answer, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The Content-Type.
    pub kind: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// An answer of a status alone.
    pub const fn bare(status: u16) -> Self {
        Self { status, kind: String::new(), body: Vec::new() }
    }

    /// A line of text.
    pub fn text(status: u16, line: &str) -> Self {
        let kind = "text/plain; charset=utf-8".to_owned();
        Self { status, kind, body: format!("{line}\n").into_bytes() }
    }

    /// A page for browsers.
    pub fn html(page: &str) -> Self {
        let kind = "text/html; charset=utf-8".to_owned();
        Self { status: 200, kind, body: page.as_bytes().to_vec() }
    }

    /// Takes apart what the backend sent; nothing if that is no whole answer.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut response = httparse::Response::new(&mut fields);
        let Ok(httparse::Status::Complete(start)) = response.parse(bytes) else {
            return None;
        };
        let field = |name: &str| {
            let field =
                response.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(field.value).ok()
        };
        let length: usize = field("Content-Length")?.parse().ok()?;
        Some(Self {
            status: response.code?,
            kind: field("Content-Type")?.to_owned(),
            body: bytes.get(start..start.checked_add(length)?)?.to_vec(),
        })
    }

    /// The bytes to send: the reference program's fields, in its order.
    pub fn to_bytes(&self, is_head: bool, keep_alive: bool) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            404 => "Not Found",
            408 => "Request Timeout",
            431 => "Request Header Fields Too Large",
            _ => "Service Unavailable",
        };
        let mut head = format!("HTTP/1.1 {} {reason}\r\n", self.status);
        head.push_str("Cache-Control: max-age=0, no-cache\r\n");
        let length = self.body.len();
        let persistence = if keep_alive { "keep-alive" } else { "close" };
        if !self.kind.is_empty() {
            write!(head, "Content-Type: {}\r\n", self.kind).expect("a string takes any text");
        }
        write!(head, "Content-Length: {length}\r\nConnection: {persistence}\r\n\r\n")
            .expect("a string takes any text");
        let mut bytes = head.into_bytes();
        if !is_head {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> RequestHead {
        match parse_request(text.as_bytes()) {
            Parsed::Head(head) => head,
            other @ (Parsed::Partial | Parsed::Refused(_)) => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn persistence() {
        for (text, keep_alive) in [
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", true),
            ("GET / HTTP/1.1\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nHost: x\r\nconnection: TE, Close\r\n\r\n", false),
            ("GET / HTTP/1.0\r\n\r\n", false),
            ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", false),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", true),
            ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", false),
        ] {
            assert_eq!(head(text).keep_alive, keep_alive, "{text}");
        }
        assert!(head("HEAD /x HTTP/1.1\r\n\r\n").is_head);
        assert_eq!(head("GET / HTTP/1.1\r\n\r\nGET").bytes, 18);
    }

    #[test]
    fn what_is_asked_for() {
        for (target, path) in [
            ("/", "/"),
            ("/metrics", "/metrics"),
            ("/metrics?a=/b#c", "/metrics"),
            ("/#x", "/"),
            ("http://proxy.example/a/b?c", "/a/b"),
            ("http://proxy.example", "/"),
            ("*", "*"),
        ] {
            let accept = "accept: text/plain\r\nAccept: */*;q=0.1";
            let head = head(&format!("GET {target} HTTP/1.1\r\n{accept}\r\n\r\n"));
            assert_eq!((head.path.as_str(), head.accept.as_str()), (path, "text/plain,*/*;q=0.1"));
        }
        assert_eq!(head("GET / HTTP/1.0\r\n\r\n").accept, "");
    }

    #[test]
    fn what_is_no_head() {
        assert_eq!(parse_request(b""), Parsed::Partial);
        assert_eq!(parse_request(b"GET / HTTP/1.1\r\nHost"), Parsed::Partial);
        let alien = RequestHead { bytes: 5, ..RequestHead::default() };
        assert_eq!(parse_request(b"\x16\x03\x01\x02\x00"), Parsed::Head(alien));
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(HEAD_BYTES_MAX));
        assert_eq!(parse_request(long.as_bytes()), Parsed::Refused(431));
        let cut = &long.as_bytes()[..HEAD_BYTES_MAX];
        assert_eq!(parse_request(cut), Parsed::Refused(431));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65));
        assert_eq!(parse_request(many.as_bytes()), Parsed::Refused(431));
    }

    #[test]
    fn a_reply_survives_the_way() {
        let reply =
            Reply { status: 503, kind: "application/json".to_owned(), body: b"{}".to_vec() };
        let bytes = reply.to_bytes(false, false);
        assert_eq!(
            String::from_utf8_lossy(&bytes),
            "HTTP/1.1 503 Service Unavailable\r\nCache-Control: max-age=0, no-cache\r\n\
             Content-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
        );
        assert_eq!(Reply::parse(&bytes), Some(reply.clone()));
        assert_eq!(Reply::parse(&bytes[..bytes.len() - 1]), None);
        let bytes = reply.to_bytes(true, true);
        assert!(bytes.ends_with(b"Content-Length: 2\r\nConnection: keep-alive\r\n\r\n"));
    }

    /// Found while its fuzz target was written: its end was added up beyond the largest length.
    #[test]
    fn a_reply_that_claims_to_be_endless_is_none() {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: a\r\nContent-Length: ";
        let endless = format!("{head}{}\r\n\r\n", usize::MAX);
        assert_eq!(Reply::parse(endless.as_bytes()), None);
    }
}
