//! `Ingress` and `IngressClass` of `networking.k8s.io`, `v1` and `v1beta1`: a backend reads in both spellings.

use crate::macros::spec;
use serde::{Deserialize, Serialize};
use serde_json::Value;

spec! {
    /// HTTP rules by host and path.
    pub struct Ingress {
        /// Class. Older spelling: the annotation `kubernetes.io/ingress.class`.
        ingress_class_name: Option<String>,
        /// Where requests go that no rule is for.
        default_backend: Option<Backend>,
        /// Older spelling of `defaultBackend`.
        backend: Option<Backend>,
        /// Certificates by host.
        tls: Vec<IngressTls>,
        /// Rules.
        rules: Vec<IngressRule>,
    }

    /// A certificate.
    pub struct IngressTls {
        /// Hosts. Default: all.
        hosts: Vec<String>,
        /// Secret, in the namespace of the ingress gateway.
        secret_name: String,
    }

    /// Rules of a host.
    pub struct IngressRule {
        /// Host: a name or `*.` wildcard. Default: all.
        host: String,
        /// Paths.
        http: Option<IngressPaths>,
    }

    /// Paths.
    pub struct IngressPaths {
        /// Paths; the longest that matches holds.
        paths: Vec<IngressPath>,
    }

    /// A path and where it leads.
    pub struct IngressPath {
        /// Path.
        path: String,
        /// `Exact`, `Prefix` (whole path elements), `ImplementationSpecific` or nothing.
        path_type: Option<String>,
        /// Where it leads.
        backend: Backend,
    }

    /// A service and port.
    pub struct Backend {
        /// Service.
        service: Option<BackendService>,
        /// Not supported.
        resource: Option<Value>,
        /// Older spelling of `service.name`.
        service_name: String,
        /// Older spelling of `service.port`.
        service_port: Option<PortNumberOrName>,
    }

    /// A service and port.
    pub struct BackendService {
        /// Service of the Ingress's namespace.
        name: String,
        /// Port.
        port: BackendPort,
    }

    /// A port by number or by name.
    pub struct BackendPort {
        /// Name.
        name: String,
        /// Number.
        number: u32,
    }

    /// Which controller serves the Ingresses of a class.
    pub struct IngressClass {
        /// Name of the controller; Weft answers to `istio.io/ingress-controller`.
        controller: String,
        /// Not used.
        parameters: Option<Value>,
    }
}

/// A port by number or by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PortNumberOrName {
    /// Number.
    Number(u32),
    /// Name.
    Name(String),
}

impl Backend {
    /// Name of the service, in either spelling; empty when there is none.
    pub fn name(&self) -> &str {
        self.service.as_ref().map_or(&self.service_name, |s| &s.name)
    }

    /// Its port, in either spelling; `None` when there is none.
    pub fn port(&self) -> Option<PortNumberOrName> {
        match &self.service {
            Some(service) if service.port.number != 0 => Some(PortNumberOrName::Number(service.port.number)),
            Some(service) => {
                Some(PortNumberOrName::Name(service.port.name.clone())).filter(|_| !service.port.name.is_empty())
            }
            None => match self.service_port.clone()? {
                PortNumberOrName::Name(name) => Some(match name.parse() {
                    Ok(number) => PortNumberOrName::Number(number),
                    Err(_) => PortNumberOrName::Name(name),
                }),
                number => Some(number),
            },
        }
    }
}
