//! Proxy settings of a workload: the mesh's, with those of the annotation `proxy.istio.io/config` over them.

use serde_json::Value;
use weft_k8s_api::de::{Dialect, read};
use weft_k8s_api::istio::{MeshConfig, MeshProxyConfig};

/// Longest annotation that is read, bytes.
const MAX_ANNOTATION: usize = 64 * 1024;

/// The settings that hold. Each field of the annotation replaces the mesh's as a whole; an annotation that cannot be read
/// changes nothing.
pub(crate) fn effective(mesh: &MeshConfig, annotation: Option<&str>) -> MeshProxyConfig {
    let base = mesh.default_config.clone().unwrap_or_else(MeshProxyConfig::with_defaults);
    annotation.and_then(|text| overlaid(&base, text)).unwrap_or(base)
}

/// Whether an annotation may say something of headers: most do not, and need not be read for that.
pub(crate) fn says_of_headers(annotation: &str) -> bool {
    annotation.contains("proxyHeaders") || annotation.contains("proxy_headers")
}

fn overlaid(base: &MeshProxyConfig, text: &str) -> Option<MeshProxyConfig> {
    if text.len() > MAX_ANNOTATION {
        return None;
    }
    let own: Value = serde_saphyr::from_str(text).ok()?;
    // Read once to have one spelling of the names, so that fields meet those of the mesh.
    let own: MeshProxyConfig = read(&own, "proxy.istio.io/config", Dialect::ProtoJson, &mut Vec::new()).ok()?;
    let mut merged = serde_json::to_value(base).ok()?;
    let fields = merged.as_object_mut()?;
    for (name, value) in serde_json::to_value(&own).ok()?.as_object()? {
        fields.insert(name.clone(), value.clone());
    }
    serde_json::from_value(merged).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_replace_as_a_whole() {
        let mut mesh = MeshConfig::with_defaults();
        let defaults = mesh.default_config.get_or_insert_default();
        defaults.tracing =
            serde_json::from_value(serde_json::json!({"sampling": 50.0, "maxPathTagLength": 99})).unwrap();
        let got = effective(&mesh, Some("tracing:\n  sampling: 10\n  max_path_tag_length: 7\n")).tracing.unwrap();
        assert_eq!((got.sampling, got.max_path_tag_length), (10.0, 7));
        let got = effective(&mesh, Some("tracing: {sampling: 10}")).tracing.unwrap();
        assert_eq!(got.max_path_tag_length, 0, "not merged");
        for unreadable in [Some(": :"), Some("tracing: 3"), None] {
            assert_eq!(effective(&mesh, unreadable).tracing.unwrap().sampling, 50.0, "{unreadable:?}");
        }
    }
}
