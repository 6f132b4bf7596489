//! Tree and data to text.

use super::functions;
use super::parse::{Bound, Node, Operand, Pipeline, Root};
use serde_json::Value;

/// Most steps of a run.
const MAX_STEPS: usize = 200_000;
/// Longest text that a run writes, bytes.
const MAX_OUTPUT: usize = 4 << 20;

/// Runs a template.
///
/// # Errors
/// The line and what is wrong there.
pub(super) fn run(nodes: &[Node], data: &Value) -> Result<String, String> {
    let mut state = State { data, variables: Vec::new(), out: String::new(), steps: 0 };
    state.nodes(nodes, data)?;
    Ok(state.out)
}

struct State<'a> {
    data: &'a Value,
    variables: Vec<(String, Value)>,
    out: String,
    steps: usize,
}

impl State<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<(), String> {
        let scope = self.variables.len();
        for node in nodes {
            self.steps += 1;
            if self.steps > MAX_STEPS || self.out.len() > MAX_OUTPUT {
                return Err("the template takes too many steps or writes too much".into());
            }
            self.node(node, dot)?;
        }
        self.variables.truncate(scope);
        Ok(())
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<(), String> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Print(pipeline) => {
                let value = self.value(pipeline, dot)?;
                self.out.push_str(&functions::text(&value));
            }
            Node::Set { line, name, declare, value } => {
                let value = self.value(value, dot)?;
                match self.variables.iter_mut().rev().find(|(known, _)| known == name).filter(|_| !declare) {
                    Some(known) => known.1 = value,
                    None if *declare => self.variables.push((name.clone(), value)),
                    None => return Err(format!("line {line}: ${name} is set before it is declared with :=")),
                }
            }
            Node::If { with, condition, then, otherwise } => self.condition(*with, condition, then, otherwise, dot)?,
            Node::Range { key, value, over, body, otherwise } => {
                self.range((key.as_deref(), value.as_deref()), over, body, otherwise, dot)?;
            }
        }
        Ok(())
    }

    fn condition(
        &mut self,
        with: bool,
        condition: &Bound,
        then: &[Node],
        otherwise: &[Node],
        dot: &Value,
    ) -> Result<(), String> {
        let scope = self.variables.len();
        let value = self.value(&condition.value, dot)?;
        if let Some(name) = &condition.name {
            self.variables.push((name.clone(), value.clone()));
        }
        let holds = functions::is_true(&value);
        match (holds, with) {
            (true, true) => self.nodes(then, &value)?,
            (true, false) => self.nodes(then, dot)?,
            (false, _) => self.nodes(otherwise, dot)?,
        }
        self.variables.truncate(scope);
        Ok(())
    }

    fn range(
        &mut self,
        names: (Option<&str>, Option<&str>),
        over: &Pipeline,
        body: &[Node],
        otherwise: &[Node],
        dot: &Value,
    ) -> Result<(), String> {
        let items: Vec<(Value, Value)> = match self.value(over, dot)? {
            Value::Array(items) => items.into_iter().enumerate().map(|(at, item)| (at.into(), item)).collect(),
            Value::Object(fields) => {
                let mut items: Vec<_> = fields.into_iter().map(|(name, value)| (Value::from(name), value)).collect();
                // Go walks maps in the order of their keys.
                items.sort_by(|a, b| a.0.as_str().cmp(&b.0.as_str()));
                items
            }
            Value::Null => Vec::new(),
            other => return Err(format!("line {}: range over {other}, which is neither a list nor a map", over.line)),
        };
        if items.is_empty() {
            return self.nodes(otherwise, dot);
        }
        for (at, item) in items {
            let scope = self.variables.len();
            self.variables.extend(names.0.map(|name| (name.to_string(), at)));
            self.variables.extend(names.1.map(|name| (name.to_string(), item.clone())));
            self.nodes(body, &item)?;
            self.variables.truncate(scope);
        }
        Ok(())
    }

    fn value(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value, String> {
        let mut last: Option<Value> = None;
        for command in &pipeline.commands {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err("the template takes too many steps".into());
            }
            last = Some(self.command(command, last, dot, pipeline.line)?);
        }
        Ok(last.unwrap_or(Value::Null))
    }

    fn command(
        &mut self,
        command: &[Operand],
        piped: Option<Value>,
        dot: &Value,
        line: usize,
    ) -> Result<Value, String> {
        let Some((first, rest)) = command.split_first() else { return Ok(Value::Null) };
        let Operand::Function(name) = first else {
            if !rest.is_empty() || piped.is_some() {
                return Err(format!("line {line}: only a function takes arguments"));
            }
            return self.operand(first, dot, line);
        };
        let mut arguments = Vec::with_capacity(rest.len() + 1);
        for operand in rest {
            arguments.push(self.operand(operand, dot, line)?);
        }
        arguments.extend(piped);
        functions::call(name, &arguments).map_err(|message| format!("line {line}: {name}: {message}"))
    }

    fn operand(&mut self, operand: &Operand, dot: &Value, line: usize) -> Result<Value, String> {
        match operand {
            Operand::Literal(value) => Ok(value.clone()),
            Operand::Function(name) => {
                functions::call(name, &[]).map_err(|message| format!("line {line}: {name}: {message}"))
            }
            Operand::Path { root: Root::Dot, fields } => Ok(field(dot, fields).clone()),
            Operand::Path { root: Root::Variable(name), fields } if name.is_empty() => {
                Ok(field(self.data, fields).clone())
            }
            Operand::Path { root: Root::Variable(name), fields } => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                let (_, value) = found.ok_or_else(|| format!("line {line}: ${name} is not declared"))?;
                Ok(field(value, fields).clone())
            }
            Operand::Path { root: Root::Parens(inner), fields } => {
                let value = self.value(inner, dot)?;
                Ok(field(&value, fields).clone())
            }
        }
    }
}

/// The value of a chain of fields; null where there is none.
fn field<'a>(value: &'a Value, fields: &[String]) -> &'a Value {
    fields
        .iter()
        .fold(value, |value, name| value.get(name.as_str()).or_else(|| value.get(small(name))).unwrap_or(&Value::Null))
}

/// With a small first letter: Go's name of a field to that of its JSON.
fn small(name: &str) -> String {
    let mut chars = name.chars();
    let first = chars.next().map(|c| c.to_lowercase().to_string()).unwrap_or_default();
    first + chars.as_str()
}
