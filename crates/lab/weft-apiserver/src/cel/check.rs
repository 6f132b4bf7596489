//! What an expression may refer to: names, fields of their schemas, functions. Not a full check of types: an expression that
//! passes here may still fail on an object, and then that object is refused.

use super::{children, values::field_name};
use kube_cel::cel::common::ast::{CallExpr, ComprehensionExpr, Expr, IdedExpr, LiteralValue, SelectExpr};
use serde_json::Value;

/// Names of types, as `type(x) == string` uses them.
pub(super) const TYPES: &[&str] = &["int", "uint", "double", "bool", "string", "bytes", "list", "map", "null_type"];

/// Functions of CEL and those that Kubernetes adds, as far as they are offered.
const FUNCTIONS: &[&str] = &[
    "@in",
    "@not_strictly_false",
    "!_",
    "-_",
    "_!=_",
    "_%_",
    "_&&_",
    "_*_",
    "_+_",
    "_-_",
    "_/_",
    "_<=_",
    "_<_",
    "_==_",
    "_>=_",
    "_>_",
    "_?._",
    "_?_:_",
    "_[?_]",
    "_[_]",
    "_||_",
    "add",
    "asApproximateFloat",
    "asInteger",
    "bytes",
    "charAt",
    "cidr",
    "compareTo",
    "contains",
    "containsCIDR",
    "containsIP",
    "distinct",
    "double",
    "duration",
    "dyn",
    "endsWith",
    "family",
    "find",
    "findAll",
    "first",
    "flatten",
    "format",
    "format.byte",
    "format.date",
    "format.datetime",
    "format.labelValue",
    "format.named",
    "format.qualifiedName",
    "format.uri",
    "format.uuid",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getEscapedPath",
    "getFullYear",
    "getHost",
    "getHostname",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getPort",
    "getQuery",
    "getScheme",
    "getSeconds",
    "hasValue",
    "indexOf",
    "int",
    "ip",
    "ip.isCanonical",
    "isCIDR",
    "isGlobalUnicast",
    "isGreaterThan",
    "isIP",
    "isInteger",
    "isLessThan",
    "isLinkLocalMulticast",
    "isLinkLocalUnicast",
    "isLoopback",
    "isQuantity",
    "isSemver",
    "isSorted",
    "isURL",
    "isUnspecified",
    "join",
    "jsonpatch.escapeKey",
    "last",
    "lastIndexOf",
    "lists.range",
    "lowerAscii",
    "major",
    "masked",
    "matches",
    "math.abs",
    "math.bitAnd",
    "math.bitNot",
    "math.bitOr",
    "math.bitShiftLeft",
    "math.bitShiftRight",
    "math.bitXor",
    "math.ceil",
    "math.floor",
    "math.greatest",
    "math.isFinite",
    "math.isInf",
    "math.isNaN",
    "math.least",
    "math.round",
    "math.sign",
    "math.sqrt",
    "math.trunc",
    "max",
    "min",
    "minor",
    "optional.none",
    "optional.of",
    "optional.ofNonZeroValue",
    "or",
    "orValue",
    "patch",
    "prefixLength",
    "quantity",
    "replace",
    "reverse",
    "semver",
    "sets.contains",
    "sets.equivalent",
    "sets.intersects",
    "sign",
    "size",
    "slice",
    "sort",
    "split",
    "startsWith",
    "string",
    "strings.quote",
    "sub",
    "substring",
    "sum",
    "timestamp",
    "trim",
    "type",
    "uint",
    "upperAscii",
    "url",
    "validate",
    "value",
];

/// Functions by name, without the operators.
pub(super) fn functions() -> impl Iterator<Item = &'static str> {
    FUNCTIONS.iter().copied().filter(|name| name.starts_with(|c: char| c.is_ascii_alphabetic()))
}

/// What the value of an expression has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bool,
    Text,
}

/// The names that an expression may use, each with the schema of its value, as far as it is known.
#[derive(Default, Clone)]
pub(crate) struct Names<'a> {
    known: Vec<(String, Option<&'a Value>)>,
}

impl<'a> Names<'a> {
    /// These names and one more.
    pub(crate) fn with(mut self, name: &str, schema: Option<&'a Value>) -> Self {
        self.known.push((name.into(), schema));
        self
    }

    /// Refuses an expression that refers to what is not there.
    pub(super) fn check(&self, tree: &IdedExpr) -> Result<(), String> {
        let mut scope = self.clone();
        scope.visit(tree).map(drop)
    }

