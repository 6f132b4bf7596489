//! Access logs: which lines a filter chain writes, and what a line is made from. How a format is spelled is the telemetry
//! crate's matter; what its commands mean for a connection or request stands here.

use crate::downstream::Downstream;
use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;
use std::cmp::Ordering;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use weft_cluster::ConnectionFacts;
use weft_codec::Flags;
use weft_core::Strng;
use weft_proxy_config::{AccessLog, LogFilter, LogFormat, LogSink};
use weft_telemetry::{Command, Format, JsonFormat, LogWriter, Record, format};

/// Writers of all destinations, one each for the whole process.
#[derive(Debug, Default)]
pub(crate) struct LogSinks(Mutex<Vec<(LogSink, Option<LogWriter>)>>);

impl LogSinks {
    /// The writer for a destination; `None` when it cannot be opened, which is said once.
    fn writer(&self, sink: &LogSink) -> Option<LogWriter> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, writer)) = known.iter().find(|(s, _)| s == sink) {
            return writer.clone();
        }
        let opened = match sink {
            LogSink::Stdout => LogWriter::stdout(),
            LogSink::Stderr => LogWriter::start(std::io::stderr()),
            LogSink::File(path) => LogWriter::file(std::path::Path::new(&**path)),
        };
        let writer = opened.inspect_err(|error| tracing::error!(?sink, %error, "access log cannot be opened")).ok();
        known.push((sink.clone(), writer.clone()));
        writer
    }
}

/// The access logs of a filter chain.
#[derive(Debug, Default)]
pub(crate) struct AccessLogs {
    logs: Vec<Log>,
    request_headers: Vec<HeaderName>,
    response_headers: Vec<HeaderName>,
    trailers: Vec<HeaderName>,
}

#[derive(Debug)]
struct Log {
    writer: LogWriter,
    line: Line,
    filter: Option<Arc<LogFilter>>,
}

#[derive(Debug)]
enum Line {
    Text(Format),
    Json(JsonFormat),
}

impl AccessLogs {
    pub fn new(configured: &[AccessLog], sinks: &LogSinks) -> Self {
        let mut all = Self::default();
        for log in configured {
            let line = match &log.format {
                LogFormat::Default => Format::parse(format::ENVOY_DEFAULT).map(Line::Text),
                LogFormat::Text(text) => Format::parse(text).map(Line::Text),
                LogFormat::Json(object) => JsonFormat::parse(object).map(Line::Json),
            };
            // Formats were checked when the configuration was compiled.
            let (Ok(line), Some(writer)) = (line, sinks.writer(&log.sink)) else { continue };
            let line = match line {
                Line::Text(format) if log.omit_empty => Line::Text(format.without_missing()),
                Line::Json(format) if log.omit_empty => Line::Json(format.without_missing()),
                line => line,
            };
            match &line {
                Line::Text(format) => format.commands().for_each(|command| all.need(command)),
                Line::Json(format) => format.commands(&mut |command| all.need(command)),
            }
            if let Some(filter) = &log.filter {
                all.need_for(filter);
            }
            all.logs.push(Log { writer, line, filter: log.filter.clone() });
        }
        all
    }

    /// Nothing is logged.
    pub fn is_empty(&self) -> bool {
        self.logs.is_empty()
    }

    /// Request headers that lines need.
    pub fn request_headers(&self) -> &[HeaderName] {
        &self.request_headers
    }

    /// Response headers that lines need.
    pub fn response_headers(&self) -> &[HeaderName] {
        &self.response_headers
    }

    /// Response trailers that lines need.
    pub fn trailers(&self) -> &[HeaderName] {
        &self.trailers
    }

    fn need(&mut self, command: &Command) {
        let (list, name, other) = match command {
            Command::Req(name, other) => (&mut self.request_headers, name, other),
            Command::Resp(name, other) => (&mut self.response_headers, name, other),
            Command::Trailer(name, other) => (&mut self.trailers, name, other),
            _ => return,
        };
        for name in std::iter::once(name).chain(other) {
            if let Ok(name) = HeaderName::from_bytes(name.as_bytes())
                && !list.contains(&name)
            {
                list.push(name);
            }
        }
    }

