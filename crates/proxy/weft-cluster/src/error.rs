//! What goes wrong on the way to an endpoint: why, whether the endpoint may have seen the request, and the particulars.

use weft_codec::Reason;

/// Whether another try is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The endpoint has not processed anything of the request.
    Unsent,
    /// The endpoint may have processed it.
    MayBeProcessed,
    /// The cause is the client or this proxy: another try would not help.
    Pointless,
}

/// A try that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}{}", reason.body(), detail.as_deref().map(|d| format!(": {d}")).unwrap_or_default())]
pub struct UpstreamError {
    /// Why.
    pub reason: Reason,
    /// Whether another try is safe.
    pub retry: Retry,
    /// What the transport said (`%UPSTREAM_TRANSPORT_FAILURE_REASON%`).
    pub detail: Option<Box<str>>,
}

impl UpstreamError {
    /// An error before anything was sent.
    pub fn unsent(reason: Reason) -> Self {
        Self { reason, retry: Retry::Unsent, detail: None }
    }

    /// The same with particulars.
    pub fn with_detail(mut self, detail: impl Into<Box<str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// What a connection of HTTP/2 says of a request. `returned`: the request was not touched.
    pub fn from_h2(error: &h2::Error, returned: bool) -> Self {
        if returned {
            return Self::unsent(Reason::ConnectionTermination);
        }
        let made = |reason, retry| Self { reason, retry, detail: None };
        match error.reason() {
            Some(h2::Reason::REFUSED_STREAM) => made(Reason::RefusedStream, Retry::Unsent),
            // GOAWAY without error: streams above the last one named were not processed (RFC 9113 §6.8).
            Some(h2::Reason::NO_ERROR) if error.is_go_away() => made(Reason::RefusedStream, Retry::Unsent),
            Some(h2::Reason::PROTOCOL_ERROR | h2::Reason::FRAME_SIZE_ERROR | h2::Reason::COMPRESSION_ERROR)
                if !error.is_remote() =>
            {
                made(Reason::UpstreamProtocol, Retry::MayBeProcessed).with_detail(error.to_string())
            }
            Some(_) if error.is_reset() => made(Reason::RemoteReset, Retry::MayBeProcessed),
            _ => {
                let mut made = made(Reason::ConnectionTermination, Retry::MayBeProcessed);
                made.detail = error.get_io().map(|error| error.to_string().into());
                made
            }
        }
    }
}