    /// Refuses an expression whose value is certainly of another kind.
    pub(super) fn check_kind(&self, tree: &IdedExpr, kind: Kind) -> Result<(), String> {
        let certain = |is: Kind| is == kind;
        let fits = match &tree.expr {
            Expr::Literal(LiteralValue::Boolean(_)) => certain(Kind::Bool),
            Expr::Literal(LiteralValue::String(_)) => certain(Kind::Text),
            Expr::Literal(_) | Expr::List(_) | Expr::Map(_) => false,
            Expr::Comprehension(found) => !matches!(found.accu_init.expr, Expr::List(_)) && certain(Kind::Bool),
            Expr::Call(call) => match call.func_name.as_str() {
                "_?_:_" => return call.args.iter().skip(1).try_for_each(|arm| self.check_kind(arm, kind)),
                "_+_" | "string" | "format" | "lowerAscii" | "upperAscii" | "join" | "replace" => certain(Kind::Text),
                "_-_" | "_*_" | "_/_" | "_%_" | "-_" | "size" | "int" | "uint" | "double" | "indexOf" | "duration"
                | "timestamp" | "sum" => false,
                "_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_" | "_&&_" | "_||_" | "!_" | "@in" => {
                    certain(Kind::Bool)
                }
                _ => true,
            },
            Expr::Select(select) if select.test => certain(Kind::Bool),
            Expr::Select(_) | Expr::Ident(_) => match self.clone().visit(tree)?.and_then(|s| s.get("type")) {
                Some(found) if found == "boolean" => certain(Kind::Bool),
                Some(found) if found == "string" => certain(Kind::Text),
                Some(_) => false,
                None => true,
            },
            Expr::Struct(_) | Expr::Unspecified => false,
        };
        match (fits, kind) {
            (true, _) => Ok(()),
            (false, Kind::Bool) => Err("cel expression must evaluate to a bool".into()),
            (false, Kind::Text) => Err("messageExpression must evaluate to a string".into()),
        }
    }

    /// The schema of an expression's value, as far as it is known.
    fn visit(&mut self, tree: &IdedExpr) -> Result<Option<&'a Value>, String> {
        match &tree.expr {
            Expr::Ident(name) => self.ident(name),
            Expr::Select(select) => self.select(select),
            Expr::Call(call) => self.call(call),
            Expr::Comprehension(found) => self.comprehension(found),
            Expr::Struct(_) | Expr::Unspecified => Err("messages cannot be made in an expression".into()),
            Expr::List(_) | Expr::Map(_) | Expr::Literal(_) => {
                children(tree).into_iter().try_for_each(|part| self.visit(part).map(drop))?;
                Ok(None)
            }
        }
    }

    fn ident(&self, name: &str) -> Result<Option<&'a Value>, String> {
        if name.starts_with('@') || TYPES.contains(&name) {
            return Ok(None);
        }
        let found = self.known.iter().rev().find(|(known, _)| known == name);
        found.map(|(_, schema)| *schema).ok_or_else(|| format!("undeclared reference to '{name}'"))
    }

    fn select(&mut self, select: &SelectExpr) -> Result<Option<&'a Value>, String> {
        match self.visit(&select.operand)? {
            Some(schema) => field(schema, &select.field),
            None => Ok(None),
        }
    }

    fn call(&mut self, call: &CallExpr) -> Result<Option<&'a Value>, String> {
        let name = call.func_name.as_str();
        if let Some(target) = &call.target {
            let qualified = match &target.expr {
                Expr::Ident(prefix) => FUNCTIONS.contains(&format!("{prefix}.{name}").as_str()),
                _ => false,
            };
            if qualified {
                call.args.iter().try_for_each(|arg| self.visit(arg).map(drop))?;
                return Ok(None);
            }
        }
        if !FUNCTIONS.contains(&name) {
            return Err(format!("undeclared reference to '{name}' (no function that this API server offers)"));
        }
        let target = call.target.as_deref().map(|target| self.visit(target)).transpose()?.flatten();
        let mut first = None;
        for (at, arg) in call.args.iter().enumerate() {
            let schema = self.visit(arg)?;
            first = if at == 0 { schema } else { first };
        }
        let literal = call.args.get(1).map(|arg| &arg.expr);
        match (name, first.or(target), literal) {
            ("_[_]", Some(list), _) => Ok(list.get("items").or_else(|| additional(list))),
            // What an optional field holds is not followed further, but the field must exist.
            ("_?._", Some(schema), Some(Expr::Literal(LiteralValue::String(name)))) => {
                field(schema, name.inner()).map(|_| None)
            }
            _ => Ok(None),
        }
    }

    fn comprehension(&mut self, found: &ComprehensionExpr) -> Result<Option<&'a Value>, String> {
        let range = self.visit(&found.iter_range)?;
        self.visit(&found.accu_init)?;
        let before = self.known.len();
        self.known.push((found.accu_var.clone(), None));
        self.known.push((found.iter_var.clone(), range.and_then(|list| list.get("items"))));
        for part in [&found.loop_cond, &found.loop_step, &found.result] {
            self.visit(part)?;
        }
        self.known.truncate(before);
        Ok(None)
    }
}

fn additional(schema: &Value) -> Option<&Value> {
    schema.get("additionalProperties").filter(|a| a.is_object())
}

/// The schema of a field; `None` when it may hold anything.
fn field<'a>(schema: &'a Value, name: &str) -> Result<Option<&'a Value>, String> {
    let flag = |field: &str| schema.get(field).and_then(Value::as_bool).unwrap_or(false);
    let kind = schema.get("type").and_then(Value::as_str).unwrap_or_default();
    if matches!(kind, "string" | "integer" | "number" | "boolean" | "array") {
        return Err(format!("type '{kind}' does not support field selection of '{name}'"));
    }
    if let Some(inner) = additional(schema) {
        return Ok(Some(inner));
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    let found = properties.and_then(|p| p.iter().find(|(known, _)| field_name(known).as_deref() == Some(name)));
    match found {
        // What a schema says of metadata is not all that is there.
        Some(_) if name == "metadata" => Ok(None),
        Some((_, inner)) => Ok(Some(inner)),
        None if flag("x-kubernetes-embedded-resource") || properties.is_none() => Ok(None),
        None if matches!(name, "apiVersion" | "kind" | "metadata") => Ok(None),
        None => Err(format!("undefined field '{name}'")),
    }
}
