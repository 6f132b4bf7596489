//! The one table of everything that goes wrong: reason → HTTP status, response flag, details word, body of the local reply.
//! Status codes, flags and wording are Envoy's ("Access logging", "Response code details"), since users' dashboards and
//! tests look for them.

use http::StatusCode;
use std::fmt;

/// Why this proxy answered by itself, or cut a connection or stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No virtual host or no route matched.
    NoRoute,
    /// The route's cluster does not exist.
    NoCluster,
    /// The cluster has no endpoint to send to.
    NoHealthyUpstream,
    /// The endpoint refused the connection, or it broke while being made (TLS included).
    ConnectionFailure,
    /// Connecting took longer than the cluster allows.
    ConnectTimeout,
    /// The endpoint closed the connection before it answered.
    ConnectionTermination,
    /// The endpoint reset the stream.
    RemoteReset,
    /// The endpoint refused the stream (HTTP/2 REFUSED_STREAM or GOAWAY): it was not processed.
    RefusedStream,
    /// The endpoint broke the protocol.
    UpstreamProtocol,
    /// A circuit breaker is open.
    Overflow,
    /// The whole request took too long.
    RequestTimeout,
    /// The last try took too long.
    PerTryTimeout,
    /// Nothing moved for too long.
    StreamIdleTimeout,
    /// The client took too long to send its request.
    ClientRequestTimeout,
    /// The client took too long to send its headers.
    ClientHeaderTimeout,
    /// The stream or connection lived its longest time.
    MaxDuration,
    /// The client went away.
    DownstreamDisconnect,
    /// The request breaks HTTP, or is ambiguous.
    BadRequest,
    /// HTTP/1.1 without `Host`.
    MissingHost,
    /// The path cannot be normalised, or has escaped slashes that are not allowed.
    BadPath,
    /// The request has more or longer headers than allowed.
    HeadersTooLarge,
    /// The body is longer than what must be kept of it.
    PayloadTooLarge,
    /// An upgrade that is not allowed here.
    UpgradeForbidden,
    /// A transfer coding that is not supported.
    NotSupported,
    /// HTTP/1.0 where it is not wanted.
    LowVersion,
    /// The connection must not be used for this host.
    Misdirected,
    /// The request's token is missing or not valid.
    Unauthenticated,
    /// Authorization said no.
    AccessDenied,
    /// A fault was injected.
    FaultAbort,
    /// A rate limit.
    RateLimited,
    /// External authorization said no.
    ExtAuthzDenied,
    /// Too many connections or requests for this proxy.
    Overload,
    /// Share of traffic that the control plane drops.
    DropOverload,
    /// A route that this proxy cannot carry out.
    UnusableRoute,
    /// No secret yet, or a handshake that failed.
    TlsHandshake,
    /// This proxy cut the stream for a reason of its own.
    LocalReset,
}

