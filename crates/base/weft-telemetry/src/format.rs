//! Access-log formats: `%COMMAND(ARG):LENGTH%` text, and JSON objects of such texts. Parsed once, written per request.
//!
//! Commands and their meaning: Envoy's documentation, "Access logging", "Command operators". What a value is comes from the
//! [`Record`]; this module only knows how it is spelled.

use std::fmt::Write as _;

/// Istio's default text format (spec 3, access logs), used when the mesh gives none.
pub const ISTIO_DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \
\"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" \
%UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% \
%REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// Envoy's own default text format.
pub const ENVOY_DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \
\"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// Longest format text.
const MAX_FORMAT: usize = 16 * 1024;
/// Deepest nesting of a JSON format.
const MAX_DEPTH: usize = 16;

/// A value that a log line may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Request header, with an alternative when it is missing. Lower case; pseudo-headers as `:method`.
    Req(String, Option<String>),
    /// Response header.
    Resp(String, Option<String>),
    /// Response trailer.
    Trailer(String, Option<String>),
    /// When the request began; a strftime format, or RFC 3339 with milliseconds.
    StartTime(Option<String>),
    /// Dynamic metadata: filter and path.
    DynamicMetadata(Vec<String>),
    /// Filter state by key.
    FilterState(String),
    /// Cluster metadata: filter and path.
    ClusterMetadata(Vec<String>),
    /// Any command without arguments, e.g. `RESPONSE_CODE`, as spelled.
    Plain(&'static str),
}

/// Commands without arguments.
const PLAIN: &[&str] = &[
    "PROTOCOL",
    "RESPONSE_CODE",
    "RESPONSE_FLAGS",
    "RESPONSE_CODE_DETAILS",
    "CONNECTION_TERMINATION_DETAILS",
    "UPSTREAM_TRANSPORT_FAILURE_REASON",
    "BYTES_RECEIVED",
    "BYTES_SENT",
    "DURATION",
    "REQUEST_DURATION",
    "RESPONSE_DURATION",
    "RESPONSE_TX_DURATION",
    "UPSTREAM_HOST",
    "UPSTREAM_CLUSTER",
    "UPSTREAM_CLUSTER_RAW",
    "UPSTREAM_LOCAL_ADDRESS",
    "UPSTREAM_REMOTE_ADDRESS",
    "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    "DOWNSTREAM_LOCAL_ADDRESS",
    "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_LOCAL_PORT",
    "DOWNSTREAM_REMOTE_ADDRESS",
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_REMOTE_PORT",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
    "REQUESTED_SERVER_NAME",
    "ROUTE_NAME",
    "DOWNSTREAM_PEER_URI_SAN",
    "DOWNSTREAM_PEER_SUBJECT",
    "DOWNSTREAM_PEER_ISSUER",
    "DOWNSTREAM_LOCAL_URI_SAN",
    "DOWNSTREAM_TLS_VERSION",
    "DOWNSTREAM_TLS_CIPHER",
    "DOWNSTREAM_PEER_FINGERPRINT_256",
    "UPSTREAM_PEER_URI_SAN",
    "UPSTREAM_PEER_SUBJECT",
    "UPSTREAM_TLS_VERSION",
    "UPSTREAM_TLS_CIPHER",
    "HOSTNAME",
    "CONNECTION_ID",
    "VIRTUAL_CLUSTER_NAME",
    "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
    "GRPC_STATUS",
    "REQUEST_HEADERS_BYTES",
    "RESPONSE_HEADERS_BYTES",
    "FILTER_CHAIN_NAME",
    "STREAM_ID",
];

/// What a log line is made from.
pub trait Record {
    /// Appends the value of `command` to `out`. False when there is none: the line then shows `-`.
    fn value(&self, command: &Command, out: &mut String) -> bool;
}

