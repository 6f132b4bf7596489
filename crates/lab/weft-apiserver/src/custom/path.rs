//! The JSON paths of printer columns and scales: `.spec.hosts`, `.status.conditions[?(@.type=="Ready")].status`,
//! `.metadata.labels.app\.kubernetes\.io/name`, `.spec.ports[0].name`, `.items[*].a`.

use serde_json::Value;

/// Steps of one path at most.
const MAX_STEPS: usize = 32;

/// A path that has been read.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Path(Vec<Step>);

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    /// Negative from the end.
    Index(i64),
    All,
    /// Items whose field has this value.
    Where(Path, Value),
}

impl Path {
    /// Reads a path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut steps = Vec::new();
        let mut rest = text.trim().trim_start_matches('{').trim_end_matches('}').trim_start_matches('$');
        if rest.is_empty() {
            return Err("a JSON path such as .spec.replicas is expected".into());
        }
        while !rest.is_empty() {
            if steps.len() >= MAX_STEPS {
                return Err(format!("a JSON path has at most {MAX_STEPS} steps"));
            }
            if let Some(inside) = rest.strip_prefix('[') {
                let end = closing(inside).ok_or_else(|| format!("{text:?}: a bracket is not closed"))?;
                let (inner, after) = inside.split_at(end);
                steps.push(bracket(inner).map_err(|why| format!("{text:?}: {why}"))?);
                rest = after.get(1..).unwrap_or_default();
            } else if let Some(after) = rest.strip_prefix('.') {
                let (name, after) = field(after);
                match name.as_str() {
                    "" if after.starts_with('[') => {}
                    "" => return Err(format!("{text:?}: a field name is expected after a dot")),
                    "*" => steps.push(Step::All),
                    _ => steps.push(Step::Field(name)),
                }
                rest = after;
            } else {
                return Err(format!("{text:?}: a dot or a bracket is expected before {rest:?}"));
            }
        }
        Ok(Self(steps))
    }

    /// The values at the path.
    pub(crate) fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![value];
        for step in &self.0 {
            found = found.into_iter().flat_map(|v| step.apply(v)).collect();
        }
        found
    }

    /// Sets a value at a path of field names, making objects on the way. `false` when the path has other steps.
    pub(crate) fn set(&self, value: &mut Value, new: Value) -> bool {
        let mut at = value;
        for step in &self.0 {
            let Step::Field(name) = step else { return false };
            if at.is_null() {
                *at = Value::Object(serde_json::Map::new());
            }
            let Some(fields) = at.as_object_mut() else { return false };
            at = fields.entry(name.clone()).or_insert(Value::Null);
        }
        *at = new;
        true
    }
}

/// Where the bracket ends, quotes and inner brackets passed over.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0_u32, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

/// A field name up to the next dot or bracket; a backslash takes what follows as it is.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            '\\' if !escaped => escaped = true,
            '.' | '[' if !escaped => return (name, text.get(at..).unwrap_or_default()),
            c => {
                name.push(c);
                escaped = false;
            }
        }
    }
    (name, "")
}

fn bracket(inner: &str) -> Result<Step, String> {
    let inner = inner.trim();
    if inner == "*" || inner.is_empty() {
        return Ok(Step::All);
    }
    if let Some(name) = quoted(inner) {
        return Ok(Step::Field(name.into()));
    }
    if let Some(filter) = inner.strip_prefix("?(").and_then(|f| f.strip_suffix(')')) {
        let (path, value) = filter.split_once("==").ok_or("a filter must be of the form ?(@.field==\"value\")")?;
        let path = path.trim().strip_prefix('@').ok_or("a filter must begin with @")?;
        let value = value.trim();
        let value = match quoted(value) {
            Some(text) => Value::String(text.into()),
            None => serde_json::from_str(value).map_err(|_| format!("{value:?} is no value"))?,
        };
        return Ok(Step::Where(Path::parse(path)?, value));
    }
    inner.parse().map(Step::Index).map_err(|_| format!("[{inner}] is not an index, a name or a filter"))
}

fn quoted(text: &str) -> Option<&str> {
    let inner = |q: char| text.strip_prefix(q).and_then(|t| t.strip_suffix(q));
    inner('\'').or_else(|| inner('"'))
}

impl Step {
    fn apply<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match (self, value) {
            (Self::Field(name), value) => value.get(name).into_iter().collect(),
            (Self::Index(at), Value::Array(items)) => {
                let at = if *at < 0 { at.checked_add_unsigned(items.len() as u64) } else { Some(*at) };
                at.and_then(|at| items.get(usize::try_from(at).ok()?)).into_iter().collect()
            }
            (Self::All, Value::Array(items)) => items.iter().collect(),
            (Self::All, Value::Object(fields)) => fields.values().collect(),
            (Self::Where(path, want), Value::Array(items)) => {
                items.iter().filter(|item| path.find(item).first() == Some(&want)).collect()
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths() {
        let object = json!({
            "spec": {"hosts": ["a", "b"], "ports": [{"n": 1}, {"n": 2}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]},
            "metadata": {"labels": {"app.io/x": "y"}},
        });
        let table = [
            (".spec.hosts", json!([["a", "b"]])),
            (".spec.hosts[1]", json!(["b"])),
            (".spec.hosts[-1]", json!(["b"])),
            (".spec.hosts[-3]", json!([])),
            (".spec.ports[*].n", json!([1, 2])),
            ("{.spec.ports[0]['n']}", json!([1])),
            (".status.conditions[?(@.type==\"Ready\")].status", json!(["True"])),
            (".status.conditions[?(@.type=='Ready')].status", json!(["True"])),
            (".spec.ports[?(@.n==2)].n", json!([2])),
            (".metadata.labels.app\\.io/x", json!(["y"])),
            (".metadata.labels['app.io/x']", json!(["y"])),
            (".spec.none.at.all", json!([])),
        ];
        for (text, want) in table {
            let path = Path::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(json!(path.find(&object)), want, "{text}");
        }
        for bad in ["", "spec", ".", "..a", ".a[", ".a[x]", ".a[?(b==1)]", ".a[?(@.b)]", ".a[?(@.b==x)]"] {
            assert!(Path::parse(bad).is_err(), "{bad}");
        }
        let mut value = json!({});
        assert!(Path::parse(".spec.replicas").unwrap().set(&mut value, json!(3)));
        assert_eq!(value, json!({"spec": {"replicas": 3}}));
    }
}
