//! Errors of compilation: which resource, which field, what would be right — and the path that says which field.
//!
//! Compilers walk messages with a [`Path`] on the stack; it costs nothing until an error needs its text.

use std::fmt;

/// At most so many errors are kept for one resource: a NACK is read by people and travels in one message.
const MAX_ERRORS: usize = 50;

/// What became of the thing an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The resource was refused; what was there before stays.
    Refused,
    /// The rest of the resource was applied, and what the field asks for fails closed: a route answers an error, a rule
    /// does not let through.
    Degraded,
}

/// A field that cannot be used as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Name of the resource, with its type when that is not plain: `listener virtualInbound`.
    pub resource: String,
    /// Place inside it, e.g. `filter_chains[2].filters[0].typed_config.http_filters[1]`; empty for the whole.
    pub path: String,
    /// What is wrong, and what would be right.
    pub message: String,
    /// What became of it.
    pub severity: Severity,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.resource)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

/// The place of a field, as a list that lives on the stack.
#[derive(Debug, Clone, Copy)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Index(&'a str, usize),
    Key(&'a str, &'a str),
}

impl<'a> Path<'a> {
    /// The resource itself.
    pub const ROOT: Path<'static> = Path { parent: None, step: Step::Root };

    /// A field of what this path names.
    pub fn field(&'a self, name: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Field(name) }
    }

    /// An element of a repeated field.
    pub fn item(&'a self, name: &'a str, index: usize) -> Path<'a> {
        Path { parent: Some(self), step: Step::Index(name, index) }
    }

    /// An entry of a map field.
    pub fn key(&'a self, name: &'a str, key: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Key(name, key) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
            if !matches!(parent.step, Step::Root) {
                f.write_str(".")?;
            }
        }
        // A raw identifier (`r#match`) is the field `match`.
        let plain = |name: &'_ str| name.strip_prefix("r#").unwrap_or(name).to_string();
        match self.step {
            Step::Root => Ok(()),
            Step::Field(name) => f.write_str(&plain(name)),
            Step::Index(name, index) => write!(f, "{}[{index}]", plain(name)),
            Step::Key(name, key) => write!(f, "{}[{key:?}]", plain(name)),
        }
    }
}

/// Collects the errors of one resource.
#[derive(Debug)]
pub struct Errors {
    resource: String,
    list: Vec<ConfigError>,
}

impl Errors {
    /// None yet.
    pub fn new(resource: impl Into<String>) -> Self {
        Self { resource: resource.into(), list: Vec::new() }
    }

    /// The resource cannot be used.
    pub fn refuse(&mut self, path: &Path<'_>, message: impl Into<String>) {
        self.push(path, message.into(), Severity::Refused);
    }

    /// The resource can be used in a safe form.
    pub fn degrade(&mut self, path: &Path<'_>, message: impl Into<String>) {
        self.push(path, message.into(), Severity::Degraded);
    }

    /// How many there are; to be compared later, to see whether a part had errors.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// One of them refuses the resource.
    pub fn refused(&self) -> bool {
        self.list.iter().any(|e| e.severity == Severity::Refused)
    }

    /// Errors after the first `from` lose their bite: the caller contained them (a bad route became unusable).
    pub fn contain(&mut self, from: usize) {
        self.list.iter_mut().skip(from).for_each(|e| e.severity = Severity::Degraded);
    }

    /// Text of the first refusal after the first `from` errors.
    pub fn refused_since(&self, from: usize) -> Option<String> {
        let error = self.list.iter().skip(from).find(|e| e.severity == Severity::Refused)?;
        Some(if error.path.is_empty() { error.message.clone() } else { format!("{}: {}", error.path, error.message) })
    }

    /// Takes over errors found elsewhere.
    pub fn extend(&mut self, others: Vec<ConfigError>) {
        self.list.extend(others);
    }

    /// The list.
    pub fn into_list(self) -> Vec<ConfigError> {
        self.list
    }

    fn push(&mut self, path: &Path<'_>, message: String, severity: Severity) {
        if self.list.len() < MAX_ERRORS {
            self.list.push(ConfigError { resource: self.resource.clone(), path: path.to_string(), message, severity });
        } else if severity == Severity::Refused
            && let Some(last) = self.list.last_mut()
        {
            // The list is full: the outcome must still be known.
            last.severity = Severity::Refused;
        }
    }
}

/// A proto field differs from its default: someone set it.
pub fn is_set<T: Default + PartialEq>(field: &T) -> bool {
    *field != T::default()
}

/// Refuses each listed field (bound by the same name) that is set: this proxy has nothing that does what it asks for, and
/// nothing that changes behaviour is ignored.
#[macro_export]
macro_rules! refuse_set {
    ($errors:expr, $path:expr, $($field:ident),+ $(,)?) => {
        $(if $crate::error::is_set($field) {
            $errors.refuse(&$path.field(stringify!($field)), "is not supported by weft-proxy; remove the field");
        })+
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_text() {
        let routes = Path::ROOT.item("virtual_hosts", 2);
        let route = routes.item("routes", 0);
        let path = route.key("typed_per_filter_config", "x.y");
        assert_eq!(path.to_string(), "virtual_hosts[2].routes[0].typed_per_filter_config[\"x.y\"]");
        assert_eq!(Path::ROOT.field("r#match").to_string(), "match");
        assert_eq!(Path::ROOT.to_string(), "");
    }

    #[test]
    fn full_list_still_refuses() {
        let mut errors = Errors::new("route 80");
        for _ in 0..MAX_ERRORS {
            errors.degrade(&Path::ROOT, "x");
        }
        assert!(!errors.refused());
        errors.refuse(&Path::ROOT, "y");
        assert!(errors.refused());
        assert_eq!(errors.into_list().len(), MAX_ERRORS);
    }
}
