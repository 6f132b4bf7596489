//! Template text to a tree.

use super::functions;
use serde_json::Value;

/// Deepest nesting of blocks and parentheses.
const MAX_DEPTH: usize = 64;
/// Most actions of a template.
const MAX_NODES: usize = 20_000;

/// A part of a template; actions know their line.
#[derive(Debug, PartialEq)]
pub(super) enum Node {
    Text(String),
    Print(Pipeline),
    Set {
        line: usize,
        name: String,
        declare: bool,
        value: Pipeline,
    },
    /// Also `with`, which makes its value the dot.
    If {
        with: bool,
        condition: Bound,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Range {
        key: Option<String>,
        value: Option<String>,
        over: Pipeline,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// A pipeline whose value may get a name.
#[derive(Debug, PartialEq)]
pub(super) struct Bound {
    pub name: Option<String>,
    pub value: Pipeline,
}

/// Commands, each of which gets the value of the one before as its last argument.
#[derive(Debug, PartialEq)]
pub(super) struct Pipeline {
    pub line: usize,
    pub commands: Vec<Vec<Operand>>,
}

#[derive(Debug, PartialEq)]
pub(super) enum Operand {
    Literal(Value),
    Function(String),
    Path { root: Root, fields: Vec<String> },
}

#[derive(Debug, PartialEq)]
pub(super) enum Root {
    Dot,
    Variable(String),
    Parens(Box<Pipeline>),
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    /// A word: keyword or function.
    Word(String),
    /// `$name`; the name is empty for the data itself.
    Variable(String),
    /// `.a.b`; no fields for the dot.
    Fields(Vec<String>),
    /// `.a.b` right after a variable or parentheses: fields of that.
    Attached(Vec<String>),
    Literal(Value),
    Sign(&'static str),
}

/// What an action says, with its line.
#[derive(Debug)]
struct Action {
    line: usize,
    tokens: Vec<Token>,
}

#[derive(Debug)]
enum Piece {
    Text(String),
    Action(Action),
}

/// Reads a template.
///
/// # Errors
/// The line and what is wrong there.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, String> {
    let pieces = cut(text)?;
    if pieces.len() > MAX_NODES {
        return Err(format!("the template has more than {MAX_NODES} actions"));
    }
    let mut parser = Parser { pieces: pieces.into_iter(), line: 1 };
    let (nodes, end) = parser.block(0)?;
    match end {
        None => Ok(nodes),
        Some(end) => Err(format!("line {}: {{{{ {} }}}} without its beginning", parser.line, end.word())),
    }
}

/// Cuts a text into text and actions, blanks trimmed where `{{-` and `-}}` ask for it.
fn cut(text: &str) -> Result<Vec<Piece>, String> {
    let (mut pieces, mut rest, mut line, mut trim) = (Vec::new(), text, 1, false);
    while let Some(open) = rest.find("{{") {
        let before = &rest[..open];
        line += before.matches('\n').count();
        let mut inner = &rest[open + 2..];
        let trim_before = inner.starts_with("- ") || inner.starts_with("-\n") || inner.starts_with("-\t");
        if trim_before {
            inner = &inner[1..];
        }
        let mut shown = if trim { before.trim_start() } else { before };
        if trim_before {
            shown = shown.trim_end();
        }
        pieces.push(Piece::Text(shown.to_string()));
        let close = end_of_action(inner).ok_or_else(|| format!("line {line}: {{{{ without }}}}"))?;
        let (mut body, after) = (&inner[..close], &inner[close + 2..]);
        trim = body.ends_with(" -") || body.ends_with("\n-") || body.ends_with("*/-") || body == "-";
        if trim {
            body = &body[..body.len() - 1];
        }
        if !body.trim().starts_with("/*") {
            let tokens = tokens(body).map_err(|message| format!("line {line}: {message}"))?;
            pieces.push(Piece::Action(Action { line, tokens }));
        }
        line += body.matches('\n').count();
        rest = after;
    }
    pieces.push(Piece::Text(if trim { rest.trim_start().to_string() } else { rest.to_string() }));
    Ok(pieces)
}

/// Where the `}}` is that ends an action: not inside a string or a comment.
fn end_of_action(text: &str) -> Option<usize> {
    if text.trim_start().starts_with("/*") {
        let end = text.find("*/")? + 2;
        return text[end..].find("}}").map(|at| end + at);
    }
    let (mut quote, mut escaped) = (None, false);
    for (at, c) in text.char_indices() {
        match quote {
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '`' => quote = Some(c),
            None if text[at..].starts_with("}}") => return Some(at),
            None => {}
        }
    }
    None
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let (mut found, mut rest) = (Vec::new(), text.trim_start());
    while let Some(first) = rest.chars().next() {
        let word_end = |from: usize| rest[from..].find(|c| !is_word(c)).map_or(rest.len(), |at| from + at);
        let used = match first {
            '|' => sign(&mut found, "|"),
            '(' => sign(&mut found, "("),
            ')' => {
                found.push(Token::Sign(")"));
                let (fields, length) = fields(&rest[1..]);
                if !fields.is_empty() {
                    found.push(Token::Attached(fields));
                }
                1 + length
            }
            ',' => sign(&mut found, ","),
            ':' if rest.starts_with(":=") => sign(&mut found, ":="),
            '=' => sign(&mut found, "="),
            '"' | '`' => {
                let (value, length) = string(rest)?;
                found.push(Token::Literal(value.into()));
                length
            }
            '$' => {
                let end = word_end(1);
                found.push(Token::Variable(rest[1..end].to_string()));
                let (fields, length) = fields(&rest[end..]);
                if !fields.is_empty() {
                    found.push(Token::Attached(fields));
                }
                end + length
            }
            '.' => {
                let (fields, length) = fields(rest);
                found.push(Token::Fields(fields));
                length.max(1)
            }
            c if c.is_ascii_digit() || (c == '-' && rest[1..].starts_with(|c: char| c.is_ascii_digit())) => {
                let end = 1 + rest[1..].find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len() - 1);
                let number = &rest[..end];
                let value = serde_json::from_str(number).map_err(|_| format!("{number:?} is not a number"))?;
                found.push(Token::Literal(value));
                end
            }
            c if is_word(c) => {
                let end = word_end(0);
                found.push(match &rest[..end] {
                    "true" => Token::Literal(true.into()),
                    "false" => Token::Literal(false.into()),
                    "nil" => Token::Literal(Value::Null),
                    word => Token::Word(word.to_string()),
                });
                end
            }
            other => return Err(format!("{other:?} is not expected here")),
        };
        let next = &rest[used..];
        rest = next.trim_start();
    }
    Ok(found)
}

fn sign(found: &mut Vec<Token>, sign: &'static str) -> usize {
    found.push(Token::Sign(sign));
    sign.len()
}

/// `.a.b` and its length.
fn fields(text: &str) -> (Vec<String>, usize) {
    let (mut fields, mut at) = (Vec::new(), 0);
    while text[at..].starts_with('.') {
        let end = text[at + 1..].find(|c| !is_word(c)).map_or(text.len(), |end| at + 1 + end);
        if end == at + 1 {
            break;
        }
        fields.push(text[at + 1..end].to_string());
        at = end;
    }
    (fields, at)
}

fn string(text: &str) -> Result<(String, usize), String> {
    let unended = || "a string does not end".to_string();
    if let Some(rest) = text.strip_prefix('`') {
        let end = rest.find('`').ok_or_else(unended)?;
        return Ok((rest[..end].to_string(), end + 2));
    }
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => {
                let quoted = &text[..=at];
                let value = serde_json::from_str(quoted).map_err(|_| format!("{quoted} is not a string"))?;
                return Ok((value, at + 1));
            }
            _ => {}
        }
    }
    Err(unended())
}

