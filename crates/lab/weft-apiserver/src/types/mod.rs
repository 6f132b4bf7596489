//! The fields of Kubernetes' own kinds: names, types, protobuf numbers, how lists are merged. Read once from the table beside
//! this file, which `xtask/codegen` (bin `kubernetes`) writes. Custom kinds are in [`crate::custom`].

pub(crate) mod protobuf;

use std::collections::HashMap;
use std::sync::OnceLock;

const TABLE: &str = include_str!("kubernetes.txt");

/// A struct of the API.
#[derive(Debug)]
pub(crate) struct Message {
    /// `core.v1.Pod`.
    pub(crate) name: &'static str,
    /// Server-side apply owns it as a whole.
    pub(crate) atomic: bool,
    pub(crate) fields: Vec<Field>,
}

/// A field of a struct.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) number: u32,
    pub(crate) name: &'static str,
    /// What it holds; of lists and maps, what their items are.
    pub(crate) base: Base,
    pub(crate) shape: Shape,
    /// How server-side apply merges it.
    pub(crate) merge: Merge,
    /// How a strategic merge patch merges a list: by this key, or (empty) as a set.
    pub(crate) patch_key: Option<&'static str>,
    /// Its own fields stand beside the others in JSON.
    pub(crate) inline: bool,
    /// Its zero is a value.
    pub(crate) pointer: bool,
    pub(crate) required: bool,
}

/// One value, many, or many by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    One,
    List,
    Map,
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    Text,
    Bool,
    Integer,
    Double,
    Bytes,
    /// A struct, by its name.
    Message(&'static str),
}

/// How server-side apply merges a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Merge {
    /// Structs and maps by field, lists as a whole.
    Default,
    /// As a whole.
    Atomic,
    /// A list of values without order.
    Set,
    /// A list of structs by these keys.
    Keys(Vec<&'static str>),
}

/// The struct of that name.
pub(crate) fn message(name: &str) -> Option<&'static Message> {
    static TYPES: OnceLock<HashMap<&'static str, Message>> = OnceLock::new();
    TYPES.get_or_init(read).get(name)
}

/// The struct of a kind, or of a body such as `DeleteOptions` that any group has.
pub(crate) fn of_kind(group: &str, version: &str, kind: &str) -> Option<&'static Message> {
    let package = match group.split('.').next().unwrap_or_default() {
        "" => "core",
        first => first,
    };
    message(&format!("{package}.{version}.{kind}")).or_else(|| message(&format!("meta.v1.{kind}")))
}

impl Message {
    /// A field by its JSON name, also one of an embedded struct.
    pub(crate) fn field(&self, name: &str) -> Option<&'static Field> {
        let own: &'static Message = message(self.name)?;
        let found = own.fields.iter().find(|f| f.name == name && !f.inline);
        found.or_else(|| own.fields.iter().filter(|f| f.inline).find_map(|f| f.message()?.field(name)))
    }

    /// All fields as JSON has them.
    pub(crate) fn json_fields(&'static self) -> Vec<&'static Field> {
        let expand = |field: &'static Field| match field.message().filter(|_| field.inline) {
            Some(embedded) => embedded.json_fields(),
            None => vec![field],
        };
        self.fields.iter().flat_map(expand).collect()
    }
}

impl Field {
    pub(crate) fn message(&self) -> Option<&'static Message> {
        match self.base {
            Base::Message(name) => message(name),
            _ => None,
        }
    }
}

fn read() -> HashMap<&'static str, Message> {
    let mut messages = HashMap::new();
    let mut open: Option<Message> = None;
    for line in TABLE.lines().filter(|l| !l.starts_with('#')) {
        match line.strip_prefix(' ') {
            Some(text) => {
                if let (Some(message), Some(field)) = (&mut open, read_field(text)) {
                    message.fields.push(field);
                }
            }
            None => {
                let (name, mark) = line.split_once(' ').unwrap_or((line, ""));
                let next = Message { name, atomic: mark == "atomic", fields: Vec::new() };
                messages.extend(open.replace(next).map(|m| (m.name, m)));
            }
        }
    }
    messages.extend(open.map(|m| (m.name, m)));
    messages
}

