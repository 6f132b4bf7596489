//! Active health checks of a cluster.

use super::Ctx;
use crate::{CheckIntervals, EndpointCheck, HealthCheck, HttpProbe, Probe};
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use weft_proto::envoy::config::core::v3 as core;
use weft_proto::envoy::config::core::v3::health_check as proto;
use weft_proto::envoy::config::endpoint::v3::endpoint;
use weft_proto::envoy::r#type::v3::{CodecClientType, Int64Range};
use weft_route::error::Path;
use weft_route::refuse_set;

/// Envoy's time between checks while a cluster has no traffic.
const NO_TRAFFIC: Duration = Duration::from_secs(60);
/// No check is made more often.
const FASTEST: Duration = Duration::from_millis(10);
/// Bytes of an answer's body that are looked at unless set, and at most.
const BODY: u64 = 1024;
const MAX_BODY: u64 = 1024 * 1024;

impl Ctx<'_> {
    /// The cluster's health check; Envoy takes one at most.
    #[allow(deprecated)]
    pub(crate) fn health_check(
        &mut self,
        list: &[core::HealthCheck],
        cluster: &str,
        path: &Path<'_>,
    ) -> Option<Arc<HealthCheck>> {
        let path = &path.item("health_checks", 0);
        if list.len() > 1 {
            self.c.errors.refuse(path, "there may be one health check at most");
        }
        let core::HealthCheck {
            timeout,
            interval,
            initial_jitter,
            interval_jitter,
            interval_jitter_percent,
            unhealthy_threshold,
            healthy_threshold,
            alt_port,
            reuse_connection,
            no_traffic_interval,
            no_traffic_healthy_interval,
            unhealthy_interval,
            unhealthy_edge_interval,
            healthy_edge_interval,
            event_log_path,
            event_logger,
            event_service,
            always_log_health_check_failures,
            always_log_health_check_success,
            tls_options,
            transport_socket_match_criteria,
            health_checker,
        } = list.first()?;
        refuse_set!(self.c.errors, path, event_service, tls_options, transport_socket_match_criteria);
        // As in Envoy: health_check_config of an endpoint has it.
        self.leave_out(alt_port.is_some(), &path.field("alt_port"));
        // Changes of health go to the log of the proxy.
        self.leave_out(!event_log_path.is_empty(), &path.field("event_log_path"));
        self.leave_out(!event_logger.is_empty(), &path.field("event_logger"));
        self.leave_out(*always_log_health_check_failures, &path.field("always_log_health_check_failures"));
        self.leave_out(*always_log_health_check_success, &path.field("always_log_health_check_success"));
        let mut time = |set: &Option<prost_types::Duration>, field| self.c.duration(set.as_ref(), &path.field(field));
        let (limit, usual) = (time(timeout, "timeout"), time(interval, "interval"));
        let jitters = [time(initial_jitter, "initial_jitter"), time(interval_jitter, "interval_jitter")];
        let quiet = time(no_traffic_interval, "no_traffic_interval").unwrap_or(NO_TRAFFIC);
        let quiet_healthy = time(no_traffic_healthy_interval, "no_traffic_healthy_interval").unwrap_or(quiet);
        let unhealthy = time(unhealthy_interval, "unhealthy_interval");
        let unhealthy_edge = time(unhealthy_edge_interval, "unhealthy_edge_interval");
        let healthy_edge = time(healthy_edge_interval, "healthy_edge_interval");
        for (set, field) in [(limit, "timeout"), (usual, "interval")] {
            if set.is_none_or(|set| set.is_zero()) {
                self.c.errors.refuse(&path.field(field), "must be set, and above 0");
            }
        }
        for (set, field) in [(unhealthy_threshold, "unhealthy_threshold"), (healthy_threshold, "healthy_threshold")] {
            if set.is_none() {
                self.c.errors.refuse(&path.field(field), "must be set");
            }
        }
        let usual = usual.unwrap_or_default().max(FASTEST);
        let unhealthy = unhealthy.unwrap_or(usual).max(FASTEST);
        Some(Arc::new(HealthCheck {
            timeout: limit.unwrap_or_default(),
            intervals: CheckIntervals {
                healthy: usual,
                unhealthy,
                healthy_edge: healthy_edge.unwrap_or(usual).max(FASTEST),
                unhealthy_edge: unhealthy_edge.unwrap_or(unhealthy).max(FASTEST),
                no_traffic: [quiet.max(FASTEST), quiet_healthy.max(FASTEST)],
            },
            initial_jitter: jitters[0].unwrap_or_default(),
            jitter: jitters[1].unwrap_or_default(),
            jitter_percent: *interval_jitter_percent,
            unhealthy_threshold: unhealthy_threshold.unwrap_or(1),
            healthy_threshold: healthy_threshold.unwrap_or(1),
            reuse_connection: reuse_connection.unwrap_or(true),
            probe: self.probe(health_checker.as_ref(), cluster, path)?,
        }))
    }

    /// How an endpoint is checked.
    pub(super) fn endpoint_check(
        &mut self,
        message: Option<&endpoint::HealthCheckConfig>,
        path: &Path<'_>,
    ) -> EndpointCheck {
        let Some(message) = message else { return EndpointCheck::default() };
        let endpoint::HealthCheckConfig { port_value, hostname, address, disable_active_health_check } = message;
        refuse_set!(self.c.errors, path, hostname, address);
        let port = u16::try_from(*port_value).ok();
        if port.is_none() {
            let what = format!("{port_value} is not a port; it must be at most 65535");
            self.c.errors.refuse(&path.field("port_value"), what);
        }
        EndpointCheck { port: port.filter(|port| *port > 0), off: *disable_active_health_check }
    }

    fn probe(&mut self, checker: Option<&proto::HealthChecker>, cluster: &str, path: &Path<'_>) -> Option<Probe> {
        match checker {
            Some(proto::HealthChecker::HttpHealthCheck(http)) => {
                self.http_probe(http, cluster, &path.field("http_health_check")).map(Probe::Http)
            }
            Some(proto::HealthChecker::TcpHealthCheck(tcp)) => {
                let path = path.field("tcp_health_check");
                let proto::TcpHealthCheck { send, receive, proxy_protocol_config } = tcp;
                refuse_set!(self.c.errors, path, proxy_protocol_config);
                let send = send.as_ref().map(|s| self.payload(s, &path.field("send"))).unwrap_or_default();
                Some(Probe::Tcp { send, receive: self.payloads(receive, &path) })
            }
            Some(proto::HealthChecker::GrpcHealthCheck(grpc)) => {
                let path = path.field("grpc_health_check");
                let proto::GrpcHealthCheck { service_name, authority, initial_metadata } = grpc;
                let host = if authority.is_empty() { cluster } else { authority };
                Some(Probe::Grpc {
                    service: service_name.clone(),
                    authority: self.host_value(host, &path.field("authority"))?,
                    headers: self.plain_headers(initial_metadata, &path, "initial_metadata"),
                })
            }
            Some(proto::HealthChecker::CustomHealthCheck(custom)) => {
                let message = format!("{:?} is not supported by weft-proxy", custom.name);
                self.c.errors.refuse(&path.field("custom_health_check"), message);
                None
            }
            None => {
                let what = "must say what to ask: http_health_check, tcp_health_check or grpc_health_check";
                self.c.errors.refuse(path, what);
                None
            }
        }
    }

    fn http_probe(&mut self, message: &proto::HttpHealthCheck, cluster: &str, path: &Path<'_>) -> Option<HttpProbe> {
        let proto::HttpHealthCheck {
            host,
            path: target,
            send,
            receive,
            response_buffer_size,
            request_headers_to_add,
            request_headers_to_remove,
            expected_statuses,
            retriable_statuses,
            codec_client_type,
            service_name_matcher,
            method,
        } = message;
        refuse_set!(self.c.errors, path, send, request_headers_to_remove, service_name_matcher);
        let Some(target) = PathAndQuery::try_from(target.as_str()).ok().filter(|_| target.starts_with('/')) else {
            self.c.errors.refuse(&path.field("path"), format!("{target:?} is not a path; an example is /healthz"));
            return None;
        };
        let http2 = match CodecClientType::try_from(*codec_client_type) {
            Ok(CodecClientType::Http1) => false,
            Ok(CodecClientType::Http2) => true,
            _ => {
                self.c.errors.refuse(&path.field("codec_client_type"), "must be HTTP1 or HTTP2");
                false
            }
        };
        let expected = match &expected_statuses[..] {
            [] => Vec::from([Range { start: 200, end: 201 }]),
            list => self.status_ranges(list, &path.field("expected_statuses")),
        };
        Some(HttpProbe {
            host: match host.is_empty() {
                true => None,
                false => Some(self.host_value(host, &path.field("host"))?),
            },
            cluster: self.host_value(cluster, &path.field("host"))?,
            path: target,
            method: self.method(*method, &path.field("method")),
            headers: self.plain_headers(request_headers_to_add, path, "request_headers_to_add"),
            expected,
            retriable: self.status_ranges(retriable_statuses, &path.field("retriable_statuses")),
            http2,
            receive: self.payloads(receive, path),
            most: response_buffer_size.unwrap_or(BODY).min(MAX_BODY) as usize,
        })
    }

    fn method(&mut self, method: i32, path: &Path<'_>) -> Method {
        match core::RequestMethod::try_from(method) {
            Ok(core::RequestMethod::MethodUnspecified | core::RequestMethod::Get) => Method::GET,
            Ok(core::RequestMethod::Head) => Method::HEAD,
            Ok(core::RequestMethod::Post) => Method::POST,
            Ok(core::RequestMethod::Put) => Method::PUT,
            Ok(core::RequestMethod::Delete) => Method::DELETE,
            Ok(core::RequestMethod::Options) => Method::OPTIONS,
            Ok(core::RequestMethod::Trace) => Method::TRACE,
            Ok(core::RequestMethod::Patch) => Method::PATCH,
            _ => {
                self.c.errors.refuse(path, "is not a method of a health check");
                Method::GET
            }
        }
    }

    fn host_value(&mut self, host: &str, path: &Path<'_>) -> Option<HeaderValue> {
        let value = HeaderValue::from_str(host).ok();
        if value.is_none() {
            self.c.errors.refuse(path, format!("{host:?} cannot be a host"));
        }
        value
    }

    /// Headers with values that are texts, not formats.
    fn plain_headers(
        &mut self,
        list: &[core::HeaderValueOption],
        path: &Path<'_>,
        field: &'static str,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = Vec::with_capacity(list.len());
        for (i, option) in list.iter().enumerate() {
            let header = option.header.clone().unwrap_or_default();
            let name = HeaderName::try_from(&header.key).ok();
            let value = HeaderValue::from_str(&header.value).ok().filter(|_| !header.value.contains('%'));
            match name.zip(value) {
                Some(pair) => headers.push(pair),
                None => self.c.errors.refuse(&path.item(field, i), "must be a header and a plain text"),
            }
        }
        headers
    }

    fn status_ranges(&mut self, list: &[Int64Range], path: &Path<'_>) -> Vec<Range<u16>> {
        let mut ranges = Vec::with_capacity(list.len());
        for range in list {
            match (u16::try_from(range.start), u16::try_from(range.end)) {
                (Ok(start @ 100..600), Ok(end @ 101..=600)) if start < end => ranges.push(start..end),
                _ => {
                    let what = format!("[{}, {}) is not a range of statuses, 100 to 600", range.start, range.end);
                    self.c.errors.refuse(path, what);
                }
            }
        }
        ranges
    }

    fn payloads(&mut self, list: &[proto::Payload], path: &Path<'_>) -> Vec<Vec<u8>> {
        list.iter().enumerate().map(|(i, payload)| self.payload(payload, &path.item("receive", i))).collect()
    }

    fn payload(&mut self, payload: &proto::Payload, path: &Path<'_>) -> Vec<u8> {
        let bytes = match &payload.payload {
            Some(proto::payload::Payload::Text(hex)) => hex_bytes(hex),
            Some(proto::payload::Payload::Binary(bytes)) => Some(bytes.clone()),
            None => None,
        };
        let bytes = bytes.filter(|bytes| !bytes.is_empty());
        if bytes.is_none() {
            self.c.errors.refuse(path, "must hold bytes: text in hexadecimal, or binary");
        }
        bytes.unwrap_or_default()
    }
}

fn hex_bytes(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal() {
        for (text, want) in
            [("", Some(vec![])), ("00fF", Some(vec![0, 255])), ("0", None), ("zz", None), ("+1", None), ("é", None)]
        {
            assert_eq!(hex_bytes(text), want, "{text}");
        }
    }
}
