//! Which of the headers that a proxy cares about a message has: one walk over the names instead of a lookup for each. An
//! ordinary request has few headers, and nearly none of these.

use http::HeaderMap;

/// A set of headers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeaderMarks(u32);

macro_rules! marks {
    ($($(#[$doc:meta])* $name:ident = $bit:expr, [$($text:pat),*];)*) => {
        impl HeaderMarks {
            $($(#[$doc])* pub const $name: HeaderMarks = HeaderMarks(1 << $bit);)*

            /// The mark of one name, in lower case.
            pub(crate) fn of_name(name: &str) -> HeaderMarks {
                match name {
                    $($($text)|* => HeaderMarks::$name,)*
                    other if other.starts_with("x-envoy-") => HeaderMarks::INTERNAL,
                    _ => HeaderMarks(0),
                }
            }
        }
    };
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
        HeaderMarks(self.0 | other.0)
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
}
