//! Expressions in CEL, bounded: read once, checked against what they may refer to, evaluated with a limit on loops, memory, time
//! and depth. Who asks them about what is in [`crate::custom::rules`] (objects of defined kinds) and in
//! [`crate::webhooks`] (match conditions, policies).
//!
//! Parser, evaluator and the functions that Kubernetes adds are those of `kube-cel`. It has no limits of its own, so: a text
//! has so many words at most, its tree such a depth, every loop counts its rounds, what makes values is measured ([`budget`]),
//! and all of it runs on a thread whose stack is deep enough for what passed. What it does not offer (macros with two variables, `sortBy`, `cel.bind`) is found when an
//! expression is read, not when an object meets it.
//!
//! Source: the Kubernetes documentation, "Common Expression Language in Kubernetes".

mod budget;
mod check;
mod values;

pub(crate) use check::{Kind, Names};
pub(crate) use values::from_json;

use kube_cel::KubeCelExt;
use kube_cel::cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue};
use kube_cel::cel::parser::Parser;
use kube_cel::cel::{Context, ExecutionError, FunctionContext, ResolveResult, Value};

/// Characters of one expression.
const MAX_TEXT: usize = 16 << 10;
/// Words and signs of one expression.
const MAX_WORDS: usize = 2000;
/// Depth of brackets and of the tree.
const MAX_DEPTH: usize = 96;
/// Stack of the thread that reads and evaluates. It is taken from the system as it is used.
const STACK: usize = 256 << 20;
/// What every round of a loop calls. No expression can name it: `@` is no letter.
const ROUND: &str = "@round";

/// What everything that may have made a larger value is given to.
const MADE: &str = "@made";
/// What the loops of macros make.
const RESULT: &str = "@result";

/// An expression that has been read and checked.
#[derive(Debug)]
pub(crate) struct Expression {
    tree: IdedExpr,
    old: bool,
}

impl Expression {
    /// Reads an expression over some names, whose value is to be of some kind.
    ///
    /// # Errors
    /// Why it cannot be followed.
    pub(crate) fn read(text: &str, names: &Names<'_>, kind: Kind) -> Result<Self, String> {
        Self::read_as(text, names, Some(kind))
    }

    /// The same, of whatever kind its value is.
    ///
    /// # Errors
    /// Why it cannot be followed.
    pub(crate) fn read_any(text: &str, names: &Names<'_>) -> Result<Self, String> {
        Self::read_as(text, names, None)
    }

    fn read_as(text: &str, names: &Names<'_>, kind: Option<Kind>) -> Result<Self, String> {
        measure(text)?;
        on_deep_stack(|| {
            let parser = Parser::default().max_recursion_depth(u16::MAX).enable_optional_syntax(true);
            let mut tree = parser.parse(text).map_err(|e| format!("compilation failed: {e}"))?;
            if depth(&tree) > MAX_DEPTH {
                return Err(format!("compilation failed: it is nested deeper than {MAX_DEPTH} levels"));
            }
            names.check(&tree).map_err(|why| format!("compilation failed: {why}"))?;
            kind.map_or(Ok(()), |kind| names.check_kind(&tree, kind))?;
            let old = tree.references().has_variable("oldSelf");
            bound(&mut tree);
            Ok(Self { tree, old })
        })?
    }

    /// Whether it compares with the object before.
    pub(crate) fn uses_old(&self) -> bool {
        self.old
    }

    /// The value of an expression. Only inside [`evaluate`].
    ///
    /// # Errors
    /// Why it has none.
    pub(crate) fn value(&self, context: &Context<'_>) -> Result<Value, String> {
        Value::resolve(&self.tree, context).map_err(|error| match error {
            ExecutionError::NoSuchKey(name) => format!("no such key: {name}"),
            ExecutionError::UndeclaredReference(name) => format!("undeclared reference to '{name}'"),
            other => other.to_string().chars().take(200).collect(),
        })
    }
}