/// Why a format is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A `%` without its partner.
    #[error("access-log format: '%' at byte {0} is never closed; write %% for a percent sign")]
    Unclosed(usize),
    /// No such command.
    #[error("access-log format: unknown command %{0}%")]
    Unknown(String),
    /// Too long or too deep.
    #[error("access-log format: {0}")]
    TooLarge(&'static str),
}

/// A parsed text format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    pieces: Vec<Piece>,
    /// Nothing stands for a missing value.
    omit: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Value(Command, Option<usize>),
}

impl Format {
    /// Parses a format.
    ///
    /// # Errors
    /// On an unknown command, an unclosed `%`, or a text longer than 16 KiB.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        if text.len() > MAX_FORMAT {
            return Err(FormatError::TooLarge("longer than 16 KiB"));
        }
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut at = 0;
        while let Some(found) = text[at..].find('%') {
            let open = at + found;
            literal.push_str(&text[at..open]);
            if text[open + 1..].starts_with('%') {
                literal.push('%');
                at = open + 2;
                continue;
            }
            let close = end_of_command(text, open).ok_or(FormatError::Unclosed(open))?;
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal)));
            }
            pieces.push(parse_command(&text[open + 1..close])?);
            at = close + 1;
        }
        literal.push_str(&text[at..]);
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        Ok(Self { pieces, omit: false })
    }

    /// Appends the line for `record`. Missing values are `-`; control characters and quotes from outside are escaped, so
    /// that a header cannot forge a line.
    pub fn write(&self, record: &impl Record, out: &mut String) {
        let mut value = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Value(command, limit) => {
                    value.clear();
                    if record.value(command, &mut value) {
                        escape(cut(&value, *limit), out);
                    } else if !self.omit {
                        out.push('-');
                    }
                }
            }
        }
    }

    /// The same with nothing in place of missing values (`omit_empty_values`).
    #[must_use]
    pub fn without_missing(mut self) -> Self {
        self.omit = true;
        self
    }

    /// The commands in it, so that a caller can keep just what they need.
    pub fn commands(&self) -> impl Iterator<Item = &Command> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Value(command, _) => Some(command),
        })
    }

    /// The text for a header: missing values are empty, and nothing is escaped.
    pub fn header_text(&self, record: &impl Record) -> String {
        let (mut out, mut value) = (String::new(), String::new());
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Value(command, limit) => {
                    value.clear();
                    if record.value(command, &mut value) {
                        out.push_str(cut(&value, *limit));
                    }
                }
            }
        }
        out
    }

    /// The value of a format that is one command alone, without escapes; else the whole line. `None` when it is missing.
    fn json_value(&self, record: &impl Record) -> serde_json::Value {
        let mut text = String::new();
        if let [Piece::Value(command, limit)] = self.pieces.as_slice() {
            if !record.value(command, &mut text) {
                return serde_json::Value::Null;
            }
            let shown = cut(&text, *limit);
            let numeric = matches!(
                command,
                Command::Plain(
                    "RESPONSE_CODE"
                        | "BYTES_RECEIVED"
                        | "BYTES_SENT"
                        | "DURATION"
                        | "REQUEST_DURATION"
                        | "RESPONSE_DURATION"
                        | "RESPONSE_TX_DURATION"
                        | "CONNECTION_ID"
                        | "UPSTREAM_REQUEST_ATTEMPT_COUNT"
                )
            );
            return match shown.parse::<u64>() {
                Ok(number) if numeric => number.into(),
                _ => shown.into(),
            };
        }
        self.write(record, &mut text);
        text.into()
    }
}

/// The `%` that closes the command opened at `open`: one outside parentheses.
fn end_of_command(text: &str, open: usize) -> Option<usize> {
    let mut in_parens = false;
    for (i, c) in text[open + 1..].char_indices() {
        match c {
            '(' => in_parens = true,
            ')' => in_parens = false,
            '%' if !in_parens => return Some(open + 1 + i),
            _ => {}
        }
    }
    None
}