    fn need_for(&mut self, filter: &LogFilter) {
        match filter {
            LogFilter::And(all) | LogFilter::Or(all) => all.iter().for_each(|inner| self.need_for(inner)),
            LogFilter::Header(header) => {
                if let weft_route::HeaderKey::Name(name) = &header.key
                    && !self.request_headers.contains(name)
                {
                    self.request_headers.push(name.clone());
                }
            }
            _ => {}
        }
    }

    /// Writes the lines for what happened.
    pub fn write(&self, facts: &LogFacts<'_>) {
        for log in &self.logs {
            if log.filter.as_ref().is_some_and(|filter| !holds(filter, facts)) {
                continue;
            }
            let mut line = String::with_capacity(256);
            match &log.line {
                Line::Text(format) => format.write(facts, &mut line),
                Line::Json(format) => format.write(facts, &mut line),
            }
            log.writer.write(line);
        }
    }
}

fn holds(filter: &LogFilter, facts: &LogFacts<'_>) -> bool {
    match filter {
        LogFilter::Status(compare, negated, value) => status_holds(facts.code.cmp(value), *compare, *negated),
        LogFilter::Slower(limit) => facts.duration >= *limit,
        LogFilter::Flags(wanted) => {
            let text = facts.flags.to_string();
            let has = |flag: &Strng| text.split(',').any(|f| f == &**flag);
            if wanted.is_empty() { !facts.flags.is_empty() } else { wanted.iter().any(has) }
        }
        LogFilter::NotHealthCheck => true,
        LogFilter::Sample(share) => fastrand::u32(..1_000_000) < *share,
        LogFilter::And(all) => all.iter().all(|inner| holds(inner, facts)),
        LogFilter::Or(all) => all.iter().any(|inner| holds(inner, facts)),
        LogFilter::Header(header) => match &facts.request {
            Some(request) => header.matches_response(&request.headers),
            None => false,
        },
    }
}

/// `Equal` is `==`, `Greater` is `>=`, `Less` is `<=`; `negated` turns the result round.
fn status_holds(found: Ordering, wanted: Ordering, negated: bool) -> bool {
    (found == wanted || (wanted != Ordering::Equal && found == Ordering::Equal)) != negated
}

/// What a log line needs of a request; kept only when something is logged.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoggedRequest {
    pub method: http::Method,
    pub path: String,
    pub authority: String,
    pub scheme: &'static str,
    pub version: http::Version,
    /// The client as far as it can be trusted, where that is known: behind trusted proxies another than the connection's.
    pub client: Option<SocketAddr>,
    /// Those of the request's headers that lines need.
    pub headers: HeaderMap,
    pub response_headers: HeaderMap,
    pub trailers: HeaderMap,
}

impl LoggedRequest {
    /// Keeps those of `from` that are in `names`.
    pub fn keep(into: &mut HeaderMap, from: &HeaderMap, names: &[HeaderName]) {
        for name in names {
            for value in from.get_all(name) {
                into.append(name.clone(), value.clone());
            }
        }
    }
}

/// What a log line needs of the upstream side.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoggedUpstream {
    pub cluster: Option<Strng>,
    pub host: Option<Strng>,
    pub connection: Option<std::rc::Rc<ConnectionFacts>>,
}

/// Everything a log line may be made from.
pub(crate) struct LogFacts<'a> {
    pub downstream: &'a Downstream,
    pub request: Option<&'a LoggedRequest>,
    pub upstream: &'a LoggedUpstream,
    pub start: SystemTime,
    pub duration: Duration,
    pub request_duration: Option<Duration>,
    pub response_duration: Option<Duration>,
    pub code: u16,
    pub flags: Flags,
    pub details: &'a str,
    pub termination: Option<&'a str>,
    pub transport_failure: Option<&'a str>,
    pub received: u64,
    pub sent: u64,
    pub route: Option<&'a str>,
    pub attempts: u32,
    pub grpc_status: Option<u32>,
    pub workload: &'a str,
}