/// Evaluates expressions, all of them together within the limits of one evaluation.
///
/// # Errors
/// When the evaluation ended without a result.
pub(crate) fn evaluate<T: Send>(work: impl FnOnce(&mut Context<'_>) -> T + Send) -> Result<T, String> {
    budget::in_turn(|| {
        on_deep_stack(|| {
            budget::begin();
            let mut context = Context::default();
            for name in check::functions() {
                let guarded = move |call: &mut FunctionContext<'_, '_>| budget::guard(name, call);
                let guarded: Box<dyn Fn(&mut FunctionContext<'_, '_>) -> ResolveResult + Send + Sync> =
                    Box::new(guarded);
                context.add_function(name, guarded);
            }
            context.add_function(ROUND, round);
            context.add_function(MADE, budget::made);
            for name in check::TYPES {
                context.add_variable_from_value(*name, format!("type {name}"));
            }
            work(&mut context)
        })
    })
}

/// The functions of an expression, as they are.
fn functions() -> Context<'static> {
    let mut context = Context::default().with_all();
    context.add_function("dyn", |value: Value| -> Result<Value, ExecutionError> { Ok(value) });
    context.add_function("type", |value: Value| format!("type {}", values::type_name(&value)));
    context
}

/// Counts a value that is to be kept while the evaluation goes on. Only inside [`evaluate`].
///
/// # Errors
/// When it is more than what is left.
pub(crate) fn keep(value: &Value) -> Result<(), String> {
    budget::spend(1, budget::size(value)).map_err(|error| error.to_string())
}

fn on_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("cel".into()).stack_size(STACK).spawn_scoped(scope, work);
        let thread = thread.map_err(|e| format!("it cannot be evaluated now: {e}"))?;
        thread.join().map_err(|_| "it cannot be evaluated: the evaluator gave up".to_string())
    })
}

/// One round of a loop; `made` is the list that the loop makes, which every round copies, `null` when it makes none.
fn round(made: Value) -> Result<bool, ExecutionError> {
    budget::spend(1 + (budget::size(&made) >> 12), 0).map(|()| true)
}

/// Puts [`ROUND`] into the condition of every loop, and [`MADE`] around what makes values larger. Functions have their own guard.
fn bound(tree: &mut IdedExpr) {
    children_mut(tree).into_iter().for_each(bound);
    match &mut tree.expr {
        Expr::Comprehension(found) => {
            let made = match &found.accu_init.expr {
                Expr::List(_) => Expr::Ident(found.accu_var.clone()),
                _ => Expr::Literal(LiteralValue::Null),
            };
            let counted = call(ROUND, vec![IdedExpr { id: 0, expr: made }]);
            let condition = std::mem::take(&mut found.loop_cond);
            found.loop_cond = call("_&&_", vec![counted, condition]);
        }
        // Before they are together: a list can have one large thing a thousand times.
        Expr::List(_) | Expr::Map(_) => children_mut(tree).into_iter().for_each(measured),
        Expr::Call(sum) if sum.func_name == "_+_" => {
            let of_loop = sum.args.first().is_some_and(|first| matches!(&first.expr, Expr::Ident(n) if n == RESULT));
            match sum.args.get_mut(1) {
                // What a loop adds to its list, once for each round.
                Some(IdedExpr { expr: Expr::List(added), .. }) if of_loop => added.elements.iter_mut().for_each(wrap),
                _ if of_loop => {}
                _ => wrap(tree),
            }
        }
        // They make nothing, but take their time on what is large.
        Expr::Call(call) if matches!(call.func_name.as_str(), "_==_" | "_!=_" | "@in") => wrap(tree),
        _ => {}
    }
}

fn call(name: &str, args: Vec<IdedExpr>) -> IdedExpr {
    IdedExpr { id: 0, expr: Expr::Call(CallExpr { func_name: name.into(), target: None, args }) }
}

/// Measures a part of a list or map, unless what is in it is measured already.
fn measured(part: &mut IdedExpr) {
    if !matches!(&part.expr, Expr::Literal(_) | Expr::List(_) | Expr::Map(_)) {
        wrap(part);
    }
}

fn wrap(tree: &mut IdedExpr) {
    if !matches!(&tree.expr, Expr::Call(call) if call.func_name == MADE) {
        *tree = call(MADE, vec![std::mem::take(tree)]);
    }
}

fn depth(tree: &IdedExpr) -> usize {
    1 + children(tree).into_iter().map(depth).max().unwrap_or(0)
}

