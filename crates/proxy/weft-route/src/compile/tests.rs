//! What route messages compile to, and how bad ones are contained.

use super::*;
use crate::{AppendAction, ClusterChoice, FaultAbort, PathMatcher, Severity};
use http::StatusCode;
use weft_proto::envoy::config::route::v3::RouteConfiguration;

fn compile(yaml: &str) -> (Option<CompiledTable>, Vec<ConfigError>) {
    let message: RouteConfiguration = weft_proto::json::from_yaml(yaml).unwrap();
    compile_table(&message, &mut Pool::default())
}

/// Compiles a single route of one virtual host.
fn one(route: &str) -> (Arc<Route>, Vec<ConfigError>) {
    let (table, errors) =
        compile(&format!("{{name: r, virtual_hosts: [{{name: h, domains: ['*'], routes: [{route}]}}]}}"));
    (table.unwrap().virtual_hosts[0].routes[0].clone(), errors)
}

#[test]
fn forward_defaults_and_fields() {
    let (route, errors) = one(
        r#"{match: {prefix: /}, metadata: {filter_metadata: {weft: {kind: VirtualService, namespace: default, name: reviews, path: "spec.http[0]"}}},
           decorator: {operation: op}, route: {cluster: c}}"#,
    );
    assert_eq!(errors, vec![]);
    let Action::Forward(forward) = &route.action else { panic!("forwards") };
    assert_eq!(forward.timeout, Some(Duration::from_secs(15)));
    assert_eq!((forward.idle_timeout, forward.max_grpc_timeout), (None, None));
    assert_eq!(forward.cluster_not_found, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(route.origin.as_ref().unwrap().to_string(), "VirtualService default/reviews spec.http[0]");
    assert_eq!(route.operation.as_deref(), Some("op"));

    let (route, errors) = one(
        r#"{match: {prefix: /}, route: {cluster: c, timeout: 0s, idle_timeout: 0s, max_grpc_timeout: 0s, cluster_not_found_response_code: NOT_FOUND,
           upgrade_configs: [{upgrade_type: Websocket}, {upgrade_type: CONNECT, enabled: false}],
           metadata_match: {filter_metadata: {envoy.lb: {version: v1}}},
           request_mirror_policies: [{cluster: m, runtime_fraction: {default_value: {numerator: 5, denominator: TEN_THOUSAND}}}],
           retry_policy: {retry_on: "5xx, connect-failure,unavailable", num_retries: 3, per_try_timeout: 2s, retry_back_off: {base_interval: 0.1s},
             retriable_status_codes: [503], host_selection_retry_max_attempts: 5,
             retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts}]}}}"#,
    );
    assert_eq!(errors, vec![]);
    let Action::Forward(forward) = &route.action else { panic!("forwards") };
    assert_eq!((forward.timeout, forward.idle_timeout), (None, Some(Duration::ZERO)));
    assert_eq!(forward.max_grpc_timeout, Some(Duration::ZERO));
    assert_eq!(forward.cluster_not_found, StatusCode::NOT_FOUND);
    assert_eq!(forward.upgrades, Some(vec![("websocket".into(), true), ("connect".into(), false)]));
    assert_eq!(forward.metadata_match, vec![("version".into(), "v1".into())]);
    assert_eq!((&*forward.mirrors[0].cluster, forward.mirrors[0].fraction), ("m", 500));
    let retry = forward.retry.as_ref().unwrap();
    assert!(retry.on.server_error && retry.on.connect_failure && retry.on.grpc_unavailable && !retry.on.reset);
    assert_eq!((retry.attempts, retry.per_try_timeout), (3, Some(Duration::from_secs(2))));
    assert_eq!((retry.base_interval, retry.max_interval), (Duration::from_millis(100), Duration::from_secs(1)));
    assert_eq!((retry.avoid_previous_hosts, retry.host_attempts), (true, 5));
}