fn read_field(text: &'static str) -> Option<Field> {
    let mut words = text.split(' ');
    let (number, name, kind) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
    let (shape, base) = match (kind.strip_prefix("[]"), kind.strip_prefix("{}")) {
        (Some(base), _) => (Shape::List, base),
        (_, Some(base)) => (Shape::Map, base),
        _ => (Shape::One, kind),
    };
    let base = match base {
        "string" => Base::Text,
        "bool" => Base::Bool,
        "int32" | "int64" | "uint32" | "uint64" => Base::Integer,
        "double" | "float" => Base::Double,
        "bytes" => Base::Bytes,
        message => Base::Message(message),
    };
    let mut field = Field {
        number,
        name,
        base,
        shape,
        merge: Merge::Default,
        patch_key: None,
        inline: false,
        pointer: false,
        required: false,
    };
    for word in words {
        match word.split_once('=') {
            Some(("map", keys)) => field.merge = Merge::Keys(keys.split(',').collect()),
            Some(("key", key)) => field.patch_key = Some(key),
            _ => match word {
                "set" => field.merge = Merge::Set,
                "atomic" => field.merge = Merge::Atomic,
                "merge" => field.patch_key = Some(""),
                "inline" => field.inline = true,
                "pointer" => field.pointer = true,
                "required" => field.required = true,
                _ => {}
            },
        }
    }
    Some(field)
}

/// Structs that are one plain value in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plain {
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    /// Any JSON, kept as its text.
    Json,
    /// A list of words.
    Words,
    /// A schema, or whether anything goes.
    SchemaOrBool,
    /// A schema, or several.
    SchemaOrArray,
    /// A schema, or names of properties.
    SchemaOrWords,
    Seconds,
}

/// Whether a struct is a plain value.
pub(crate) fn plain(name: &str) -> Option<Plain> {
    Some(match name {
        "meta.v1.Time" | "meta.v1.Timestamp" => Plain::Time,
        "meta.v1.MicroTime" => Plain::MicroTime,
        "meta.v1.Duration" => Plain::Seconds,
        "resource.Quantity" | "resource.QuantityValue" => Plain::Quantity,
        "intstr.IntOrString" => Plain::IntOrString,
        "meta.v1.FieldsV1" | "runtime.RawExtension" | "apiextensions.v1.JSON" => Plain::Json,
        "meta.v1.Verbs" | "authentication.v1.ExtraValue" | "authorization.v1.ExtraValue" => Plain::Words,
        "apiextensions.v1.JSONSchemaPropsOrBool" => Plain::SchemaOrBool,
        "apiextensions.v1.JSONSchemaPropsOrArray" => Plain::SchemaOrArray,
        "apiextensions.v1.JSONSchemaPropsOrStringArray" => Plain::SchemaOrWords,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole() {
        let spec = of_kind("", "v1", "Pod").and_then(|m| m.field("spec")?.message()).unwrap();
        let containers = spec.field("containers").unwrap();
        assert_eq!(containers.merge, Merge::Keys(vec!["name"]));
        assert_eq!((containers.patch_key, containers.shape), (Some("name"), Shape::List));
        let volume = spec.field("volumes").and_then(Field::message).unwrap();
        assert!(volume.field("configMap").is_some(), "fields of embedded structs are fields");
        let map = volume.field("configMap").and_then(Field::message).unwrap();
        assert!(map.field("name").is_some() && map.field("localObjectReference").is_none());
        let delete = of_kind("apps", "v1", "DeleteOptions").unwrap();
        assert!(delete.field("gracePeriodSeconds").unwrap().pointer);
        for line in TABLE.lines().filter(|l| l.starts_with(' ')) {
            let field = read_field(line.trim()).unwrap();
            assert!(!matches!(field.base, Base::Message(m) if message(m).is_none()), "{line}");
        }
        let all: Vec<_> = TABLE.lines().filter(|l| !l.starts_with([' ', '#'])).collect();
        assert!(all.len() > 500, "{}", all.len());
    }
}
