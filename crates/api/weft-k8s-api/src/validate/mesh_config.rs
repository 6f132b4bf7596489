//! Rules for the mesh config: reading it over the defaults, and what its fields may be.

use super::Report;
use super::check::{is_dns_label, set_of};
use super::destination_rule::{client_tls, connection_pool, locality_lb, outlier_detection};
use super::workload::check_probe;
use crate::de::{Dialect, UnknownField, read};
use crate::istio::{ConnectionSettings, ExtensionProvider, MeshConfig, MeshProxyConfig};
use crate::yaml;
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Reads the text of a mesh config (YAML or JSON) over the documented defaults. Unknown fields are added to `unknown`.
///
/// # Errors
/// A sentence with the field that is wrong.
pub fn parse_mesh_config(text: &str, unknown: &mut Vec<UnknownField>) -> Result<MeshConfig, String> {
    let value = yaml::value(text)?;
    // Read alone first: errors and unknown fields are then the user's own.
    read::<MeshConfig>(&value, "", Dialect::ProtoJson, unknown).map_err(|e| e.to_string())?;
    read(&MeshConfig::overlay(&value), "", Dialect::ProtoJson, &mut Vec::new()).map_err(|e| e.to_string())
}

/// Reads the text of a proxy config, as the annotation `proxy.istio.io/config` has it. Unset fields stay unset.
///
/// # Errors
/// A sentence with the field that is wrong.
pub fn parse_proxy_config(text: &str, unknown: &mut Vec<UnknownField>) -> Result<MeshProxyConfig, String> {
    let value = yaml::value(text)?;
    read(&value, "", Dialect::ProtoJson, unknown).map_err(|e| e.to_string())
}

/// `root` is where the config is inside its config map.
pub(super) fn check(config: &MeshConfig, root: &str, report: &mut Report) {
    let at = |field: &str| format!("{root}{field}");
    for (field, port) in [
        ("proxyListenPort", config.proxy_listen_port),
        ("proxyInboundListenPort", config.proxy_inbound_listen_port),
        ("proxyHttpPort", config.proxy_http_port),
    ] {
        report.optional_port(at(field), port);
    }
    report.duration(at("connectTimeout"), config.connect_timeout);
    report.duration(at("dnsRefreshRate"), config.dns_refresh_rate);
    report.duration_or_zero(at("protocolDetectionTimeout"), config.protocol_detection_timeout);
    for (i, domain) in [&config.trust_domain].into_iter().chain(&config.trust_domain_aliases).enumerate() {
        if !domain.is_empty() && !is_trust_domain(domain) {
            let field = if i == 0 { at("trustDomain") } else { at(&format!("trustDomainAliases[{}]", i - 1)) };
            let remedy = "use lower-case letters, digits, '.', '-' and '_', without spiffe://";
            report.error(field, format!("{domain:?} is not a trust domain; {remedy}"));
        }
    }
    if !config.root_namespace.is_empty() && !is_dns_label(&config.root_namespace) {
        report.error(at("rootNamespace"), format!("{:?} is not a namespace", config.root_namespace));
    }
    report.export_to(&at("defaultServiceExportTo"), &config.default_service_export_to);
    report.export_to(&at("defaultVirtualServiceExportTo"), &config.default_virtual_service_export_to);
    report.export_to(&at("defaultDestinationRuleExportTo"), &config.default_destination_rule_export_to);
    if let Some(locality) = &config.locality_lb_setting {
        locality_lb(locality, &at("localityLbSetting"), report);
    }
    if config.zone_aware_lb_setting.is_some() {
        report.warn(at("zoneAwareLbSetting"), "has no effect; use localityLbSetting");
    }
    if let Some(policy) = &config.default_traffic_policy {
        if let Some(pool) = &policy.connection_pool {
            connection_pool(pool, &at("defaultTrafficPolicy.connectionPool"), report);
        }
        if let Some(outlier) = &policy.outlier_detection {
            outlier_detection(outlier, &at("defaultTrafficPolicy.outlierDetection"), report);
        }
    }
    for (i, settings) in config.service_settings.iter().enumerate() {
        for (j, host) in settings.hosts.iter().enumerate() {
            report.host(at(&format!("serviceSettings[{i}].hosts[{j}]")), host, true);
        }
    }
    if let Some(proxy) = &config.default_config {
        proxy_settings(proxy, &at("defaultConfig"), report);
    }
    providers(config, root, report);
}

