//! Which of the headers that a proxy cares about a message has: one walk over the names instead of a lookup for each. An
//! ordinary request has few headers, and nearly none of these.

use http::HeaderMap;

/// A set of headers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeaderMarks(u32);

macro_rules! marks {
    ($($(#[$doc:meta])* $name:ident = $bit:expr, [$($text:literal),*];)*) => {
        impl HeaderMarks {
            $($(#[$doc])* pub const $name: HeaderMarks = HeaderMarks(1 << $bit);)*

            /// The mark of one name, in lower case.
            pub(crate) fn of_name(name: &str) -> HeaderMarks {
                if !may_have_mark(name) {
                    return HeaderMarks(0);
                }
                match name {
                    $($($text)|* => HeaderMarks::$name,)*
                    other if other.starts_with(INTERNAL_PREFIX) => HeaderMarks::INTERNAL,
                    _ => HeaderMarks(0),
                }
            }
        }

        /// Lengths of the names above, by first letter: most names are none of them, and found out by one look.
        const LENGTHS: [u32; 26] = {
            let mut lengths = [0; 26];
            $($(note(&mut lengths, $text);)*)*
            lengths
        };
    };
}

/// Every `x-envoy-…` has a mark.
const INTERNAL_PREFIX: &str = "x-envoy-";

const fn note(lengths: &mut [u32; 26], name: &str) {
    lengths[(name.as_bytes()[0] - b'a') as usize] |= 1 << name.len();
}

fn may_have_mark(name: &str) -> bool {
    let first = name.as_bytes().first().map_or(usize::MAX, |first| usize::from(first.wrapping_sub(b'a')));
    let lengths = LENGTHS.get(first).copied().unwrap_or_default();
    lengths.checked_shr(name.len() as u32).is_some_and(|rest| rest & 1 == 1) || name.starts_with(INTERNAL_PREFIX)
}

marks! {
    /// `connection`
    CONNECTION = 0, ["connection"];
    /// `keep-alive`
    KEEP_ALIVE = 1, ["keep-alive"];
    /// `proxy-connection`
    PROXY_CONNECTION = 2, ["proxy-connection"];
    /// `transfer-encoding`
    TRANSFER_ENCODING = 3, ["transfer-encoding"];
    /// `upgrade`, `http2-settings`
    UPGRADE = 4, ["upgrade", "http2-settings"];
    /// `te`
    TE = 5, ["te"];
    /// `expect`
    EXPECT = 6, ["expect"];
    /// `content-length`
    CONTENT_LENGTH = 7, ["content-length"];
    /// `content-type`
    CONTENT_TYPE = 8, ["content-type"];
    /// `x-forwarded-for`
    FORWARDED_FOR = 9, ["x-forwarded-for"];
    /// `x-forwarded-proto`
    FORWARDED_PROTO = 10, ["x-forwarded-proto"];
    /// `x-forwarded-client-cert`
    CLIENT_CERT = 11, ["x-forwarded-client-cert"];
    /// `x-request-id`
    REQUEST_ID = 12, ["x-request-id"];
    /// `grpc-status`
    GRPC_STATUS = 13, ["grpc-status"];
    /// Any `x-envoy-…`.
    INTERNAL = 14, ["x-envoy-"];
    /// `traceparent`, `b3`, `x-b3-traceid`, `x-b3-spanid`, `x-b3-parentspanid`
    TRACE = 15, ["traceparent", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid"];
}

impl HeaderMarks {
    /// The headers of a message.
    pub fn of(headers: &HeaderMap) -> Self {
        headers.keys().fold(HeaderMarks(0), |all, name| HeaderMarks(all.0 | Self::of_name(name.as_str()).0))
    }

    /// None of them.
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Headers of one hop.
    pub(crate) const fn hop() -> Self {
        HeaderMarks(
            HeaderMarks::CONNECTION.0
                | HeaderMarks::KEEP_ALIVE.0
                | HeaderMarks::PROXY_CONNECTION.0
                | HeaderMarks::TRANSFER_ENCODING.0
                | HeaderMarks::UPGRADE.0
                | HeaderMarks::TE.0,
        )
    }

    /// Those of both.
    pub(crate) const fn and(self, other: HeaderMarks) -> Self {
        HeaderMarks(self.0 | other.0)
    }

    /// All of them: for a message that was not looked at.
    pub const ALL: HeaderMarks = HeaderMarks(u32::MAX);

    /// The message has any of `wanted`.
    pub fn has(self, wanted: HeaderMarks) -> bool {
        self.0 & wanted.0 != 0
    }
}

impl std::ops::BitOr for HeaderMarks {
    type Output = HeaderMarks;
    fn bitor(self, other: HeaderMarks) -> HeaderMarks {
        self.and(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    #[test]
    fn names_are_found() {
        let mut headers = HeaderMap::new();
        for name in ["host", "te", "x-envoy-retry-on", "x-request-id"] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        let marks = HeaderMarks::of(&headers);
        assert!(marks.has(HeaderMarks::TE) && marks.has(HeaderMarks::INTERNAL) && marks.has(HeaderMarks::REQUEST_ID));
        assert!(!marks.has(HeaderMarks::CONNECTION | HeaderMarks::UPGRADE | HeaderMarks::EXPECT));
        assert!(HeaderMarks::ALL.has(HeaderMarks::GRPC_STATUS));
    }

    #[test]
    fn names_that_look_like_others() {
        for (name, want) in [
            ("b3", HeaderMarks::TRACE),
            ("te", HeaderMarks::TE),
            ("x-forwarded-client-cert", HeaderMarks::CLIENT_CERT),
            ("x-envoy-a-name-that-is-longer-than-thirty-two-bytes", HeaderMarks::INTERNAL),
            ("x-envoy-", HeaderMarks::INTERNAL),
            // Of the length and first letter of one that has a mark.
            ("ta", HeaderMarks(0)),
            ("content-lengtx", HeaderMarks(0)),
            ("x-forwarded-client-cers", HeaderMarks(0)),
            // Of other lengths and letters.
            ("", HeaderMarks(0)),
            ("0", HeaderMarks(0)),
            ("~", HeaderMarks(0)),
            ("t-name-of-thirty-four-bytes-length", HeaderMarks(0)),
        ] {
            assert_eq!(HeaderMarks::of_name(name), want, "{name:?}");
        }
    }
}
