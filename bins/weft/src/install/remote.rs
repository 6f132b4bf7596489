//! What leads a cluster to a control plane elsewhere (`components.istiodRemote`): its address under the usual name, its
//! configuration for injection by hand, and the webhooks.
//!
//! Source: Istio's profiles `external` and `remote`: `values.global.remotePilotAddress`, `values.istiodRemote.injectionURL`.

use super::{Settings, control_plane, metadata, webhooks};
use anyhow::bail;
use serde_json::{Value, json};
use std::net::IpAddr;

/// Its objects.
///
/// # Errors
/// When nothing says where the control plane is.
pub(super) fn objects(settings: &Settings) -> anyhow::Result<Vec<Value>> {
    let address = settings.values.text("global.remotePilotAddress");
    let url = settings.values.text("istiodRemote.injectionURL");
    if address.is_empty() && url.is_empty() {
        bail!(
            "components.istiodRemote: nothing says where the control plane is; set values.global.remotePilotAddress or \
             values.istiodRemote.injectionURL"
        );
    }
    let mut all = control_plane::configuration(settings);
    if !address.is_empty() {
        all.extend(service(settings, &address));
    }
    all.extend(webhooks::objects(settings));
    for hook in all.iter_mut().filter_map(|object| object["webhooks"].as_array_mut()).flatten() {
        let client = &mut hook["clientConfig"];
        if !url.is_empty() && client["service"]["path"] == "/inject" {
            *client = json!({"url": url});
        }
        let bundle = settings.values.text("istiodRemote.injectionCABundle");
        if !bundle.is_empty() {
            client["caBundle"] = bundle.into();
        }
    }
    Ok(all)
}

/// Service `istiod`: another name of a host, or an address.
fn service(settings: &Settings, address: &str) -> Vec<Value> {
    let name = settings.named("istiod");
    let ports = [("https-dns", 15012), ("https-webhook", 15017)];
    let Ok(ip) = address.parse::<IpAddr>() else {
        return vec![json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata(settings, &name, true),
                           "spec": {"type": "ExternalName", "externalName": address}})];
    };
    let service_ports: Vec<Value> = ports
        .iter()
        .map(|(name, target)| {
            json!({"name": name, "protocol": "TCP", "targetPort": target,
                                     "port": if *target == 15017 { 443 } else { *target }})
        })
        .collect();
    let slice_ports: Vec<Value> =
        ports.iter().map(|(name, port)| json!({"name": name, "protocol": "TCP", "port": port})).collect();
    let mut slice = metadata(settings, &name, true);
    slice["labels"]["kubernetes.io/service-name"] = name.as_str().into();
    vec![
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata(settings, &name, true),
               "spec": {"clusterIP": "None", "ports": service_ports}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": slice,
               "addressType": if ip.is_ipv4() { "IPv4" } else { "IPv6" }, "ports": slice_ports,
               "endpoints": [{"addresses": [address], "conditions": {"ready": true}}]}),
    ]
}
