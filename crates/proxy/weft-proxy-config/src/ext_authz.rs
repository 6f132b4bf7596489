//! The compiled external authorization filters: whom to ask, about what, and what to make of no answer.

use http::{HeaderName, HeaderValue, StatusCode};
use std::time::Duration;
use weft_core::Strng;
use weft_route::{MetadataMatcher, StringMatcher};

/// External authorization, for requests or for connections.
#[derive(Debug)]
pub struct ExtAuthz {
    /// Whom to ask.
    pub service: AuthzService,
    /// Time for the answer; `None` = no bound but that of the request.
    pub timeout: Option<Duration>,
    /// What cannot be asked is let through.
    pub fail_open: bool,
    /// A header says so then.
    pub fail_open_header: bool,
    /// Status when the authorizer cannot be asked.
    pub status_on_error: StatusCode,
    /// The route is chosen again after an answer that changes the request.
    pub reroute: bool,
    /// How much of the body is shown; `None` = nothing.
    pub body: Option<AuthzBody>,
    /// Asked only when this holds.
    pub enabled: Option<MetadataMatcher>,
    /// Headers that are shown; `None` = all over gRPC, the usual ones over HTTP.
    pub allowed_headers: Option<Vec<StringMatcher>>,
    /// Headers that are not shown.
    pub disallowed_headers: Vec<StringMatcher>,
    /// Metadata that is shown, by filter.
    pub metadata: Vec<Strng>,
    /// The client's certificate is shown.
    pub certificate: bool,
    /// The server name asked for is shown.
    pub tls_session: bool,
}

/// How much of a body is shown.
#[derive(Debug, Clone, Copy)]
pub struct AuthzBody {
    /// Most bytes.
    pub most: usize,
    /// Of a longer body the beginning; otherwise the request is answered 413.
    pub partial: bool,
    /// As bytes, not as text.
    pub as_bytes: bool,
}

/// Whom to ask.
#[derive(Debug)]
pub enum AuthzService {
    /// `envoy.service.auth.v3.Authorization` in this cluster, by this authority.
    Grpc(Strng, HeaderValue),
    /// Plain HTTP.
    Http(Box<AuthzHttp>),
}

/// An authorizer that is asked by HTTP.
#[derive(Debug)]
pub struct AuthzHttp {
    /// Cluster.
    pub cluster: Strng,
    /// Put before the path.
    pub path_prefix: String,
    /// Headers added to the question.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Headers of the answer that the endpoint gets, in place of the client's.
    pub to_upstream: Vec<StringMatcher>,
    /// Headers of the answer that the endpoint gets besides the client's.
    pub to_upstream_append: Vec<StringMatcher>,
    /// Headers of a refusal that the client gets; `None` = all.
    pub to_client: Option<Vec<StringMatcher>>,
    /// Headers of an assent that the client gets.
    pub to_client_on_success: Vec<StringMatcher>,
}