/// What an expression is made of.
fn children(tree: &IdedExpr) -> Vec<&IdedExpr> {
    match &tree.expr {
        Expr::Call(call) => call.target.iter().map(|t| &**t).chain(&call.args).collect(),
        Expr::Comprehension(c) => vec![&c.iter_range, &c.accu_init, &c.loop_cond, &c.loop_step, &c.result],
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Select(select) => vec![&select.operand],
        Expr::Map(map) => map.entries.iter().flat_map(|entry| entry_parts(&entry.expr)).collect(),
        Expr::Struct(made) => made.entries.iter().flat_map(|entry| entry_parts(&entry.expr)).collect(),
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => Vec::new(),
    }
}

fn entry_parts(entry: &EntryExpr) -> Vec<&IdedExpr> {
    match entry {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
    }
}

fn children_mut(tree: &mut IdedExpr) -> Vec<&mut IdedExpr> {
    match &mut tree.expr {
        Expr::Call(call) => call.target.iter_mut().map(|t| &mut **t).chain(&mut call.args).collect(),
        Expr::Comprehension(c) => {
            let c = &mut **c;
            vec![&mut c.iter_range, &mut c.accu_init, &mut c.loop_cond, &mut c.loop_step, &mut c.result]
        }
        Expr::List(list) => list.elements.iter_mut().collect(),
        Expr::Select(select) => vec![&mut select.operand],
        Expr::Map(map) => map.entries.iter_mut().flat_map(|entry| entry_parts_mut(&mut entry.expr)).collect(),
        Expr::Struct(made) => made.entries.iter_mut().flat_map(|entry| entry_parts_mut(&mut entry.expr)).collect(),
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => Vec::new(),
    }
}

fn entry_parts_mut(entry: &mut EntryExpr) -> Vec<&mut IdedExpr> {
    match entry {
        EntryExpr::StructField(field) => vec![&mut field.value],
        EntryExpr::MapEntry(entry) => vec![&mut entry.key, &mut entry.value],
    }
}