#[test]
fn filters_of_routes() {
    let fault = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault";
    let cors = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy";
    let wrapper = "type.googleapis.com/envoy.config.route.v3.FilterConfig";
    let (route, errors) = one(&format!(
        r#"{{match: {{prefix: /}}, route: {{cluster: c}}, typed_per_filter_config: {{
            envoy.filters.http.fault: {{"@type": {fault}, delay: {{percentage: {{numerator: 100}}, fixed_delay: 7s}},
              abort: {{percentage: {{numerator: 1, denominator: MILLION}}, http_status: 500}}}},
            envoy.filters.http.cors: {{"@type": {cors}, allow_origin_string_match: [{{exact: "https://a"}}], allow_methods: GET, allow_credentials: true,
              filter_enabled: {{default_value: {{numerator: 100}}}}}},
            on: {{"@type": {wrapper}, disabled: false}},
            off: {{"@type": {wrapper}, disabled: true}}}}}}"#
    ));
    assert_eq!(errors, vec![]);
    let fault = route.filters.fault.as_ref().unwrap();
    assert_eq!(fault.delay, Some((Duration::from_secs(7), 1_000_000)));
    assert!(matches!(fault.abort, Some((FaultAbort::Http(StatusCode::INTERNAL_SERVER_ERROR), 1))));
    let cors = route.filters.cors.as_ref().unwrap();
    assert!(cors.credentials && cors.forward_unmatched_preflights);
    assert_eq!(cors.methods.as_ref().unwrap(), "GET");
    let switched: Vec<_> = route.filters.switched.iter().map(|(name, on)| (&**name, *on)).collect();
    let want = [("envoy.filters.http.cors", true), ("envoy.filters.http.fault", true), ("off", false), ("on", true)];
    assert_eq!(switched, want);
}

#[test]
fn bad_routes_answer_for_themselves() {
    for (route, path, message) in [
        ("{match: {prefix: /}, route: {cluster: c, hedge_policy: {}}}", "route.hedge_policy", "not supported"),
        (
            "{match: {prefix: /}, route: {cluster: c, rate_limits: [{actions: [{source_cluster: {}}]}]}}",
            "route.rate_limits[0].actions[0].source_cluster",
            "not supported",
        ),
        (
            "{match: {prefix: /}, route: {cluster: c, rate_limits: [{actions: [{generic_key: {descriptor_value: '%REQ(x)%'}}]}]}}",
            "route.rate_limits[0].actions[0].generic_key.descriptor_value",
            "must be a text",
        ),
        (
            "{match: {prefix: /}, route: {cluster: c, request_mirror_policies: [{cluster: m, cluster_header: x}]}}",
            "route.request_mirror_policies[0]",
            "must set one of",
        ),
        ("{match: {prefix: /}, route: {}}", "route", "must name a cluster"),
        ("{match: {prefix: /}, route: {cluster: c, timeout: -1s}}", "route.timeout", "must not be negative"),
        (
            "{match: {prefix: /, dynamic_metadata: [{filter: x}]}, route: {cluster: c}}",
            "match.dynamic_metadata[0].path",
            "at least one key",
        ),
        ("{match: {safe_regex: {regex: '('}}, route: {cluster: c}}", "match.safe_regex.regex", "RE2"),
        ("{match: {}, route: {cluster: c}}", "match", "must say how the path is matched"),
        (
            "{match: {prefix: /, headers: [{name: 'a b'}]}, route: {cluster: c}}",
            "match.headers[0].name",
            "not a header name",
        ),
        (
            "{match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: a}]}}}",
            "route.weighted_clusters",
            "more than 0",
        ),
        ("{match: {prefix: /}, direct_response: {status: 99}}", "direct_response.status", "200 to 599"),
        (
            "{match: {prefix: /}, direct_response: {status: 200, body: {filename: /etc/passwd}}}",
            "direct_response.body",
            "inline",
        ),
        ("{match: {prefix: /}, redirect: {port_redirect: 70000}}", "redirect.port_redirect", "65535"),
        (
            "{match: {prefix: /}, redirect: {path_redirect: \"/a\\r\\nb\"}}",
            "redirect.path_redirect",
            "control characters",
        ),
        ("{match: {prefix: /}, redirect: {host_redirect: 'a b'}}", "redirect.host_redirect", "not a host"),
        ("{match: {prefix: /}}", "", "must set one of route"),
        (
            "{match: {prefix: /}, route: {cluster: c}, request_headers_to_remove: [':path']}",
            "request_headers_to_remove[0]",
            "must not be removed",
        ),
        (
            "{match: {prefix: /}, route: {cluster: c}, request_headers_to_add: [{header: {key: ':path', value: x}}]}",
            "request_headers_to_add[0].header.key",
            "only :authority",
        ),
        (
            "{match: {prefix: /}, route: {cluster: c}, request_headers_to_add: [{header: {key: x, value: 'a%b'}}]}",
            "request_headers_to_add[0].header.value",
            "%%",
        ),
        (
            "{match: {prefix: /}, route: {cluster: c, regex_rewrite: {pattern: {regex: a}, substitution: '\\1'}}}",
            "route.regex_rewrite.substitution",
            "not a group",
        ),
        ("{match: {prefix: /}, route: {cluster: c, prefix_rewrite: /a, path_rewrite: /b}}", "route", "only one of"),
        (
            "{match: {prefix: /}, route: {cluster: c}, typed_per_filter_config: {x: {'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}}}",
            "typed_per_filter_config[\"x\"]",
            "not supported on routes",
        ),
    ] {
        let (compiled, errors) = one(route);
        assert!(
            matches!(&compiled.action, Action::Unusable(reason) if reason.contains(message)),
            "{route}: {:?}",
            compiled.action
        );
        let [error] = errors.as_slice() else { panic!("{route}: {errors:?}") };
        let at = if path.is_empty() {
            "virtual_hosts[0].routes[0]".into()
        } else {
            format!("virtual_hosts[0].routes[0].{path}")
        };
        assert_eq!((error.resource.as_str(), error.path.as_str()), ("route r", at.as_str()), "{route}");
        assert!(error.message.contains(message), "{error}");
        assert_eq!(error.severity, Severity::Degraded, "{route}: the table is applied");
    }
}

