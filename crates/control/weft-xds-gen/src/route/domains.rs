//! The names under which a client may call a service: full, short (as seen from its namespace), and addresses.

use crate::pb::address::{bracketed, is_host};
use crate::scope::ScopeKey;
use weft_model::{Registry, Resolution, Service};

/// Domains of a service's virtual host, without ports: those are not looked at. The second list holds the short names,
/// which give way to a service that has one of them as its full name.
pub(super) fn of_service(service: &Service, key: &ScopeKey) -> (Vec<String>, Vec<String>) {
    let short = short_names(&service.host, &key.dns_domain);
    let mut domains = vec![bracketed(&service.host)];
    domains.extend(short.iter().cloned());
    if service.resolution == Resolution::Passthrough && service.registry == Some(Registry::Kubernetes) {
        // Pods of a headless service have names below the service's.
        let below: Vec<String> = domains.iter().map(|d| format!("*.{d}")).collect();
        domains.extend(below);
    }
    domains.extend(addresses(service, key));
    (domains, short)
}

/// Addresses by which the service may be named.
fn addresses(service: &Service, key: &ScopeKey) -> Vec<String> {
    let own = service.addresses.iter().filter(|net| is_host(net)).map(|net| net.addr().to_string());
    let given = service.auto_addresses.iter().filter(|ip| key.dns_capture && key.speaks(ip)).map(ToString::to_string);
    own.chain(given).map(|ip| bracketed(&ip)).collect()
}

/// Names that a resolver would complete to `host`, for a proxy whose names end in `<namespace>.svc.<domain>`; and `host`
/// with the dot that ends a complete name.
fn short_names(host: &str, proxy_domain: &str) -> Vec<String> {
    let mut names = Vec::new();
    if host.parse::<std::net::IpAddr>().is_err() && !host.starts_with('*') {
        names.push(format!("{host}."));
    }
    let Some((proxy_namespace, domain)) = proxy_domain.split_once(".svc.") else { return names };
    let Some(rest) = host.strip_suffix(domain).and_then(|r| r.strip_suffix(".svc.")) else { return names };
    let Some((name, namespace)) = rest.split_once('.') else { return names };
    if namespace == proxy_namespace {
        names.extend([name.to_string(), format!("{rest}.svc"), rest.to_string()]);
    } else {
        names.extend([rest.to_string(), format!("{rest}.svc")]);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_depend_on_the_namespace() {
        for (host, proxy, want) in [
            (
                "reviews.default.svc.cluster.local",
                "default.svc.cluster.local",
                vec!["reviews.default.svc.cluster.local.", "reviews", "reviews.default.svc", "reviews.default"],
            ),
            (
                "reviews.default.svc.cluster.local",
                "other.svc.cluster.local",
                vec!["reviews.default.svc.cluster.local.", "reviews.default", "reviews.default.svc"],
            ),
            ("www.example.com", "default.svc.cluster.local", vec!["www.example.com."]),
            ("*.example.com", "default.svc.cluster.local", vec![]),
            ("240.0.0.1", "default.svc.cluster.local", vec![]),
        ] {
            assert_eq!(short_names(host, proxy), want, "{host} from {proxy}");
        }
    }
}
