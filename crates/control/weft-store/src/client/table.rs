//! Lists as people read them: the server chooses the columns, as it does for kubectl.

use super::{ApiClient, ClientError, ListOptions, MAX_ANSWER, Query, collection_path, object_path};
use http::Method;
use serde::Deserialize;
use serde_json::Value;
use weft_k8s_api::{KindInfo, Object};

/// What asks for a table; a server that has none answers with a plain list, which is an error here.
const ACCEPT_TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// `meta.k8s.io/v1` Table.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Table {
    /// Columns.
    pub column_definitions: Vec<Column>,
    /// Rows.
    pub rows: Vec<Row>,
}

/// A column.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Column {
    /// Heading.
    pub name: String,
    /// 0: always shown; more: only in wide output.
    pub priority: i64,
}

/// A row.
#[derive(Debug, Clone, Deserialize)]
pub struct Row {
    /// One value per column.
    pub cells: Vec<Value>,
    /// The object's type and metadata.
    #[serde(default)]
    pub object: Option<Object>,
}

impl ApiClient {
    /// Objects of a kind as a table: one by `name`, or all that the options choose. `namespace` of `None` is all namespaces.
    ///
    /// # Errors
    /// [`ClientError::NotFound`], [`ClientError::NoSuchKind`], [`ClientError::Unreachable`] and their kin.
    pub async fn table(
        &self,
        kind: &KindInfo,
        namespace: Option<&str>,
        name: Option<&str>,
        options: &ListOptions,
    ) -> Result<Table, ClientError> {
        let mut query = Query::default();
        query.add("labelSelector", options.labels.as_deref());
        query.add("fieldSelector", options.fields.as_deref());
        let path = match name {
            Some(name) => object_path(kind, None, namespace.unwrap_or_default(), name),
            None => query.on(&collection_path(kind, None, namespace)),
        };
        let answer = self.call_accepting(ACCEPT_TABLE, Method::GET, &path, None, MAX_ANSWER).await?;
        let value: Value = self.parse(&path, &answer.body)?;
        if value.get("kind").and_then(Value::as_str) != Some("Table") {
            let message = format!("{path}: the server does not make tables; use -o json or -o yaml");
            return Err(ClientError::Protocol { url: self.url.clone(), message });
        }
        serde_json::from_value(value)
            .map_err(|e| ClientError::Protocol { url: self.url.clone(), message: format!("{path}: {e}") })
    }
}