impl Reason {
    /// Status of the local reply.
    pub fn status(self) -> StatusCode {
        use Reason::*;
        match self {
            NoRoute => StatusCode::NOT_FOUND,
            UpstreamProtocol => StatusCode::BAD_GATEWAY,
            RequestTimeout | PerTryTimeout => StatusCode::GATEWAY_TIMEOUT,
            StreamIdleTimeout | ClientRequestTimeout | ClientHeaderTimeout => StatusCode::REQUEST_TIMEOUT,
            BadRequest | MissingHost | BadPath => StatusCode::BAD_REQUEST,
            HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Unauthenticated => StatusCode::UNAUTHORIZED,
            UpgradeForbidden | AccessDenied | ExtAuthzDenied => StatusCode::FORBIDDEN,
            NotSupported => StatusCode::NOT_IMPLEMENTED,
            LowVersion => StatusCode::UPGRADE_REQUIRED,
            Misdirected => StatusCode::MISDIRECTED_REQUEST,
            RateLimited => StatusCode::TOO_MANY_REQUESTS,
            UnusableRoute => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Response flag of the access log.
    pub fn flag(self) -> Flags {
        use Reason::*;
        match self {
            NoRoute | UnusableRoute => Flags::NR,
            NoCluster => Flags::NC,
            NoHealthyUpstream => Flags::UH,
            ConnectionFailure | ConnectTimeout => Flags::UF,
            ConnectionTermination => Flags::UC,
            RemoteReset | RefusedStream => Flags::UR,
            UpstreamProtocol => Flags::UPE,
            Overflow => Flags::UO,
            RequestTimeout | PerTryTimeout => Flags::UT,
            StreamIdleTimeout => Flags::SI,
            MaxDuration => Flags::DT,
            DownstreamDisconnect => Flags::DC,
            BadRequest | MissingHost | HeadersTooLarge | NotSupported | LowVersion => Flags::DPE,
            FaultAbort => Flags::FI,
            RateLimited => Flags::RL,
            ExtAuthzDenied => Flags::UAEX,
            Overload => Flags::OM,
            DropOverload => Flags::DO,
            LocalReset => Flags::LR,
            _ => Flags::NONE,
        }
    }

    /// `%RESPONSE_CODE_DETAILS%`.
    pub fn details(self) -> &'static str {
        use Reason::*;
        match self {
            NoRoute => "route_not_found",
            NoCluster => "cluster_not_found",
            NoHealthyUpstream => "no_healthy_upstream",
            ConnectionFailure => "upstream_reset_before_response_started{remote_connection_failure}",
            ConnectTimeout => "upstream_reset_before_response_started{connection_timeout}",
            ConnectionTermination => "upstream_reset_before_response_started{connection_termination}",
            RemoteReset => "upstream_reset_before_response_started{remote_reset}",
            RefusedStream => "upstream_reset_before_response_started{remote_refused_stream_reset}",
            UpstreamProtocol => "upstream_reset_before_response_started{protocol_error}",
            Overflow => "upstream_reset_before_response_started{overflow}",
            RequestTimeout => "upstream_response_timeout",
            PerTryTimeout => "upstream_per_try_timeout",
            StreamIdleTimeout => "stream_idle_timeout",
            ClientRequestTimeout => "request_overall_timeout",
            ClientHeaderTimeout => "request_header_timeout",
            MaxDuration => "max_duration_timeout",
            DownstreamDisconnect => "downstream_remote_disconnect",
            BadRequest => "http1.codec_error",
            MissingHost => "missing_host_header",
            BadPath => "path_normalization_failed",
            HeadersTooLarge => "http1.headers_too_large",
            PayloadTooLarge => "request_payload_too_large",
            UpgradeForbidden => "upgrade_failed",
            NotSupported => "http1.unsupported_transfer_encoding",
            LowVersion => "low_version",
            Misdirected => "misdirected_request",
            Unauthenticated => "jwt_authn_access_denied",
            AccessDenied => "rbac_access_denied",
            FaultAbort => "fault_filter_abort",
            RateLimited => "request_rate_limited",
            ExtAuthzDenied => "ext_authz_denied",
            Overload => "overload",
            DropOverload => "drop_overload",
            UnusableRoute => "route_unusable",
            TlsHandshake => "tls_handshake_failed",
            LocalReset => "local_reset",
        }
    }

    /// Body of the local reply; for upstream resets the part after "reset reason: ".
    pub fn body(self) -> &'static str {
        use Reason::*;
        match self {
            NoHealthyUpstream => "no healthy upstream",
            ConnectionFailure => "remote connection failure",
            ConnectTimeout => "connection timeout",
            ConnectionTermination => "connection termination",
            RemoteReset => "remote reset",
            RefusedStream => "remote refused stream reset",
            UpstreamProtocol => "protocol error",
            Overflow => "overflow",
            RequestTimeout | PerTryTimeout => "upstream request timeout",
            StreamIdleTimeout => "stream timeout",
            ClientRequestTimeout => "request timeout",
            ClientHeaderTimeout => "request header timeout",
            BadRequest => "Bad Request",
            PayloadTooLarge => "Payload Too Large",
            Unauthenticated => "Jwt is missing",
            AccessDenied => "RBAC: access denied",
            FaultAbort => "fault filter abort",
            RateLimited => "local_rate_limited",
            Overload => "overload",
            DropOverload => "drop overload",
            MaxDuration => "max duration",
            _ => "",
        }
    }

