//! The query string and the Accept header, read once per request.

use crate::status::ApiError;
use axum::extract::Query;
use http::{HeaderMap, Uri};

/// Parameters of the query string in their order.
#[derive(Debug, Default)]
pub(crate) struct Params(Vec<(String, String)>);

impl Params {
    pub(crate) fn read(uri: &Uri) -> Result<Self, ApiError> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|e| ApiError::bad_request(format!("the query string cannot be read: {e}")))?;
        Ok(Self(pairs))
    }

    /// The first value, unless empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    /// All values.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Whether the value is `true` or `1`.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "1"))
    }

    /// A whole number.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let number = text.parse();
        number.map(Some).map_err(|_| ApiError::bad_request(format!("{name}={text}: a whole number is expected")))
    }

    /// Whether this is a dry run.
    pub(crate) fn dry_run(&self) -> Result<bool, ApiError> {
        match self.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(ApiError::bad_request(format!("dryRun={other}: only All is supported"))),
        }
    }
}

/// The shape in which the client wants objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Full,
    Table,
    Metadata,
}

/// Reads the Accept header: the first entry that can be served decides, as clients list what they like best first.
pub(crate) fn shape(headers: &HeaderMap) -> Result<Shape, ApiError> {
    let mut asked = false;
    for header in headers.get_all(http::header::ACCEPT) {
        for entry in header.to_str().unwrap_or_default().split(',').map(str::trim).filter(|e| !e.is_empty()) {
            asked = true;
            let mut parts = entry.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            if !matches!(kind, "application/json" | "application/*" | "*/*" | "text/plain") {
                continue;
            }
            let (mut shape, mut version) = (Some(Shape::Full), "v1");
            for part in parts {
                match part.split_once('=') {
                    Some(("as", "Table")) => shape = Some(Shape::Table),
                    Some(("as", "PartialObjectMetadata" | "PartialObjectMetadataList")) => {
                        shape = Some(Shape::Metadata)
                    }
                    Some(("as", _)) => shape = None,
                    Some(("v", v)) => version = v,
                    _ => {}
                }
            }
            if let (Some(shape), "v1") = (shape, version) {
                return Ok(shape);
            }
        }
    }
    if asked { Err(ApiError::not_acceptable()) } else { Ok(Shape::Full) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let table = [
            ("", Some(Shape::Full)),
            ("application/json", Some(Shape::Full)),
            ("*/*", Some(Shape::Full)),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Some(Shape::Table),
            ),
            ("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", Some(Shape::Full)),
            ("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", Some(Shape::Metadata)),
            ("application/vnd.kubernetes.protobuf,application/json", Some(Shape::Full)),
            ("application/vnd.kubernetes.protobuf", None),
            ("text/html", None),
        ];
        for (accept, want) in table {
            let mut headers = HeaderMap::new();
            if !accept.is_empty() {
                headers.insert("accept", accept.parse().unwrap());
            }
            assert_eq!(shape(&headers).ok(), want, "{accept}");
        }
    }

    #[test]
    fn parameters() {
        let params = Params::read(&"/x?a=1&b=%2Fx+y&c=&command=ls&command=-l&watch=true".parse().unwrap()).unwrap();
        assert_eq!(params.get("b"), Some("/x y"));
        assert_eq!(params.get("c"), None);
        assert_eq!(params.number::<u32>("a").unwrap(), Some(1));
        assert!(params.number::<u32>("b").is_err());
        assert_eq!(params.all("command").collect::<Vec<_>>(), ["ls", "-l"]);
        assert!(params.is_set("watch") && !params.dry_run().unwrap());
        assert!(Params::read(&"/x?dryRun=Some".parse().unwrap()).unwrap().dry_run().is_err());
    }
}
