//! EndpointSlices of Endpoints that were made by hand, for a Service without selector: consumers read slices alone.

use super::objects::{is_controlled_by, is_deleting, list, owned, report, string_map};
use super::{Controller, PodMaker};
use serde_json::{Value, json};
use weft_core::well_known::label;
use weft_k8s_api::Object;
use weft_store::{DeleteOptions, MemoryStore};

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// Endpoints with this label are not mirrored: somebody makes their slices.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";

/// The controller.
pub struct Mirroring;

impl Controller for Mirroring {
    fn reconcile(&mut self, store: &MemoryStore, _: &dyn PodMaker) {
        let slices = list(store, "discovery.k8s.io", "EndpointSlice");
        for endpoints in list(store, "", "Endpoints") {
            let service = store.find("", "Service", endpoints.namespace(), endpoints.name());
            let by_hand = service.as_ref().is_some_and(|service| string_map(&service.spec()["selector"]).is_empty());
            let wanted = if by_hand && !is_deleting(&endpoints) && endpoints.label(SKIP) != Some("true") {
                subsets(&endpoints)
            } else {
                Vec::new()
            };
            let mut own = slices.iter().filter(|slice| is_controlled_by(slice, &endpoints) && !is_deleting(slice));
            for (ports, addresses) in wanted {
                match own.next() {
                    Some(slice) => {
                        let _ = store.modify(&slice.key(), |slice| {
                            slice.body.insert("ports".into(), ports.clone());
                            slice.body.insert("endpoints".into(), addresses.clone());
                        });
                    }
                    None => create(store, &endpoints, ports, addresses),
                }
            }
            for rest in own {
                let _ = store.delete(&rest.key(), &DeleteOptions::default());
            }
        }
    }
}

/// Ports and endpoints of each subset.
fn subsets(endpoints: &Object) -> Vec<(Value, Value)> {
    let subsets = endpoints.body.get("subsets").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let of = |subset: &Value| {
        let mut all = Vec::new();
        for (field, ready) in [("addresses", true), ("notReadyAddresses", false)] {
            for address in subset[field].as_array().into_iter().flatten() {
                let mut endpoint = json!({"addresses": [address["ip"]], "conditions": {"ready": ready}});
                for name in ["hostname", "nodeName", "targetRef"] {
                    if !address[name].is_null() {
                        endpoint[name] = address[name].clone();
                    }
                }
                all.push(endpoint);
            }
        }
        let port = |port: &Value| {
            json!({"name": port["name"].as_str().unwrap_or_default(), "port": port["port"],
                   "protocol": port["protocol"].as_str().unwrap_or("TCP")})
        };
        let ports: Value = subset["ports"].as_array().into_iter().flatten().map(port).collect();
        (ports, Value::from(all))
    };
    subsets.iter().map(of).collect()
}

fn create(store: &MemoryStore, endpoints: &Object, ports: Value, addresses: Value) {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(label::SERVICE_NAME.into(), endpoints.name().into());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut slice = owned("discovery.k8s.io/v1", "EndpointSlice", endpoints, labels);
    slice.metadata.generate_name = Some(format!("{}-", endpoints.name()));
    slice.body.insert("addressType".into(), "IPv4".into());
    slice.body.insert("endpoints".into(), addresses);
    slice.body.insert("ports".into(), ports);
    report(endpoints, store.create(slice));
}
