//! `/config_dump` and `/routes`: the configuration in Envoy's `ConfigDump` messages. Private keys are left out.

use super::Admin;
use crate::held::{Entry, Inner, REDACTED, Refused, inline};
use crate::http::{Answer, Asked, json, text};
use http::StatusCode;
use prost::Message;
use regex::Regex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::SystemTime;
use weft_proto::envoy::admin::v3 as dump;
use weft_proto::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use weft_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use weft_proto::{Any, pack, type_url, unpack};
use weft_sds::{SDS_CERTIFICATE, SDS_ROOTS, WorkloadSecrets};

/// Longest pattern in `name_regex`.
const MAX_PATTERN: usize = 1024;

/// The page.
pub fn page(admin: &Admin, asked: &Asked) -> Answer {
    let names = match name_filter(asked) {
        Ok(names) => names,
        Err(answer) => return *answer,
    };
    if asked.parameter("mask").is_some() {
        return text(StatusCode::BAD_REQUEST, "mask is not supported; use resource= and name_regex=\n");
    }
    let held = admin.held.snapshot();
    let identity = admin.identity.as_ref().and_then(|secrets| secrets.borrow().clone());
    let with_endpoints = asked.parameter("include_eds").is_some();
    let sections = Sections { held: &held, identity: identity.as_deref(), names };
    let configs = match asked.parameter("resource") {
        Some(resource) => sections.of_resource(resource, with_endpoints),
        None => Some(sections.all(with_endpoints)),
    };
    match configs {
        None => text(
            StatusCode::NOT_FOUND,
            "no such resource; try dynamic_listeners, dynamic_active_clusters, \
            dynamic_route_configs, dynamic_endpoint_configs, dynamic_active_secrets or bootstrap\n",
        ),
        Some(configs) => match weft_proto::json::to_json(&dump::ConfigDump { configs }, true) {
            Ok(value) => json(&value),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("the dump cannot be written: {error}\n")),
        },
    }
}

