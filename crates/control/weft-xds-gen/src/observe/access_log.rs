//! Access logs: which providers write one, and in what format.

use super::{Bound, Side};
use crate::pb::accesslog::{
    AccessLog, AccessLogFilter, AndFilter, ComparisonFilter, ExtensionFilter, ResponseFlagFilter, StatusCodeFilter,
    access_log::ConfigType, access_log_filter::FilterSpecifier, comparison_filter::Op, extension_filter,
};
use crate::pb::core::{RuntimeUInt32, SubstitutionFormatString, substitution_format_string::Format};
use crate::pb::{self, value};
use crate::scope::View;
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use weft_k8s_api::istio::{AccessLogEncoding, AccessLogging, FileAccessLogProvider, MeshConfig};
use weft_proto::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log::AccessLogFormat};
use weft_proto::{Any, Struct, pack};

/// Provider that the mesh config has without being told.
const BUILT_IN: &str = "envoy";
/// File of providers that name none.
const STDOUT: &str = "/dev/stdout";
/// Format of text logs, unless another is set (spec 3:§3.8).
const TEXT_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
    %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
    \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
    \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% \
    %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";
/// Format of JSON logs, unless another is set.
const JSON_FORMAT: [(&str, &str); 24] = [
    ("authority", "%REQ(:AUTHORITY)%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("duration", "%DURATION%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("route_name", "%ROUTE_NAME%"),
    ("start_time", "%START_TIME%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
];

/// Logs of requests and connections, and of connections that no filter chain takes.
pub(super) fn configure(view: View<'_>, bound: &[Bound], side: Side) -> (Vec<AccessLog>, Vec<AccessLog>) {
    let mesh = view.mesh();
    let defaults = default_providers(mesh);
    let levels: Vec<&[AccessLogging]> =
        bound.iter().map(|p| p.spec.access_logging.as_slice()).filter(|l| !l.is_empty()).collect();
    let logs = if levels.is_empty() && defaults.is_empty() {
        mesh_file(mesh).into_iter().collect()
    } else {
        from_providers(view, active_providers(&levels, &defaults, side))
    };
    let unmatched = if mesh.disable_envoy_listener_log { Vec::new() } else { logs.iter().map(no_route_only).collect() };
    (logs, unmatched)
}

fn default_providers(mesh: &MeshConfig) -> Vec<String> {
    mesh.default_providers.as_ref().map(|p| p.access_logging.clone()).unwrap_or_default()
}

/// The log that `accessLogFile` asks for.
fn mesh_file(mesh: &MeshConfig) -> Option<AccessLog> {
    if mesh.access_log_file.is_empty() {
        return None;
    }
    Some(file(&mesh.access_log_file, mesh_format(mesh), false))
}

fn mesh_format(mesh: &MeshConfig) -> Format {
    match mesh.access_log_encoding {
        AccessLogEncoding::Text => text_format(&mesh.access_log_format),
        AccessLogEncoding::Json => json_format(serde_json::from_str(&mesh.access_log_format).ok().as_ref()),
    }
}

/// Providers that write a log for this side, each with the filter that was set last. Levels go from wide to narrow; what
/// a narrower level sets replaces what a wider one did.
fn active_providers(levels: &[&[AccessLogging]], defaults: &[String], side: Side) -> BTreeMap<String, Option<String>> {
    if levels.is_empty() {
        return defaults.iter().map(|name| (name.clone(), None)).collect();
    }
    let concerns = |rule: &&AccessLogging| rule.r#match.as_ref().is_none_or(|m| side.is(m.mode));
    let names = |rule: &AccessLogging| rule.providers.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    let mut in_scope: BTreeSet<String> = defaults.iter().cloned().collect();
    let mut filters: BTreeMap<String, Option<String>> = BTreeMap::new();
    for level in levels {
        let mut named = BTreeSet::new();
        for rule in level.iter().filter(concerns) {
            for name in names(rule) {
                filters.insert(name.clone(), rule.filter.as_ref().map(|f| f.expression.clone()));
                named.insert(name);
            }
        }
        if !named.is_empty() {
            in_scope = named;
        }
    }
    let mut active = BTreeMap::new();
    let mut inherited = defaults.to_vec();
    for rule in levels.iter().flat_map(|level| level.iter()) {
        let own = names(rule);
        if !own.is_empty() {
            inherited = own;
        }
        for name in inherited.iter().filter(|name| in_scope.contains(*name)) {
            if rule.disabled == Some(true) {
                if concerns(&rule) {
                    active.remove(name);
                }
            } else if concerns(&rule) {
                let own_filter = rule.filter.as_ref().map(|f| f.expression.clone());
                active.insert(name.clone(), own_filter.or_else(|| filters.get(name).cloned().flatten()));
            }
        }
    }
    active
}

fn from_providers(view: View<'_>, active: BTreeMap<String, Option<String>>) -> Vec<AccessLog> {
    let mesh = view.mesh();
    let log = |(name, filter): (String, Option<String>)| {
        let provider = mesh.extension_provider(&name)?.envoy_file_access_log.as_ref()?;
        let mut log = provider_file(mesh, &name, provider);
        log.filter = filter.and_then(|expression| log_filter(&expression, view.scope.key.weft));
        Some(log)
    };
    active.into_iter().filter_map(log).collect()
}

fn provider_file(mesh: &MeshConfig, name: &str, provider: &FileAccessLogProvider) -> AccessLog {
    let path = if provider.path.is_empty() { STDOUT } else { &provider.path };
    let format = match &provider.log_format {
        Some(format) => match (&format.text, &format.labels) {
            (None, Some(labels)) => json_format(Some(&serde_json::Value::Object(labels.clone()))),
            (text, _) => text_format(text.as_deref().unwrap_or_default()),
        },
        None if name == BUILT_IN && !provider.omit_empty_values => mesh_format(mesh),
        None => text_format(""),
    };
    file(path, format, provider.omit_empty_values)
}

fn text_format(text: &str) -> Format {
    let text = match text {
        "" => TEXT_FORMAT.to_string(),
        given if given.ends_with('\n') => given.to_string(),
        given => format!("{given}\n"),
    };
    Format::TextFormatSource(pb::inline_string(text))
}

fn json_format(given: Option<&serde_json::Value>) -> Format {
    let fields = given.map(value::json_to_struct).filter(|s| !s.fields.is_empty());
    let default = || Struct { fields: JSON_FORMAT.iter().map(|(k, v)| (k.to_string(), value::text(*v))).collect() };
    Format::JsonFormat(fields.unwrap_or_else(default))
}

fn file(path: &str, format: Format, omit_empty_values: bool) -> AccessLog {
    let log = FileAccessLog {
        path: path.into(),
        access_log_format: Some(AccessLogFormat::LogFormat(SubstitutionFormatString {
            omit_empty_values,
            format: Some(format),
            ..Default::default()
        })),
    };
    AccessLog {
        name: "envoy.access_loggers.file".into(),
        filter: None,
        config_type: Some(ConfigType::TypedConfig(pack(&log))),
    }
}

/// The same log, for connections that no filter chain takes.
fn no_route_only(log: &AccessLog) -> AccessLog {
    let unmatched = AccessLogFilter {
        filter_specifier: Some(FilterSpecifier::ResponseFlagFilter(ResponseFlagFilter { flags: vec!["NR".into()] })),
    };
    let filter = match &log.filter {
        None => unmatched,
        Some(own) => AccessLogFilter {
            filter_specifier: Some(FilterSpecifier::AndFilter(AndFilter { filters: vec![unmatched, own.clone()] })),
        },
    };
    AccessLog { filter: Some(filter), ..log.clone() }
}

/// A filter of a log, from a CEL expression. Comparisons of the status are a filter of their own; anything else is for
/// Envoy's CEL extension, which Weft's proxy has not: it then logs everything.
fn log_filter(expression: &str, weft: bool) -> Option<AccessLogFilter> {
    if let Some(filter) = status_filter(expression) {
        return Some(filter);
    }
    if weft {
        return None;
    }
    let type_url = "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter";
    let config =
        Any { type_url: type_url.into(), value: ExpressionFilter { expression: expression.into() }.encode_to_vec() };
    Some(AccessLogFilter {
        filter_specifier: Some(FilterSpecifier::ExtensionFilter(ExtensionFilter {
            name: "envoy.access_loggers.extension_filters.cel".into(),
            config_type: Some(extension_filter::ConfigType::TypedConfig(config)),
        })),
    })
}

/// `envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter`, which the generated schema leaves out.
#[derive(Clone, PartialEq, prost::Message)]
struct ExpressionFilter {
    #[prost(string, tag = "1")]
    expression: String,
}

/// `response.code` compared with a number.
fn status_filter(expression: &str) -> Option<AccessLogFilter> {
    let rest = expression.trim().strip_prefix("response.code")?.trim_start();
    let operators = [
        (">=", Op::Ge, 0),
        ("<=", Op::Le, 0),
        ("==", Op::Eq, 0),
        ("!=", Op::Ne, 0),
        (">", Op::Ge, 1),
        ("<", Op::Le, -1),
    ];
    let (text, op, shift) = operators.into_iter().find(|(text, ..)| rest.starts_with(text))?;
    let number: u32 = rest[text.len()..].trim().parse().ok()?;
    let value = RuntimeUInt32 {
        default_value: number.checked_add_signed(shift)?,
        // Envoy wants a key; this one is never set.
        runtime_key: "weft.dev/unset".into(),
    };
    Some(AccessLogFilter {
        filter_specifier: Some(FilterSpecifier::StatusCodeFilter(StatusCodeFilter {
            comparison: Some(ComparisonFilter { op: op as i32, value: Some(value) }),
        })),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(json: serde_json::Value) -> Vec<AccessLogging> {
        serde_json::from_value(json).unwrap()
    }

    fn active(levels: &[Vec<AccessLogging>], defaults: &[&str], side: Side) -> Vec<String> {
        let levels: Vec<&[AccessLogging]> = levels.iter().map(Vec::as_slice).collect();
        let defaults: Vec<String> = defaults.iter().map(|d| d.to_string()).collect();
        active_providers(&levels, &defaults, side).into_keys().collect()
    }

    #[test]
    fn narrower_levels_win() {
        let provider = |name: &str| serde_json::json!([{"providers": [{"name": name}]}]);
        assert_eq!(active(&[], &["d"], Side::Client), ["d"]);
        assert_eq!(active(&[level(provider("a"))], &["d"], Side::Client), ["a"]);
        assert_eq!(active(&[level(provider("a")), level(provider("b"))], &[], Side::Client), ["b"]);
        let off = level(serde_json::json!([{"disabled": true}]));
        assert_eq!(active(&[level(provider("a")), off], &[], Side::Client), Vec::<String>::new());
        let server = level(serde_json::json!([{"match": {"mode": "SERVER"}, "providers": [{"name": "a"}]}]));
        assert_eq!(active(std::slice::from_ref(&server), &[], Side::Client), Vec::<String>::new());
        assert_eq!(active(&[server], &[], Side::Server), ["a"]);
    }

    #[test]
    fn status_comparisons_need_no_cel() {
        for (text, want) in [
            ("response.code >= 400", Some((Op::Ge, 400))),
            ("response.code>499", Some((Op::Ge, 500))),
            ("response.code == 200", Some((Op::Eq, 200))),
            ("response.code >= 400 && true", None),
            ("request.path == '/'", None),
        ] {
            let got = status_filter(text).and_then(|f| match f.filter_specifier {
                Some(FilterSpecifier::StatusCodeFilter(f)) => f.comparison,
                _ => None,
            });
            assert_eq!(
                got.map(|c| (c.op, c.value.unwrap().default_value)),
                want.map(|(op, n)| (op as i32, n)),
                "{text}"
            );
        }
    }
}