fn parse_command(text: &str) -> Result<Piece, FormatError> {
    let unknown = || FormatError::Unknown(text.to_string());
    let (name, rest) = text.find(['(', ':']).map_or((text, ""), |i| text.split_at(i));
    let (argument, rest) = match rest.strip_prefix('(') {
        Some(inner) => inner.split_once(')').map(|(a, r)| (Some(a), r)).ok_or_else(unknown)?,
        None => (None, rest),
    };
    let limit = match rest.strip_prefix(':') {
        Some(number) => Some(number.parse().map_err(|_| unknown())?),
        None if rest.is_empty() => None,
        None => return Err(unknown()),
    };
    let header = |a: &str| {
        let (main, alternative) = a.split_once('?').map_or((a, None), |(m, o)| (m, Some(o.to_ascii_lowercase())));
        (main.to_ascii_lowercase(), alternative)
    };
    let path = |a: &str| a.split(':').map(str::to_string).collect();
    let command = match (name, argument) {
        ("REQ", Some(a)) => {
            let (m, o) = header(a);
            Command::Req(m, o)
        }
        ("RESP", Some(a)) => {
            let (m, o) = header(a);
            Command::Resp(m, o)
        }
        ("TRAILER", Some(a)) => {
            let (m, o) = header(a);
            Command::Trailer(m, o)
        }
        ("START_TIME", a) => Command::StartTime(a.filter(|a| !a.is_empty()).map(str::to_string)),
        ("DYNAMIC_METADATA", Some(a)) => Command::DynamicMetadata(path(a)),
        ("CLUSTER_METADATA", Some(a)) => Command::ClusterMetadata(path(a)),
        ("FILTER_STATE", Some(a)) => Command::FilterState(a.to_string()),
        (name, None) => Command::Plain(PLAIN.iter().find(|p| **p == name).ok_or_else(unknown)?),
        _ => return Err(unknown()),
    };
    Ok(Piece::Value(command, limit))
}

fn cut(text: &str, limit: Option<usize>) -> &str {
    match limit.and_then(|n| text.char_indices().nth(n)) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            // Both, or a backslash before a quote would end the field for whoever parses it.
            '"' | '\\' => out.extend(['\\', c]),
            // What some readers take for the end of a line.
            '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
}

/// A parsed JSON format: an object whose string leaves are text formats.
#[derive(Debug, Clone)]
pub struct JsonFormat {
    root: Node,
    omit: bool,
}

#[derive(Debug, Clone)]
enum Node {
    Leaf(Format),
    Object(Vec<(String, Node)>),
    List(Vec<Node>),
    Constant(serde_json::Value),
}

impl JsonFormat {
    /// Parses a JSON format.
    ///
    /// # Errors
    /// As [`Format::parse`] for any leaf, or when nested deeper than 16 levels.
    pub fn parse(value: &serde_json::Value) -> Result<Self, FormatError> {
        Ok(Self { root: parse_node(value, 0)?, omit: false })
    }

    /// The same without fields whose value is missing (`omit_empty_values`).
    #[must_use]
    pub fn without_missing(mut self) -> Self {
        self.root.omit();
        self.omit = true;
        self
    }

    /// Shows every command in it to `see`.
    pub fn commands(&self, see: &mut dyn FnMut(&Command)) {
        self.root.commands(see);
    }

    /// Appends the object for `record`, and a newline. Missing values are `null`, or not there.
    pub fn write(&self, record: &impl Record, out: &mut String) {
        let _ = writeln!(out, "{}", node_value(&self.root, record, self.omit));
    }
}

impl Node {
    fn omit(&mut self) {
        match self {
            Node::Leaf(format) => format.omit = true,
            Node::Object(fields) => fields.iter_mut().for_each(|(_, node)| node.omit()),
            Node::List(items) => items.iter_mut().for_each(Node::omit),
            Node::Constant(_) => {}
        }
    }

    fn commands(&self, see: &mut dyn FnMut(&Command)) {
        match self {
            Node::Leaf(format) => format.commands().for_each(see),
            Node::Object(fields) => fields.iter().for_each(|(_, node)| node.commands(see)),
            Node::List(items) => items.iter().for_each(|node| node.commands(see)),
            Node::Constant(_) => {}
        }
    }
}

