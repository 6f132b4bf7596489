//! Routes: one row per route of each virtual host.

use super::{Dump, each, field, origin, path, text, texts};
use crate::output::Table;
use serde_json::Value;

const SECTION: &str = "RoutesConfigDump";
/// Domains that a row shows.
const SHOWN_DOMAINS: usize = 2;

/// Which route configurations.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Name.
    pub name: Option<String>,
}

/// The route configurations in use.
pub fn items<'a>(dump: &'a Dump, filter: &Filter) -> Vec<&'a Value> {
    let mut found = dump.items(SECTION, &["dynamic_route_configs", "static_route_configs"], &["route_config"]);
    found.retain(|config| filter.name.as_ref().is_none_or(|name| text(config, "name") == name));
    found
}

/// `NAME, VHOST NAME, DOMAINS, MATCH, VIRTUAL SERVICE`.
pub fn table(dump: &Dump, filter: &Filter) -> Table {
    let mut configs = items(dump, filter);
    // Ports in the order of their numbers, then names.
    configs.sort_by_key(|config| {
        let name = text(config, "name");
        (name.parse::<u32>().unwrap_or(u32::MAX), name.to_string())
    });
    let mut table = Table::new(["NAME", "VHOST NAME", "DOMAINS", "MATCH", "VIRTUAL SERVICE"]);
    for config in configs {
        let name = text(config, "name");
        let hosts: Vec<&Value> = each(field(config, "virtual_hosts")).collect();
        if hosts.is_empty() {
            table.row([name, "-", "-", "-", ""]);
        }
        for host in hosts {
            let domains = domains(host);
            let routes: Vec<&Value> = each(field(host, "routes")).collect();
            if routes.is_empty() {
                table.row([name, text(host, "name"), &domains, "-", ""]);
            }
            for route in routes {
                table.row([name, text(host, "name"), &domains, &route_match(route), &virtual_service(route)]);
            }
        }
    }
    table
}

/// Domains without those that only differ by a port, names before addresses, shortest first.
fn domains(host: &Value) -> String {
    let all = texts(field(host, "domains"));
    let mut plain: Vec<&str> = all.iter().copied().filter(|d| !d.contains(':') || d.contains('[')).collect();
    if plain.is_empty() {
        plain.clone_from(&all);
    }
    // A name with and without the dot at its end is one.
    plain.retain(|domain| domain.strip_suffix('.').is_none_or(|bare| !all.contains(&bare)));
    let is_address = |domain: &str| domain.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
    plain.sort_by_key(|domain| (is_address(domain), domain.len()));
    let more = plain.len().saturating_sub(SHOWN_DOMAINS);
    let shown = plain.get(..SHOWN_DOMAINS.min(plain.len())).unwrap_or_default().join(", ");
    if more == 0 { shown } else { format!("{shown} + {more} more...") }
}

/// `/productpage`, `/static*`, `regex ^/a`.
pub fn route_match(route: &Value) -> String {
    let conditions = field(route, "match");
    let prefix = text(conditions, "prefix");
    let separated = text(conditions, "path_separated_prefix");
    let regex = path(conditions, &["safe_regex", "regex"]).as_str().unwrap_or_default();
    let template =
        path(conditions, &["path_match_policy", "typed_config", "path_template"]).as_str().unwrap_or_default();
    match () {
        () if !prefix.is_empty() => format!("{prefix}*"),
        () if !separated.is_empty() => format!("PathPrefix:{separated}"),
        () if !regex.is_empty() => format!("regex {regex}"),
        () if !template.is_empty() => format!("template {template}"),
        () if !field(conditions, "connect_matcher").is_null() => "CONNECT".into(),
        () => text(conditions, "path").to_string(),
    }
}

/// The virtual service, or the status that is answered without one.
fn virtual_service(route: &Value) -> String {
    let status = path(route, &["direct_response", "status"]).as_u64();
    origin(route, "VirtualService").or_else(|| status.map(|s| s.to_string())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::tests::dump;
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_per_route() {
        let istio = json!({"filter_metadata": {"istio":
            {"config": "/apis/networking.istio.io/v1/namespaces/default/virtual-service/reviews"}}});
        let dump = dump(
            SECTION,
            json!({
                "static_route_configs": [{"route_config": {"name": "inbound|9080||", "virtual_hosts": [
                    {"name": "inbound|http|9080", "domains": ["*"], "routes": [{"match": {"prefix": "/"}}]}]}}],
                "dynamic_route_configs": [
                    {"route_config": {"name": "9080", "virtual_hosts": [
                        {"name": "reviews.default.svc.cluster.local:9080",
                         "domains": ["reviews.default.svc.cluster.local", "reviews.default.svc.cluster.local:9080",
                                     "reviews", "reviews:9080", "reviews.default", "reviews.default.svc"],
                         "routes": [{"match": {"path": "/x"}, "metadata": istio},
                                    {"match": {"safe_regex": {"regex": "^/a.*"}}, "direct_response": {"status": 404}},
                                    {"match": {"path_separated_prefix": "/p"}}]}]}},
                    {"route_config": {"name": "80", "vhds": {}}},
                ],
            }),
        );
        let rows = table(&dump, &Filter::default());
        let rows: Vec<Vec<&str>> = rows.rows().iter().map(|r| r.iter().map(String::as_str).collect()).collect();
        let host = "reviews.default.svc.cluster.local:9080";
        let domains = "reviews, reviews.default + 2 more...";
        assert_eq!(
            rows,
            [
                ["80", "-", "-", "-", ""],
                ["9080", host, domains, "/x", "reviews.default"],
                ["9080", host, domains, "regex ^/a.*", "404"],
                ["9080", host, domains, "PathPrefix:/p", ""],
                ["inbound|9080||", "inbound|http|9080", "*", "/*", ""],
            ]
        );
        assert_eq!(items(&dump, &Filter { name: Some("80".into()) }).len(), 1);
    }
}
