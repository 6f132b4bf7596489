//! What RBAC messages compile to, and what is refused by name.

use super::*;
use weft_proto::envoy::config::listener::v3::{Filter, filter};
use weft_route::{ConfigError, Pool};

/// Compiles a filter as Envoy's YAML has it (`name`, `typedConfig`).
fn compile(yaml: &str) -> (Rbac, Vec<ConfigError>) {
    let filter: Filter = weft_proto::json::from_yaml(yaml).unwrap();
    let Some(filter::ConfigType::TypedConfig(any)) = filter.config_type else { panic!("has a config") };
    let mut pool = Pool::default();
    let mut compiler = Compiler::new("listener l", &mut pool);
    let rbac = if any.type_url.contains(".network.") {
        compile_network(&weft_proto::unpack(&any).unwrap(), &mut compiler, &Path::ROOT)
    } else {
        compile_http(&weft_proto::unpack(&any).unwrap(), &mut compiler, &Path::ROOT)
    };
    (rbac, compiler.errors.into_list())
}

fn http(policy: &str) -> (Rbac, Vec<ConfigError>) {
    compile(&format!(
        "{{name: r, typedConfig: {{'@type': type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {{policies: {{p: {policy}}}}}}}}}"
    ))
}

#[test]
fn what_cannot_be_evaluated_is_reported_and_fails_closed() {
    for (policy, path, message) in [
        (
            "{permissions: [{matcher: {name: x}}], principals: [{any: true}]}",
            "permissions[0].matcher",
            "extension \"x\"",
        ),
        ("{permissions: [{any: false}], principals: [{any: true}]}", "permissions[0].any", "must be true"),
        ("{permissions: [{}], principals: [{any: true}]}", "permissions[0]", "must set a rule"),
        ("{permissions: [{any: true}], principals: [{}]}", "principals[0]", "must set an identifier"),
        (
            "{permissions: [{any: true}], principals: [{custom: {name: yy}}]}",
            "principals[0].custom",
            "extension \"yy\"",
        ),
        (
            "{permissions: [{any: true}], principals: [{filter_state: {key: zz, string_match: {exact: a}}}]}",
            "principals[0].filter_state.key",
            "io.istio.peer_principal",
        ),
        ("{permissions: [{any: true}], principals: [{any: true}], condition: {id: 1}}", "condition", "expressions"),
        (
            "{permissions: [{destination_ip: {address_prefix: x}}], principals: [{any: true}]}",
            "permissions[0].destination_ip",
            "not an IP address",
        ),
        (
            "{permissions: [{destination_ip: {address_prefix: 1.2.3.4, prefix_len: 33}}], principals: [{any: true}]}",
            "permissions[0].destination_ip",
            "too long",
        ),
        (
            "{permissions: [{destination_port: 70000}], principals: [{any: true}]}",
            "permissions[0].destination_port",
            "65535",
        ),
        (
            "{permissions: [{header: {name: x, safe_regex_match: {regex: '('}}}], principals: [{any: true}]}",
            "permissions[0].header.safe_regex_match.regex",
            "RE2",
        ),
        (
            "{permissions: [{uri_template: {name: t}}], principals: [{any: true}]}",
            "permissions[0].uri_template.typed_config",
            "must be set",
        ),
        (
            "{permissions: [{sourced_metadata: {metadata_source: ROUTE}}], principals: [{any: true}]}",
            "permissions[0].sourced_metadata.metadata_source",
            "DYNAMIC",
        ),
        (
            "{permissions: [{metadata: {filter: f, value: {bool_match: true}}}], principals: [{any: true}]}",
            "permissions[0].metadata.path",
            "at least one key",
        ),
        (
            "{permissions: [{metadata: {filter: f, path: [{key: k}], invert: true, value: {}}}], principals: [{any: true}]}",
            "permissions[0].metadata.value",
            "must set string_match",
        ),
    ] {
        let (rbac, errors) = http(policy);
        let [error] = errors.as_slice() else { panic!("{policy}: {errors:?}") };
        assert_eq!(error.path, format!("rules.policies[\"p\"].{path}"), "{policy}");
        assert!(error.message.contains(message), "{error}");
        assert_eq!(error.severity, weft_route::Severity::Degraded);
        let rules = rbac.rules.unwrap();
        assert!(format!("{:?}", rules.policies).contains("Unsupported"), "{policy}");
    }
}

#[test]
fn nesting_is_bounded() {
    let mut policy = "{any: true}".to_string();
    for _ in 0..MAX_DEPTH + 2 {
        policy = format!("{{not_rule: {policy}}}");
    }
    let (_, errors) = http(&format!("{{permissions: [{policy}], principals: [{{any: true}}]}}"));
    assert!(errors[0].message.contains("nested deeper"), "{errors:?}");
}

#[test]
fn http_conditions_do_not_belong_to_connections() {
    for rule in ["header: {name: x}", "url_path: {path: {exact: /}}"] {
        let (rbac, errors) = compile(&format!(
            "{{name: r, typedConfig: {{'@type': type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: t, rules: {{policies: {{p: {{permissions: [{{{rule}}}], principals: [{{any: true}}]}}}}}}}}}}"
        ));
        assert_eq!(errors.len(), 1, "{rule}");
        assert_eq!(rbac.stat_prefix, "t");
    }
}

#[test]
fn fields_that_change_the_whole_filter_refuse_it() {
    let (_, errors) = compile(
        "{name: r, typedConfig: {'@type': type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, matcher: {matcher_list: {}}}}",
    );
    assert_eq!((errors[0].path.as_str(), errors[0].severity), ("matcher", weft_route::Severity::Refused));
}