/// SPIFFE ID §2.1: lower-case letters, digits, dots, dashes and underscores; at most 255.
fn is_trust_domain(domain: &str) -> bool {
    domain.len() <= 255 && domain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b))
}

/// Settings that are read, and that no proxy, or not every proxy, goes by.
fn without_effect(proxy: &MeshProxyConfig, path: &str, report: &mut Report) {
    if let Some(settings) = &proxy.connection_settings {
        let limit = settings.listener_per_connection_buffer_limit_bytes;
        let known = ConnectionSettings { listener_per_connection_buffer_limit_bytes: limit, ..Default::default() };
        if *settings != known {
            let message = "has no effect but for listenerPerConnectionBufferLimitBytes, which holds at gateways";
            report.warn(format_args!("{path}.connectionSettings"), message);
        }
    }
    if proxy.proxy_headers.as_ref().is_some_and(|h| h.preserve_http1_header_case == Some(true)) {
        let message =
            "has no effect with Weft's own proxy, which writes names of headers in lower case; Envoys keep them";
        report.warn(format_args!("{path}.proxyHeaders.preserveHttp1HeaderCase"), message);
    }
}

fn proxy_settings(proxy: &MeshProxyConfig, path: &str, report: &mut Report) {
    report.optional_port(format_args!("{path}.proxyAdminPort"), proxy.proxy_admin_port);
    report.optional_port(format_args!("{path}.statusPort"), proxy.status_port);
    report.duration(format_args!("{path}.drainDuration"), proxy.drain_duration);
    if proxy.concurrency.is_some_and(|c| c < 0) {
        report.error(format_args!("{path}.concurrency"), "is below 0; 0 means one worker per core");
    }
    let addresses = [
        ("discoveryAddress", &proxy.discovery_address),
        ("zipkinAddress", &proxy.zipkin_address),
        ("statsdUdpAddress", &proxy.statsd_udp_address),
    ];
    for (field, address) in addresses {
        if !address.is_empty() && !is_host_port(address) {
            report.error(format_args!("{path}.{field}"), format!("{address:?} is not an address; write host:port"));
        }
    }
    if let Some(probe) = &proxy.readiness_probe {
        check_probe(probe, &format!("{path}.readinessProbe"), report);
    }
    without_effect(proxy, path, report);
    if let Some(tracing) = &proxy.tracing {
        report.percent(format_args!("{path}.tracing.sampling"), tracing.sampling);
        if let Some(tls) = &tracing.tls_settings {
            client_tls(tls, &format!("{path}.tracing.tlsSettings"), report);
        }
    }
    for (i, regex) in proxy.proxy_stats_matcher.iter().flat_map(|m| &m.inclusion_regexps).enumerate() {
        report.regex(format_args!("{path}.proxyStatsMatcher.inclusionRegexps[{i}]"), regex);
    }
}

fn is_host_port(address: &str) -> bool {
    let named = |(host, port): (&str, &str)| {
        !host.is_empty() && !host.contains([':', '/', ' ']) && port.parse::<u16>().is_ok_and(|p| p != 0)
    };
    // `$(HOST_IP):8126` is filled in by the injector.
    address.parse::<SocketAddr>().is_ok() || address.rsplit_once(':').is_some_and(named)
}