    /// True for what an upstream did before it answered: the local reply then says
    /// "upstream connect error or disconnect/reset before headers".
    pub fn is_upstream_reset(self) -> bool {
        use Reason::*;
        matches!(
            self,
            ConnectionFailure
                | ConnectTimeout
                | ConnectionTermination
                | RemoteReset
                | RefusedStream
                | UpstreamProtocol
                | Overflow
        )
    }
}

/// A set of response flags.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Flags(u32);

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bit:expr),* $(,)?) => {
        impl Flags {
            $($(#[$doc])* pub const $name: Flags = Flags(1 << $bit);)*
            const NAMES: &'static [(Flags, &'static str)] = &[$((Flags::$name, stringify!($name))),*];
        }
    };
}

flags! {
    /// No healthy upstream.
    UH = 0,
    /// Connection failure.
    UF = 1,
    /// Circuit breaker.
    UO = 2,
    /// No route.
    NR = 3,
    /// Retry limit reached.
    URX = 4,
    /// No cluster.
    NC = 5,
    /// Maximum duration.
    DT = 6,
    /// Client went away.
    DC = 7,
    /// Local reset.
    LR = 8,
    /// Upstream reset.
    UR = 9,
    /// Upstream connection ended.
    UC = 10,
    /// Delay injected.
    DI = 11,
    /// Abort injected.
    FI = 12,
    /// Rate limited.
    RL = 13,
    /// Denied by external authorization.
    UAEX = 14,
    /// Idle stream.
    SI = 15,
    /// Client broke the protocol.
    DPE = 16,
    /// Upstream broke the protocol.
    UPE = 17,
    /// Timeout.
    UT = 18,
    /// Overload manager.
    OM = 19,
    /// Dropped by the control plane's wish.
    DO = 20,
    /// The rate limit service failed.
    RLSE = 21,
}

impl Flags {
    /// No flag; prints as `-`.
    pub const NONE: Flags = Flags(0);

    /// True when all of `other` are in.
    pub fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// True when empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The bits, for use as a key.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl std::ops::BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Flags) {
        self.0 |= other.0;
    }
}

impl std::ops::BitOr for Flags {
    type Output = Flags;
    fn bitor(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        let mut first = true;
        for (flag, name) in Flags::NAMES {
            if self.contains(*flag) {
                if !first {
                    f.write_str(",")?;
                }
                first = false;
                f.write_str(name)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_print() {
        assert_eq!(Flags::NONE.to_string(), "-");
        assert_eq!((Flags::URX | Flags::UF).to_string(), "UF,URX");
        assert!((Flags::URX | Flags::UF).contains(Flags::UF));
    }

    #[test]
    fn what_users_know() {
        for (reason, status, flag) in [
            (Reason::NoRoute, 404, "NR"),
            (Reason::NoCluster, 503, "NC"),
            (Reason::NoHealthyUpstream, 503, "UH"),
            (Reason::ConnectionFailure, 503, "UF"),
            (Reason::Overflow, 503, "UO"),
            (Reason::RequestTimeout, 504, "UT"),
            (Reason::ConnectionTermination, 503, "UC"),
            (Reason::UpstreamProtocol, 502, "UPE"),
            (Reason::Unauthenticated, 401, "-"),
            (Reason::AccessDenied, 403, "-"),
            (Reason::RateLimited, 429, "RL"),
        ] {
            assert_eq!((reason.status().as_u16(), reason.flag().to_string().as_str()), (status, flag), "{reason:?}");
        }
    }
}