fn parse_node(value: &serde_json::Value, depth: usize) -> Result<Node, FormatError> {
    if depth > MAX_DEPTH {
        return Err(FormatError::TooLarge("JSON nested deeper than 16 levels"));
    }
    Ok(match value {
        serde_json::Value::String(text) => Node::Leaf(Format::parse(text)?),
        serde_json::Value::Object(fields) => Node::Object(
            fields.iter().map(|(k, v)| Ok((k.clone(), parse_node(v, depth + 1)?))).collect::<Result<_, _>>()?,
        ),
        serde_json::Value::Array(items) => {
            Node::List(items.iter().map(|v| parse_node(v, depth + 1)).collect::<Result<_, _>>()?)
        }
        other => Node::Constant(other.clone()),
    })
}

fn node_value(node: &Node, record: &impl Record, omit: bool) -> serde_json::Value {
    match node {
        Node::Leaf(format) => format.json_value(record),
        Node::Object(fields) => {
            let all = fields.iter().map(|(k, n)| (k.clone(), node_value(n, record, omit)));
            serde_json::Value::Object(all.filter(|(_, value)| !(omit && value.is_null())).collect())
        }
        Node::List(items) => items.iter().map(|n| node_value(n, record, omit)).collect(),
        Node::Constant(value) => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;
    impl Record for Fixed {
        fn value(&self, command: &Command, out: &mut String) -> bool {
            match command {
                Command::Req(name, alternative) if name == "x" || alternative.as_deref() == Some(":path") => {
                    out.push_str("a\"b\r\nc");
                }
                Command::Plain("RESPONSE_CODE") => out.push_str("200"),
                _ => return false,
            }
            true
        }
    }

    fn line(format: &str) -> String {
        let mut out = String::new();
        Format::parse(format).unwrap().write(&Fixed, &mut out);
        out
    }

    #[test]
    fn text() {
        assert_eq!(line("%RESPONSE_CODE% %% %DURATION%"), "200 % -");
        assert_eq!(line("%REQ(X)%"), "a\\\"b\\x0d\\x0ac");
        assert_eq!(line("%REQ(Y?:PATH):1%|%START_TIME(%Y)%"), "a|-");
        Format::parse(ISTIO_DEFAULT).unwrap();
        Format::parse(ENVOY_DEFAULT).unwrap();
    }

    #[test]
    fn missing_values_are_left_out_on_demand() {
        let mut out = String::new();
        Format::parse("%RESPONSE_CODE%[%DURATION%]").unwrap().without_missing().write(&Fixed, &mut out);
        assert_eq!(out, "200[]");
        let object = serde_json::json!({"code": "%RESPONSE_CODE%", "none": "%DURATION%", "deep": {"none": "%DURATION%"}, "mixed": "a%DURATION%"});
        out.clear();
        JsonFormat::parse(&object).unwrap().without_missing().write(&Fixed, &mut out);
        let back: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(back, serde_json::json!({"code": 200, "deep": {}, "mixed": "a"}));
    }

    #[test]
    fn bad_formats_are_named() {
        assert_eq!(Format::parse("a %REQ(x)"), Err(FormatError::Unclosed(2)));
        assert_eq!(Format::parse("%NOPE%"), Err(FormatError::Unknown("NOPE".into())));
        assert_eq!(Format::parse("%REQ%"), Err(FormatError::Unknown("REQ".into())));
    }

    #[test]
    fn json() {
        let format =
            serde_json::json!({"code": "%RESPONSE_CODE%", "deep": {"x": "%REQ(X)%"}, "none": "%DURATION%", "n": 1});
        let mut out = String::new();
        JsonFormat::parse(&format).unwrap().write(&Fixed, &mut out);
        let back: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(back, serde_json::json!({"code": 200, "deep": {"x": "a\"b\r\nc"}, "none": null, "n": 1}));
    }
}
