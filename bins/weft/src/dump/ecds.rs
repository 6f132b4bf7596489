//! Configurations of filters that come by themselves (ECDS), by an Envoy's `EcdsConfigDump`. Our own proxy takes none: its
//! filters come with their listeners.

use super::{Dump, field, text};
use crate::output::Table;
use serde_json::Value;

/// Beginning of the names of types.
const TYPE: &str = "type.googleapis.com/";

/// The configurations, each a `TypedExtensionConfig`.
pub fn items(dump: &Dump) -> Vec<&Value> {
    let mut found = dump.items("EcdsConfigDump", &["ecds_filters"], &["ecds_filter"]);
    found.sort_by_key(|item| (kind(item).to_string(), text(item, "name").to_string()));
    found
}

fn kind(item: &Value) -> &str {
    let name = field(item, "typed_config")["@type"].as_str().unwrap_or_default();
    name.strip_prefix(TYPE).unwrap_or(name)
}

/// Names and types.
pub fn table(dump: &Dump) -> Table {
    let mut table = Table::new(["ECDS NAME", "TYPE"]);
    for item in items(dump) {
        table.row([text(item, "name"), kind(item)]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dump::tests::dump;
    use serde_json::json;

    #[test]
    fn filters_by_type_and_name() {
        let filter = |name: &str, kind: &str| {
            json!({"ecds_filter": {"@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig", "name": name,
                                   "typed_config": {"@type": format!("{TYPE}{kind}")}}})
        };
        let dump = dump(
            "EcdsConfigDump",
            json!({"ecds_filters": [filter("b", "x.Wasm"), filter("a", "x.Wasm"), filter("c", "w.RBAC")]}),
        );
        assert_eq!(
            table(&dump).render(false),
            "ECDS NAME   TYPE\nc           w.RBAC\na           x.Wasm\nb           x.Wasm\n"
        );
        assert!(table(&Dump::default()).is_empty());
    }
}