impl LogFacts<'_> {
    fn plain(&self, command: &str, out: &mut String) -> bool {
        let tls = self.downstream.tls.as_ref();
        let upstream = self.upstream.connection.as_deref();
        let upstream_tls = upstream.and_then(|c| c.tls.as_ref());
        match command {
            "PROTOCOL" => self.request.is_some_and(|r| put(out, Some(protocol(r.version)))),
            "RESPONSE_CODE" => number(out, u64::from(self.code)),
            // None at all is a value too, as Envoy's: in headers and JSON it is said.
            "RESPONSE_FLAGS" if self.flags.is_empty() => put(out, Some("-")),
            "RESPONSE_FLAGS" => put(out, Some(self.flags)),
            "RESPONSE_CODE_DETAILS" => !self.details.is_empty() && put(out, Some(self.details)),
            "CONNECTION_TERMINATION_DETAILS" => put(out, self.termination),
            "UPSTREAM_TRANSPORT_FAILURE_REASON" => put(out, self.transport_failure),
            "BYTES_RECEIVED" => number(out, self.received),
            "BYTES_SENT" => number(out, self.sent),
            "DURATION" => number(out, millis(self.duration)),
            "REQUEST_DURATION" => self.request_duration.is_some_and(|d| number(out, millis(d))),
            "RESPONSE_DURATION" => self.response_duration.is_some_and(|d| number(out, millis(d))),
            "RESPONSE_TX_DURATION" => {
                self.response_duration.is_some_and(|d| number(out, millis(self.duration.saturating_sub(d))))
            }
            "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS" => put(out, self.upstream.host.as_ref()),
            "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => put(out, self.upstream.cluster.as_ref()),
            "UPSTREAM_LOCAL_ADDRESS" => put(out, upstream.and_then(|c| c.local)),
            "UPSTREAM_REQUEST_ATTEMPT_COUNT" => number(out, u64::from(self.attempts)),
            "UPSTREAM_PEER_URI_SAN" => put(out, upstream.and_then(ConnectionFacts::peer_uri)),
            "UPSTREAM_PEER_SUBJECT" => put(out, upstream_tls.and_then(|t| t.peer.as_ref()).map(|p| &p.subject)),
            "UPSTREAM_TLS_VERSION" => put(out, upstream_tls.map(|t| t.version)),
            "UPSTREAM_TLS_CIPHER" => put(out, upstream_tls.map(|t| t.cipher)),
            "DOWNSTREAM_LOCAL_ADDRESS" => put(out, Some(self.downstream.destination)),
            "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => put(out, Some(self.downstream.destination.ip())),
            "DOWNSTREAM_LOCAL_PORT" => put(out, Some(self.downstream.destination.port())),
            "DOWNSTREAM_REMOTE_ADDRESS" => put(out, Some(self.client())),
            "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => put(out, Some(self.client().ip())),
            "DOWNSTREAM_REMOTE_PORT" => put(out, Some(self.client().port())),
            "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => put(out, Some(self.downstream.peer)),
            "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => put(out, Some(self.downstream.peer.ip())),
            "REQUESTED_SERVER_NAME" => put(out, self.downstream.server_name.as_ref()),
            "ROUTE_NAME" => put(out, self.route.filter(|name| !name.is_empty())),
            "DOWNSTREAM_PEER_URI_SAN" => put(out, self.downstream.peer_uri()),
            "DOWNSTREAM_PEER_SUBJECT" => put(out, peer(self.downstream).map(|p| &p.subject)),
            "DOWNSTREAM_PEER_ISSUER" => put(out, peer(self.downstream).map(|p| &p.issuer)),
            "DOWNSTREAM_PEER_FINGERPRINT_256" => put(out, peer(self.downstream).map(|p| p.sha256())),
            "DOWNSTREAM_LOCAL_URI_SAN" => put(out, self.downstream.local_uri.as_ref()),
            "DOWNSTREAM_TLS_VERSION" => put(out, tls.map(|t| t.version)),
            "DOWNSTREAM_TLS_CIPHER" => put(out, tls.map(|t| t.cipher)),
            "DOWNSTREAM_TRANSPORT_FAILURE_REASON" => self.upstream.host.is_none() && put(out, self.transport_failure),
            "HOSTNAME" => !self.workload.is_empty() && put(out, Some(self.workload)),
            "CONNECTION_ID" => number(out, self.downstream.id),
            "GRPC_STATUS" => self.grpc_status.is_some_and(|status| put(out, Some(grpc_word(status)))),
            "FILTER_CHAIN_NAME" => !self.downstream.chain.is_empty() && put(out, Some(&self.downstream.chain)),
            _ => false,
        }
    }

    fn client(&self) -> SocketAddr {
        self.request.and_then(|request| request.client).unwrap_or(self.downstream.source)
    }

    fn request_header(&self, name: &str, out: &mut String) -> bool {
        let Some(request) = self.request else { return false };
        match name {
            ":method" => put(out, Some(&request.method)),
            ":path" => !request.path.is_empty() && put(out, Some(&request.path)),
            ":authority" | "host" => !request.authority.is_empty() && put(out, Some(&request.authority)),
            ":scheme" => put(out, Some(request.scheme)),
            name => joined(&request.headers, name, out),
        }
    }
}