/// What ends a block.
enum End {
    End,
    /// `else`, with the rest of its action.
    Else(Vec<Token>),
}

impl End {
    fn word(&self) -> &'static str {
        match self {
            End::End => "end",
            End::Else(_) => "else",
        }
    }
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    line: usize,
}

impl Parser {
    fn error<T>(&self, message: impl std::fmt::Display) -> Result<T, String> {
        Err(format!("line {}: {message}", self.line))
    }

    /// Nodes up to the end of the block, and what ended it; nothing at the end of the text.
    fn block(&mut self, depth: usize) -> Result<(Vec<Node>, Option<End>), String> {
        if depth > MAX_DEPTH {
            return self.error(format_args!("blocks are nested deeper than {MAX_DEPTH}"));
        }
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let action = match piece {
                Piece::Text(text) if text.is_empty() => continue,
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(action) => action,
            };
            self.line = action.line;
            let mut tokens = action.tokens;
            let keyword = match tokens.first() {
                Some(Token::Word(word)) => word.clone(),
                Some(_) => String::new(),
                None => return self.error("an action is empty"),
            };
            match keyword.as_str() {
                "end" => return Ok((nodes, Some(End::End))),
                "else" => return Ok((nodes, Some(End::Else(tokens.split_off(1))))),
                "if" | "with" => nodes.push(self.condition(keyword == "with", tokens.split_off(1), depth)?),
                "range" => nodes.push(self.range(tokens.split_off(1), depth)?),
                "define" | "template" | "block" | "break" | "continue" => {
                    return self.error(format_args!("{keyword} is not supported in injection templates"));
                }
                _ => nodes.push(self.statement(tokens)?),
            }
        }
        Ok((nodes, None))
    }

    fn statement(&self, tokens: Vec<Token>) -> Result<Node, String> {
        let (name, rest, declare) = self.binding(tokens)?;
        let value = self.pipeline(&rest)?;
        Ok(match name {
            Some(name) => Node::Set { line: self.line, name, declare, value },
            None => Node::Print(value),
        })
    }

    /// `$name :=` or `$name =` before a pipeline.
    fn binding(&self, mut tokens: Vec<Token>) -> Result<(Option<String>, Vec<Token>, bool), String> {
        let sign = match tokens.get(1) {
            Some(Token::Sign(sign @ (":=" | "="))) => *sign,
            _ => return Ok((None, tokens, false)),
        };
        let Some(Token::Variable(name)) = tokens.first().cloned() else {
            return self.error("only a $variable can be set");
        };
        Ok((Some(name), tokens.split_off(2), sign == ":="))
    }

    fn condition(&mut self, with: bool, tokens: Vec<Token>, depth: usize) -> Result<Node, String> {
        let (name, rest, _) = self.binding(tokens)?;
        let condition = Bound { name, value: self.pipeline(&rest)? };
        let (then, end) = self.block(depth + 1)?;
        let otherwise = self.otherwise(end, depth)?;
        Ok(Node::If { with, condition, then, otherwise })
    }

    /// What stands between `else` and `end`.
    fn otherwise(&mut self, end: Option<End>, depth: usize) -> Result<Vec<Node>, String> {
        match end {
            Some(End::End) => Ok(Vec::new()),
            None => self.error("{{ end }} is missing"),
            Some(End::Else(mut tokens)) => {
                if let Some(Token::Word(word)) = tokens.first() {
                    let with = match word.as_str() {
                        "if" => false,
                        "with" => true,
                        other => return self.error(format_args!("else {other:?} is not known")),
                    };
                    let rest = tokens.split_off(1);
                    return Ok(vec![self.condition(with, rest, depth + 1)?]);
                }
                match self.block(depth + 1)? {
                    (nodes, Some(End::End)) => Ok(nodes),
                    _ => self.error("{{ end }} is missing"),
                }
            }
        }
    }

    fn range(&mut self, mut tokens: Vec<Token>, depth: usize) -> Result<Node, String> {
        let (mut key, mut value) = (None, None);
        if let Some(at) = tokens.iter().position(|token| *token == Token::Sign(":=")) {
            let rest = tokens.split_off(at + 1);
            match tokens.as_slice() {
                [Token::Variable(one), _] => value = Some(one.clone()),
                [Token::Variable(one), Token::Sign(","), Token::Variable(two), _] => {
                    (key, value) = (Some(one.clone()), Some(two.clone()));
                }
                _ => return self.error("range takes one or two $variables"),
            }
            tokens = rest;
        }
        let over = self.pipeline(&tokens)?;
        let (body, end) = self.block(depth + 1)?;
        let otherwise = self.otherwise(end, depth)?;
        Ok(Node::Range { key, value, over, body, otherwise })
    }

    fn pipeline(&self, tokens: &[Token]) -> Result<Pipeline, String> {
        let mut rest = tokens;
        let pipeline = self.commands(&mut rest, 0)?;
        if !rest.is_empty() {
            return self.error("a closing parenthesis has no opening one");
        }
        Ok(pipeline)
    }

    /// Commands up to the end of the tokens, or a closing parenthesis.
    fn commands(&self, rest: &mut &[Token], depth: usize) -> Result<Pipeline, String> {
        if depth > MAX_DEPTH {
            return self.error(format_args!("parentheses are nested deeper than {MAX_DEPTH}"));
        }
        let (mut commands, mut command) = (Vec::new(), Vec::new());
        while let Some((token, after)) = rest.split_first() {
            if *token == Token::Sign(")") {
                break;
            }
            *rest = after;
            match token {
                Token::Sign("|") => commands.push(std::mem::take(&mut command)),
                Token::Sign("(") => {
                    let inner = self.commands(rest, depth + 1)?;
                    match rest.split_first() {
                        Some((Token::Sign(")"), after)) => *rest = after,
                        _ => return self.error("a closing parenthesis is missing"),
                    }
                    command.push(Operand::Path { root: Root::Parens(Box::new(inner)), fields: take_fields(rest) });
                }
                Token::Sign(sign) => return self.error(format_args!("{sign} is not expected here")),
                Token::Literal(value) => command.push(Operand::Literal(value.clone())),
                Token::Attached(_) => return self.error("a field is not expected here"),
                Token::Fields(fields) => command.push(Operand::Path { root: Root::Dot, fields: fields.clone() }),
                Token::Variable(name) => {
                    let fields = take_fields(rest);
                    command.push(Operand::Path { root: Root::Variable(name.clone()), fields });
                }
                Token::Word(name) if functions::known(name) => command.push(Operand::Function(name.clone())),
                Token::Word(name) => {
                    return self.error(format_args!(
                        "the function {name:?} does not exist in injection templates; there are {}",
                        functions::NAMES.join(", ")
                    ));
                }
            }
        }
        commands.push(command);
        if commands.iter().any(Vec::is_empty) {
            return self.error("a value is missing");
        }
        Ok(Pipeline { line: self.line, commands })
    }
}

fn take_fields(rest: &mut &[Token]) -> Vec<String> {
    match rest.split_first() {
        Some((Token::Attached(fields), after)) => {
            *rest = after;
            fields.clone()
        }
        _ => Vec::new(),
    }
}