fn providers(config: &MeshConfig, root: &str, report: &mut Report) {
    let mut names = BTreeSet::new();
    for (i, provider) in config.extension_providers.iter().enumerate() {
        let path = format!("{root}extensionProviders[{i}]");
        report.required(format_args!("{path}.name"), &provider.name, "the name that resources refer to");
        if !names.insert(provider.name.as_str()) {
            report.error(format_args!("{path}.name"), format!("{:?} is there twice; rename one", provider.name));
        }
        check_provider(provider, &path, report);
    }
    let Some(defaults) = &config.default_providers else { return };
    for (field, list) in
        [("tracing", &defaults.tracing), ("metrics", &defaults.metrics), ("accessLogging", &defaults.access_logging)]
    {
        for (i, name) in list.iter().enumerate().filter(|(_, n)| !names.contains(n.as_str())) {
            let message = format!("{name:?} is not one of extensionProviders");
            report.warn(format_args!("{root}defaultProviders.{field}[{i}]"), message);
        }
    }
}

fn check_provider(provider: &ExtensionProvider, path: &str, report: &mut Report) {
    let (services, plain) = provider_services(provider);
    let set: Vec<_> = services.iter().map(|s| s.0).chain(plain).collect();
    match set.len() {
        0 => report
            .error(path, "has no provider; add one, such as envoyExtAuthzGrpc, opentelemetry or envoyFileAccessLog"),
        1 => {}
        _ => report.error(path, format!("has {}; keep one", set.join(" and "))),
    }
    for (kind, service, port) in services {
        let path = format!("{path}.{kind}");
        if report.required(
            format_args!("{path}.service"),
            service,
            "the host of the service, optionally namespace/host",
        ) {
            let (namespace, host) = service.split_once('/').unwrap_or(("default", service));
            if !is_dns_label(namespace) {
                report.error(format_args!("{path}.service"), format!("{namespace:?} before the / must be a namespace"));
            }
            report.host_or_ip(format_args!("{path}.service"), host, false);
        }
        report.port(format_args!("{path}.port"), port);
    }
    if provider.envoy_file_access_log.as_ref().is_some_and(|f| f.path.is_empty()) {
        report.error(format_args!("{path}.envoyFileAccessLog.path"), "is required, such as /dev/stdout");
    }
}

/// Providers that are set: those with a service (name, service, port), and the names of the others.
fn provider_services(p: &ExtensionProvider) -> (Vec<(&'static str, &str, u32)>, Vec<&'static str>) {
    let with_service = [
        p.envoy_ext_authz_http.as_ref().map(|x| ("envoyExtAuthzHttp", x.service.as_str(), x.port)),
        p.envoy_ext_authz_grpc.as_ref().map(|x| ("envoyExtAuthzGrpc", x.service.as_str(), x.port)),
        p.zipkin.as_ref().map(|x| ("zipkin", x.service.as_str(), x.port)),
        p.lightstep.as_ref().map(|x| ("lightstep", x.service.as_str(), x.port)),
        p.datadog.as_ref().map(|x| ("datadog", x.service.as_str(), x.port)),
        p.skywalking.as_ref().map(|x| ("skywalking", x.service.as_str(), x.port)),
        p.opencensus.as_ref().map(|x| ("opencensus", x.service.as_str(), x.port)),
        p.opentelemetry.as_ref().map(|x| ("opentelemetry", x.service.as_str(), x.port)),
        p.envoy_http_als.as_ref().map(|x| ("envoyHttpAls", x.service.as_str(), x.port)),
        p.envoy_tcp_als.as_ref().map(|x| ("envoyTcpAls", x.service.as_str(), x.port)),
        p.envoy_otel_als.as_ref().map(|x| ("envoyOtelAls", x.service.as_str(), x.port)),
        p.sds.as_ref().map(|x| ("sds", x.service.as_str(), x.port)),
    ];
    let plain = set_of(&[
        ("stackdriver", p.stackdriver.is_some()),
        ("prometheus", p.prometheus.is_some()),
        ("envoyFileAccessLog", p.envoy_file_access_log.is_some()),
    ]);
    (with_service.into_iter().flatten().collect(), plain)
}
