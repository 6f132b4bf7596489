//! Which object, and which place inside it, something was generated from.

use std::fmt;

/// The origin of a generated resource. Rides along in xDS metadata (filter metadata `weft`) so that logs, dumps and
/// `weft explain` can name the line of YAML that decided.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Provenance {
    /// Kind of the object, e.g. `VirtualService`.
    pub kind: String,
    /// Its namespace; empty for cluster-scoped objects.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Place inside the object, e.g. `spec.http[0]`; empty for the whole object.
    pub path: String,
}

impl Provenance {
    /// The whole object.
    pub fn object(kind: &str, namespace: &str, name: &str) -> Self {
        Self { kind: kind.into(), namespace: namespace.into(), name: name.into(), path: String::new() }
    }

    /// The same object, at `path`.
    pub fn at(&self, path: impl Into<String>) -> Self {
        Self { path: path.into(), ..self.clone() }
    }
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)?;
        if !self.path.is_empty() {
            write!(f, " {}", self.path)?;
        }
        Ok(())
    }
}