#[test]
fn unreadable_condition_covers_more_not_less() {
    let (route, _) =
        one("{match: {prefix: /admin, headers: [{name: x, safe_regex_match: {regex: '('}}]}, route: {cluster: c}}");
    assert!(matches!(&route.matcher.path, PathMatcher::Prefix(p) if &**p == "/admin"));
    assert!(route.matcher.headers.is_empty());
}

#[test]
fn bad_virtual_host_keeps_its_domains() {
    let (table, errors) = compile(
        r#"{name: r, virtual_hosts: [{name: bad, domains: [a], rate_limits: [{stage: 1}], routes: [{match: {prefix: /}, route: {cluster: c}}]},
            {name: good, domains: [b, "c*d", ""], routes: [{match: {prefix: /}, route: {cluster: c}}]}]}"#,
    );
    let hosts = table.unwrap().virtual_hosts;
    assert!(matches!(&hosts[0].routes[0].action, Action::Unusable(_)));
    assert_eq!(hosts[0].domains, vec!["a".into()]);
    assert!(matches!(&hosts[1].routes[0].action, Action::Forward(_)));
    assert_eq!(hosts[1].domains, vec!["b".into()]);
    let shown: Vec<_> = errors.iter().map(|e| e.path.as_str()).collect();
    assert_eq!(
        shown,
        ["virtual_hosts[0].rate_limits[0].actions", "virtual_hosts[1].domains[1]", "virtual_hosts[1].domains[2]"]
    );
}

#[test]
fn bad_table_is_refused() {
    let (table, errors) = compile("{name: r, vhost_header: x-host}");
    assert!(table.is_none());
    assert_eq!(errors[0].to_string(), "route r: vhost_header: is not supported by weft-proxy; remove the field");
    assert_eq!(errors[0].severity, Severity::Refused);
}

#[test]
fn word_that_never_retries_is_a_warning() {
    let (route, errors) = one("{match: {prefix: /}, route: {cluster: c, retry_policy: {retry_on: 'reset,bogus'}}}");
    let Action::Forward(forward) = &route.action else { panic!("forwards") };
    assert!(matches!(&forward.cluster, ClusterChoice::One(_)));
    assert!(forward.retry.as_ref().unwrap().on.reset);
    assert!(errors[0].message.contains("bogus"));
}

#[test]
fn actions_of_additions() {
    let (route, errors) = one(r#"{match: {prefix: /}, route: {cluster: c}, request_headers_to_add: [
            {header: {key: a, value: "1"}}, {header: {key: a, value: "1"}, append: false}, {header: {key: a, value: "1"}, append_action: ADD_IF_ABSENT}]}"#);
    assert_eq!(errors, vec![]);
    let actions: Vec<_> = route.headers.request.add.iter().map(|a| a.append).collect();
    assert_eq!(actions, [AppendAction::AppendOrAdd, AppendAction::OverwriteOrAdd, AppendAction::AddIfAbsent]);
}