/// Route tables and their virtual hosts, short; as JSON, the routes' part of the dump.
pub fn routes(admin: &Admin, asked: &Asked) -> Answer {
    let held = admin.held.snapshot();
    let sections = Sections { held: &held, identity: None, names: None };
    if asked.parameter("format") == Some("json") {
        let shown = weft_proto::json::to_json(&sections.routes(), true);
        return shown.map_or_else(|e| text(StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")), |value| json(&value));
    }
    let mut out = String::new();
    for (name, entry) in sections.route_configs() {
        let Ok(config) = unpack::<RouteConfiguration>(&entry.any) else { continue };
        out.push_str(&format!("{name}\n"));
        for host in &config.virtual_hosts {
            out.push_str(&format!("  {} [{}] {} routes\n", host.name, host.domains.join(", "), host.routes.len()));
        }
    }
    text(StatusCode::OK, out)
}

fn name_filter(asked: &Asked) -> Result<Option<Regex>, Box<Answer>> {
    let Some(pattern) = asked.parameter("name_regex") else { return Ok(None) };
    let wrong = |error: String| Box::new(text(StatusCode::BAD_REQUEST, format!("name_regex: {error}\n")));
    if pattern.len() > MAX_PATTERN {
        return Err(wrong(format!("longer than {MAX_PATTERN} characters")));
    }
    // Envoy wants the whole name to match.
    Regex::new(&format!("^(?:{pattern})$")).map(Some).map_err(|error| wrong(error.to_string()))
}

struct Sections<'a> {
    held: &'a Inner,
    identity: Option<&'a WorkloadSecrets>,
    names: Option<Regex>,
}

impl Sections<'_> {
    fn all(&self, with_endpoints: bool) -> Vec<Any> {
        let mut configs = vec![pack(&self.bootstrap()), pack(&self.clusters())];
        if with_endpoints {
            configs.push(pack(&self.endpoints()));
        }
        configs.push(pack(&self.listeners()));
        configs.push(pack(&dump::ScopedRoutesConfigDump::default()));
        configs.push(pack(&self.routes()));
        configs.push(pack(&self.secrets()));
        configs
    }

    /// One repeated field of a section, each element a configuration of its own.
    fn of_resource(&self, resource: &str, with_endpoints: bool) -> Option<Vec<Any>> {
        fn each<M: Message + prost::Name>(messages: &[M]) -> Option<Vec<Any>> {
            Some(messages.iter().map(pack).collect())
        }
        match resource {
            "bootstrap" => Some(vec![pack(&self.bootstrap())]),
            "static_listeners" => each(&self.listeners().static_listeners),
            "dynamic_listeners" => each(&self.listeners().dynamic_listeners),
            "static_clusters" => each(&self.clusters().static_clusters),
            "dynamic_active_clusters" => each(&self.clusters().dynamic_active_clusters),
            "dynamic_route_configs" => each(&self.routes().dynamic_route_configs),
            "dynamic_endpoint_configs" if with_endpoints => each(&self.endpoints().dynamic_endpoint_configs),
            "dynamic_endpoint_configs" => Some(Vec::new()),
            "dynamic_active_secrets" => each(&self.secrets().dynamic_active_secrets),
            _ => None,
        }
    }

    fn wanted(&self, name: &str) -> bool {
        self.names.as_ref().is_none_or(|names| names.is_match(name))
    }

    /// Resources in force of a type.
    fn of_type(&self, type_url: &str) -> impl Iterator<Item = (&String, &Entry)> {
        self.held.types.get(type_url).into_iter().flatten().filter(|(name, _)| self.wanted(name))
    }

    /// Every name of a type with what is in force and what was refused of it.
    fn with_refused(&self, type_url: &str) -> BTreeMap<&str, (Option<&Entry>, Option<&Refused>)> {
        let mut all: BTreeMap<&str, (Option<&Entry>, Option<&Refused>)> = BTreeMap::new();
        for (name, entry) in self.of_type(type_url) {
            all.entry(name).or_default().0 = Some(entry);
        }
        for ((of, name), refused) in &self.held.refused {
            if of == type_url && self.wanted(name) {
                all.entry(name).or_default().1 = Some(refused);
            }
        }
        all
    }

    fn bootstrap(&self) -> dump::BootstrapConfigDump {
        let (bootstrap, read) = self.held.bootstrap.clone().unzip();
        dump::BootstrapConfigDump { bootstrap, last_updated: read.map(timestamp) }
    }

    fn listeners(&self) -> dump::ListenersConfigDump {
        use dump::listeners_config_dump::{DynamicListener, DynamicListenerState, StaticListener};
        let state = |entry: &Entry| DynamicListenerState {
            version_info: entry.version.clone(),
            listener: Some(entry.any.clone()),
            last_updated: Some(timestamp(entry.updated)),
        };
        let dynamic =
            self.with_refused(type_url::LISTENER).into_iter().map(|(name, (entry, refused))| DynamicListener {
                name: name.to_owned(),
                active_state: entry.map(state),
                error_state: refused.map(failure),
                ..DynamicListener::default()
            });
        let own = self.static_resources().map(|resources| resources.listeners.as_slice()).unwrap_or_default();
        let fixed = own.iter().filter(|listener| self.wanted(&listener.name));
        dump::ListenersConfigDump {
            version_info: self.version(type_url::LISTENER),
            static_listeners: fixed
                .map(|listener| StaticListener { listener: Some(pack(listener)), last_updated: self.read_at() })
                .collect(),
            dynamic_listeners: dynamic.collect(),
        }
    }

    fn clusters(&self) -> dump::ClustersConfigDump {
        use dump::clusters_config_dump::{DynamicCluster, StaticCluster};
        let dynamic = self.with_refused(type_url::CLUSTER).into_iter().map(|(_, (entry, refused))| DynamicCluster {
            version_info: entry.map(|entry| entry.version.clone()).unwrap_or_default(),
            cluster: entry.map(|entry| entry.any.clone()),
            last_updated: entry.map(|entry| timestamp(entry.updated)),
            error_state: refused.map(failure),
            ..DynamicCluster::default()
        });
        let own = self.static_resources().map(|resources| resources.clusters.as_slice()).unwrap_or_default();
        let fixed = own.iter().filter(|cluster| self.wanted(&cluster.name));
        dump::ClustersConfigDump {
            version_info: self.version(type_url::CLUSTER),
            static_clusters: fixed
                .map(|cluster| StaticCluster { cluster: Some(pack(cluster)), last_updated: self.read_at() })
                .collect(),
            dynamic_active_clusters: dynamic.collect(),
            ..dump::ClustersConfigDump::default()
        }
    }

    fn endpoints(&self) -> dump::EndpointsConfigDump {
        use dump::endpoints_config_dump::DynamicEndpointConfig;
        let dynamic = self.of_type(type_url::ENDPOINT).map(|(_, entry)| DynamicEndpointConfig {
            version_info: entry.version.clone(),
            endpoint_config: Some(entry.any.clone()),
            last_updated: Some(timestamp(entry.updated)),
            ..DynamicEndpointConfig::default()
        });
        dump::EndpointsConfigDump {
            dynamic_endpoint_configs: dynamic.collect(),
            ..dump::EndpointsConfigDump::default()
        }
    }

    fn routes(&self) -> dump::RoutesConfigDump {
        use dump::routes_config_dump::DynamicRouteConfig;
        let dynamic = self.route_configs().map(|(_, entry)| DynamicRouteConfig {
            version_info: entry.version.clone(),
            last_updated: Some(timestamp(entry.updated)),
            route_config: Some(entry.any),
            ..DynamicRouteConfig::default()
        });
        dump::RoutesConfigDump { dynamic_route_configs: dynamic.collect(), ..dump::RoutesConfigDump::default() }
    }

    /// Route configurations with the virtual hosts that came one by one put back into them.
    fn route_configs(&self) -> impl Iterator<Item = (&String, Entry)> {
        let mut hosts: BTreeMap<&str, Vec<VirtualHost>> = BTreeMap::new();
        for (name, entry) in self.held.types.get(type_url::VIRTUAL_HOST).into_iter().flatten() {
            if let (Some((route, _)), Ok(host)) = (name.split_once('/'), unpack::<VirtualHost>(&entry.any)) {
                hosts.entry(route).or_default().push(host);
            }
        }
        self.of_type(type_url::ROUTE).map(move |(name, entry)| {
            let mut entry = entry.clone();
            if let (Some(hosts), Ok(mut config)) = (hosts.get(name.as_str()), unpack::<RouteConfiguration>(&entry.any))
            {
                config.virtual_hosts.extend(hosts.iter().cloned());
                entry.any = pack(&config);
            }
            (name, entry)
        })
    }

    fn secrets(&self) -> dump::SecretsConfigDump {
        use dump::secrets_config_dump::DynamicSecret;
        let mut all: Vec<DynamicSecret> =
            self.identity.map(|secrets| self.identity_secrets(secrets)).unwrap_or_default();
        all.extend(self.of_type(type_url::SECRET).map(|(name, entry)| DynamicSecret {
            name: name.clone(),
            version_info: entry.version.clone(),
            last_updated: Some(timestamp(entry.updated)),
            secret: Some(entry.any.clone()),
            ..DynamicSecret::default()
        }));
        dump::SecretsConfigDump { dynamic_active_secrets: all, ..dump::SecretsConfigDump::default() }
    }

    fn identity_secrets(&self, secrets: &WorkloadSecrets) -> Vec<dump::secrets_config_dump::DynamicSecret> {
        let certificate = secret::Type::TlsCertificate(TlsCertificate {
            certificate_chain: inline(&secrets.svid.chain_pem),
            private_key: inline(REDACTED),
            ..TlsCertificate::default()
        });
        let roots = secret::Type::ValidationContext(CertificateValidationContext {
            trusted_ca: inline(&secrets.roots_pem),
            crl: (!secrets.crl_pem.is_empty()).then(|| inline(&secrets.crl_pem)).flatten(),
            ..CertificateValidationContext::default()
        });
        let named = [(SDS_CERTIFICATE, certificate), (SDS_ROOTS, roots)];
        let dynamic = |(name, kind): (&str, secret::Type)| dump::secrets_config_dump::DynamicSecret {
            name: name.to_owned(),
            version_info: secrets.version.to_string(),
            last_updated: Some(timestamp(secrets.svid.not_before)),
            secret: Some(pack(&Secret { name: name.to_owned(), r#type: Some(kind) })),
            ..Default::default()
        };
        named.into_iter().filter(|(name, _)| self.wanted(name)).map(dynamic).collect()
    }

    fn static_resources(&self) -> Option<&weft_proto::envoy::config::bootstrap::v3::bootstrap::StaticResources> {
        self.held.bootstrap.as_ref()?.0.static_resources.as_ref()
    }

    fn read_at(&self) -> Option<prost_types::Timestamp> {
        self.held.bootstrap.as_ref().map(|(_, read)| timestamp(*read))
    }

    /// Version of a whole type: that of what came last.
    fn version(&self, type_url: &str) -> String {
        let entries = self.held.types.get(type_url).into_iter().flat_map(BTreeMap::values);
        entries.max_by_key(|entry| entry.updated).map(|entry| entry.version.clone()).unwrap_or_default()
    }
}

fn failure(refused: &Refused) -> dump::UpdateFailureState {
    dump::UpdateFailureState {
        failed_configuration: Some(refused.entry.any.clone()),
        last_update_attempt: Some(timestamp(refused.entry.updated)),
        details: refused.reason.clone(),
        version_info: refused.entry.version.clone(),
    }
}

/// A time as protobuf has it.
pub fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    time.into()
}

/// A page of JSON from a message.
pub fn message<M: Message + prost::Name>(message: &M) -> Answer {
    let value: Result<Value, _> = weft_proto::json::to_json(message, true);
    match value {
        Ok(value) => json(&value),
        Err(error) => json(&json!({ "error": error.to_string() })),
    }
}