/// Refuses a text that the parser should not see: too long, or nested so deep that its stack would be the limit.
fn measure(text: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Err("an expression is expected".into());
    }
    if text.len() > MAX_TEXT {
        return Err(format!("compilation failed: it is longer than {MAX_TEXT} bytes"));
    }
    let (mut words, mut open, mut choices) = (0_usize, 0_usize, 0_usize);
    let (mut quote, mut escaped, mut word) = (None, false, false);
    for c in text.chars() {
        match (quote, c) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => {
                quote = Some(c);
                words += 1;
            }
            (None, c) if c.is_alphanumeric() || c == '_' => {
                words += usize::from(!word);
                word = true;
                continue;
            }
            (None, c) if c.is_whitespace() => {}
            (None, c) => {
                words += 1;
                match c {
                    '(' | '[' | '{' => open += 1,
                    ')' | ']' | '}' => open = open.saturating_sub(1),
                    '?' => choices += 1,
                    _ => {}
                }
                if open + choices > MAX_DEPTH * 2 {
                    return Err(format!("compilation failed: it is nested deeper than {MAX_DEPTH} levels"));
                }
            }
        }
        word = false;
    }
    if words > MAX_WORDS {
        return Err(format!("compilation failed: it has more than {MAX_WORDS} words and signs"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::budget::MAX_TIME;
    use super::*;
    use serde_json::json;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    fn on(schema: &serde_json::Value, value: &serde_json::Value, text: &str) -> Result<String, String> {
        let names = Names::default().with("self", Some(schema));
        let expression = Expression::read(text, &names, Kind::Bool)?;
        evaluate(|context| {
            context.add_variable_from_value("self", from_json(value, Some(schema)));
            expression.value(context).map(|value| format!("{value:?}"))
        })?
    }

    #[test]
    fn functions_of_kubernetes() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "integer"}, "s": {"type": "string"}, "d": {"type": "string", "format": "duration"},
            "l": {"type": "array", "items": {"type": "string"}}, "my_field": {"type": "integer"},
            "x-y": {"type": "integer"}, "namespace": {"type": "string"}, "n": {"type": "number"},
            "m": {"type": "object", "additionalProperties": {"type": "string"}},
            "p": {"x-kubernetes-int-or-string": true}, "t": {"type": "string", "format": "date-time"},
        }});
        let value = json!({
            "a": 1, "s": "abc", "d": "1h30m", "l": ["a", "b"], "my_field": 2, "x-y": 3, "namespace": "ns", "n": 1,
            "m": {"a-b": "1"}, "p": "50%", "t": "2026-01-02T03:04:05Z",
        });
        for text in [
            "self.a == 1 && has(self.s) && !has(self.l) == false",
            "self.l.all(x, x.size() == 1) && self.l.exists(x, x == 'b') && self.l.exists_one(x, x == 'a')",
            "self.l.map(x, x + '!') == ['a!', 'b!'] && self.l.filter(x, x != 'a').size() == 1",
            "size(self.l) == 2 && 'a' in self.l && self.s in ['abc', 'd']",
            "self.s.matches('^[a-z]+$') && self.s.startsWith('a') && self.s.endsWith('c') && self.s.contains('b')",
            "self.d > duration('1h') && self.d < duration('2h')",
            "self.my_field == 2 && self.x__dash__y == 3 && self.__namespace__ == 'ns'",
            "self.n == 1.0 && self.n / 2.0 == 0.5",
            "self.m['a-b'] == '1' && self.m.all(k, k.size() > 0)",
            "type(self.p) == string ? self.p.endsWith('%') : self.p > 0",
            "self.t < timestamp('2027-01-01T00:00:00Z')",
            "isURL('https://a.example/x') && url('https://a.example/x').getHost() == 'a.example' && !isURL('a b')",
            "isIP('10.0.0.1') && cidr('10.0.0.0/8').containsIP(ip('10.1.1.1')) && !isCIDR('x')",
            "quantity('1Gi').isGreaterThan(quantity('500Mi')) && 'a,b'.split(',').size() == 2",
            "self.l.isSorted() && 'AbC'.lowerAscii() == 'abc' && [1, 2].sum() == 3",
            "self.?s.orValue('z') == 'abc' && self.m[?'none'].orValue('z') == 'z'",
            "math.greatest(1, 2) == 2 && sets.contains(self.l, ['a'])",
            "[?self.?s, ?self.m[?'none']].size() == 1 && {'k': self.s}.k == 'abc' && [1].map(x, [x, x]).flatten() == [1, 1]",
            "lists.range(3) == [0, 1, 2] && 'a-b-c'.replace('-', '', 1) == 'ab-c' && self.l.join('+') == 'a+b'",
            "'%s=%d'.format([self.s, 5]) == 'abc=5' && optional.of(1).hasValue() && dyn(self.a) == 1",
        ] {
            assert_eq!(on(&schema, &value, text), Ok("Bool(true)".into()), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_followed_is_refused_when_it_is_read() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "integer"}, "l": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "string"}}}},
        }});
        for (text, want) in [
            ("self.b > 1", "undefined field 'b'"),
            ("self.l.all(x, x.m == '')", "undefined field 'm'"),
            ("other.a > 1", "undeclared reference to 'other'"),
            ("self.a.frobnicate()", "undeclared reference to 'frobnicate'"),
            ("self.l.all(i, x, x.n == '')", "undeclared reference to 'all'"),
            ("self.l.sortBy(x, x.n).size() > 0", "undeclared reference to"),
            ("self.a >", "compilation failed"),
            ("self.a", "must evaluate to a bool"),
            ("self.a + 1", "must evaluate to a bool"),
            ("self.l.map(x, x.n)", "must evaluate to a bool"),
            ("has(self.a) ? 1 : 2", "must evaluate to a bool"),
            ("Some{a: 1}", "messages cannot be made"),
            ("", "an expression is expected"),
        ] {
            let error = on(&schema, &json!({}), text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
        for text in [
            format!("{}1{}", "(".repeat(5000), ")".repeat(5000)),
            format!("1{}", " + 1".repeat(5000)),
            format!("1{}", " + 1".repeat(900)),
            "true ? 1 : ".repeat(300) + "1",
            "'".repeat(20_000),
            format!("'{}'", "a".repeat(MAX_TEXT)),
        ] {
            assert!(on(&schema, &json!({}), &text).is_err(), "{}", text.chars().take(20).collect::<String>());
        }
    }

    #[test]
    fn loops_are_bounded() {
        let schema = json!({"type": "array", "items": {"type": "integer"}});
        let many = json!((0..2000).collect::<Vec<_>>());
        let began = Instant::now();
        for text in [
            "self.all(a, self.all(b, self.all(c, a + b + c >= 0)))",
            "self.map(a, self + self + self + self).size() > 0",
        ] {
            let error = on(&schema, &many, text).unwrap_err();
            assert!(error.contains("takes more than it may"), "{text}: {error}");
        }
        assert!(began.elapsed() < MAX_TIME * 8, "{:?}", began.elapsed());
        assert_eq!(on(&schema, &many, "self.all(a, a >= 0)"), Ok("Bool(true)".into()));
    }

    /// Peak of this process's memory in bytes.
    fn peak() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    #[test]
    fn memory_is_bounded() {
        let schema = json!({"type": "object", "properties": {
            "s": {"type": "string"}, "l": {"type": "array", "items": {"type": "integer"}},
        }});
        let value = json!({"s": "a".repeat(100_000), "l": (0..20_000).collect::<Vec<_>>()});
        let doubled = |step: &str| format!("[self.s]{}.size() == 1", step.repeat(40));
        let (began, before) = (Instant::now(), peak());
        for text in [
            "lists.range(100000000000).size() > 0".to_string(),
            "lists.range(9223372036854775807).size() > 0".to_string(),
            format!("self.s{}.size() > 0", ".replace('a', 'aaaaaaaaaa')".repeat(12)),
            format!("self.s{}.size() > 0", ".replace('', self.s)".repeat(4)),
            doubled(".map(a, a + a)"),
            doubled(".map(b, [b, b])"),
            doubled(".map(b, {'x': b, 'y': b})"),
            doubled(".map(b, optional.of([b, b]))"),
            doubled(".map(b, '%s%s'.format([b, b]))"),
            format!("[{}].size() > 0", vec!["self.s"; 450].join(", ")),
            format!("({}).size() > 0", vec!["self.s"; 80].join(" + ")),
            "self.l.map(a, self.s).size() > 0".into(),
            format!("self.l.map(a, '{}').size() > 0", "b".repeat(15_000)),
            "lists.range(1000).map(a, string(a)).join(self.s).size() > 0".into(),
            "(self.s + self.s + self.s).split('').size() > 0".into(),
            "(self.s + self.s + self.s).findAll('a').size() > 0".into(),
            "self.l.distinct().size() > 0 && sets.contains(self.l, self.l)".into(),
            "'%.1000000000f'.format([1.0]).size() > 0".into(),
            "lists.range(500).all(a, '%.60000e'.format([1.5]).size() > 0)".into(),
            // An error that is swallowed does not let the rest go on.
            "lists.range(100000000000).size() > 0 || self.s.replace('a', 'b').size() == 0".into(),
        ] {
            let error = on(&schema, &value, &text).unwrap_err();
            assert!(error.contains("takes more than it may"), "{}: {error}", text.chars().take(60).collect::<String>());
        }
        let (took, grown) = (began.elapsed(), peak() - before);
        assert!(took < MAX_TIME * 8, "{took:?}");
        assert!(grown < 512 << 20, "{} MiB", grown >> 20);
        for text in [
            "lists.range(1000).size() == 1000",
            "self.s.replace('a', 'bb').size() == 200000",
            "self.l.all(a, string(a) != '')",
            "'%.3f of 100%%'.format([1.5]) == '1.500 of 100%'",
        ] {
            assert_eq!(on(&schema, &value, text), Ok("Bool(true)".into()), "{text}");
        }
    }

    #[test]
    fn others_go_on_meanwhile() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let ((begun, has_begun), (end, ended)) = (mpsc::channel(), mpsc::channel());
        let evaluation = runtime.spawn(async move {
            evaluate(move |_| {
                begun.send(()).unwrap();
                ended.recv_timeout(Duration::from_secs(20)).is_ok()
            })
        });
        has_begun.recv_timeout(Duration::from_secs(20)).unwrap();
        runtime.spawn(async move { end.send(()) });
        assert_eq!(runtime.block_on(evaluation).unwrap(), Ok(true));
    }
}