impl Record for LogFacts<'_> {
    fn value(&self, command: &Command, out: &mut String) -> bool {
        let either = |name: &str, other: &Option<String>, out: &mut String, get: &dyn Fn(&str, &mut String) -> bool| {
            get(name, out) || other.as_deref().is_some_and(|other| get(other, out))
        };
        match command {
            Command::Req(name, other) => either(name, other, out, &|name, out| self.request_header(name, out)),
            Command::Resp(name, other) => either(name, other, out, &|name, out| {
                self.request.is_some_and(|r| joined(&r.response_headers, name, out))
            }),
            Command::Trailer(name, other) => {
                either(name, other, out, &|name, out| self.request.is_some_and(|r| joined(&r.trailers, name, out)))
            }
            Command::StartTime(pattern) => start_time(self.start, pattern.as_deref(), out),
            Command::FilterState(key) => match key.trim_matches('"') {
                "io.istio.peer_principal" => put(out, self.downstream.peer_uri()),
                "io.istio.local_principal" => put(out, self.downstream.local_uri.as_ref()),
                _ => false,
            },
            Command::DynamicMetadata(_) | Command::ClusterMetadata(_) => false,
            Command::Plain(name) => self.plain(name, out),
        }
    }
}

fn put(out: &mut String, value: Option<impl std::fmt::Display>) -> bool {
    match value {
        Some(value) => write!(out, "{value}").is_ok(),
        None => false,
    }
}

fn number(out: &mut String, value: u64) -> bool {
    put(out, Some(value))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn peer(downstream: &Downstream) -> Option<&Arc<weft_tls::PeerCertificate>> {
    downstream.tls.as_ref()?.peer.as_ref()
}

fn joined(headers: &HeaderMap, name: &str, out: &mut String) -> bool {
    let values: SmallVec<[&HeaderValue; 2]> = headers.get_all(name).iter().collect();
    for (i, value) in values.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        out.push_str(&String::from_utf8_lossy(value.as_bytes()));
    }
    !values.is_empty()
}

/// The protocol as logs say it.
pub(crate) fn protocol(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2",
        http::Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

fn start_time(start: SystemTime, pattern: Option<&str>, out: &mut String) -> bool {
    let Ok(time) = jiff::Timestamp::try_from(start) else { return false };
    match pattern {
        None => write!(out, "{time:.3}").is_ok(),
        // Envoy's `%3f` is the fraction in digits; strftime of jiff has it as `%3f` too.
        Some(pattern) => match jiff::fmt::strtime::format(pattern, time.to_zoned(jiff::tz::TimeZone::UTC).datetime()) {
            Ok(text) => {
                out.push_str(&text);
                true
            }
            Err(_) => false,
        },
    }
}

/// `%GRPC_STATUS%`: the status in words.
fn grpc_word(status: u32) -> &'static str {
    const WORDS: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    WORDS.get(status as usize).copied().unwrap_or("InvalidCode")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_comparisons() {
        use Ordering::{Equal, Greater, Less};
        // (code, compare, negated, value) → holds
        for (code, compare, negated, value, want) in [
            (200, Equal, false, 200, true),
            (200, Equal, true, 200, false),
            (404, Equal, true, 200, true),
            (500, Greater, false, 500, true),
            (503, Greater, false, 500, true),
            (404, Greater, false, 500, false),
            (200, Less, false, 200, true),
            (404, Less, false, 200, false),
        ] {
            let holds = status_holds(u16::cmp(&code, &value), compare, negated);
            assert_eq!(holds, want, "{code} {compare:?} {negated} {value}");
        }
    }
}
