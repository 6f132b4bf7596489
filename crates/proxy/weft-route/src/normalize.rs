//! The one normaliser. Path and host pass here once, before routing and authorization, and both see the same bytes as the
//! endpoint does. What cannot be read in one way only is rejected.
//!
//! Percent-escapes of unreserved characters are decoded, dot segments are resolved (also `..;x`, which some backends
//! take for `..`), `\` is `/`, and a few characters are escaped, as Envoy's `normalize_path` does; the results were compared
//! with Envoy 1.40. It differs on purpose in two places, both on the safe side: the result is a fixed point (`/%2e%2e;/a`
//! leaves no `..;` behind), and merging slashes leaves one slash of `///`, where Envoy leaves two.

use std::borrow::Cow;

/// Path normalisation, in the order applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathNormalization {
    /// RFC 3986 normalisation (dot segments, escapes of unreserved characters).
    pub rfc3986: bool,
    /// Merge `//`.
    pub merge_slashes: bool,
    /// What to do with `%2F` and `%5C`.
    pub escaped_slashes: EscapedSlashes,
}

/// What to do with escaped slashes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// Leave them.
    #[default]
    Keep,
    /// Answer 400.
    Reject,
    /// Decode them and go on.
    UnescapeAndForward,
    /// Decode them and answer with a redirect.
    UnescapeAndRedirect,
}

/// A normalised path.
#[derive(Debug, PartialEq, Eq)]
pub struct Normalized<'a> {
    /// Path and query; the query is as it was sent. Borrowed when nothing changed.
    pub path_and_query: Cow<'a, str>,
    /// Bytes of the path, which the query's `?` follows.
    pub path_len: usize,
    /// Answer with a redirect (307) to the normalised path.
    pub redirect: bool,
}

impl Normalized<'_> {
    /// The path without query.
    pub fn path(&self) -> &str {
        &self.path_and_query[..self.path_len]
    }

    /// The query without `?`.
    pub fn query(&self) -> Option<&str> {
        self.path_and_query.get(self.path_len + 1..)
    }
}

/// Why a path is answered with 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathRejected {
    /// It holds a `#`: a fragment is never sent, and parsers disagree on what it means.
    #[error("the path holds a fragment")]
    Fragment,
    /// It holds an escaped slash.
    #[error("the path holds an escaped slash")]
    EscapedSlash,
    /// It does not begin with `/`.
    #[error("the path does not begin with /")]
    NotAbsolute,
    /// It holds a NUL, a control character, a space or a byte that is not ASCII.
    #[error("the path holds a character that must be escaped")]
    BadCharacter,
}

/// Normalises a path with its query (`:path`).
///
/// # Errors
/// When the request must be answered with 400.
pub fn path<'a>(raw: &'a str, how: &PathNormalization) -> Result<Normalized<'a>, PathRejected> {
    if !raw.starts_with('/') {
        return Err(PathRejected::NotAbsolute);
    }
    let path_len = check(raw)?;
    let (path, rest) = raw.split_at(path_len);
    if is_clean(path, how) {
        return Ok(Normalized { path_and_query: Cow::Borrowed(raw), path_len, redirect: false });
    }
    let mut new = Cow::Borrowed(path);
    let mut redirect = false;
    if how.escaped_slashes != EscapedSlashes::Keep
        && let Some(unescaped) = unescape_slashes(path)
    {
        match how.escaped_slashes {
            EscapedSlashes::Reject => return Err(PathRejected::EscapedSlash),
            EscapedSlashes::UnescapeAndRedirect => redirect = true,
            EscapedSlashes::UnescapeAndForward | EscapedSlashes::Keep => {}
        }
        new = Cow::Owned(unescaped);
    }
    if how.rfc3986 {
        new = Cow::Owned(canonical(&new)?);
    }
    if how.merge_slashes {
        new = Cow::Owned(merge_slashes(&new));
    }
    if new == path {
        return Ok(Normalized { path_and_query: Cow::Borrowed(raw), path_len, redirect: false });
    }
    let mut whole = new.into_owned();
    let path_len = whole.len();
    whole.push_str(rest);
    Ok(Normalized { path_and_query: Cow::Owned(whole), path_len, redirect })
}

/// Rejects what no client may send; otherwise the length of the path before `?`.
fn check(raw: &str) -> Result<usize, PathRejected> {
    let mut path_len = raw.len();
    for (at, byte) in raw.bytes().enumerate() {
        match byte {
            b'#' => return Err(PathRejected::Fragment),
            0..=b' ' | 0x7f..=0xff => return Err(PathRejected::BadCharacter),
            b'?' if path_len == raw.len() => path_len = at,
            _ => {}
        }
    }
    Ok(path_len)
}

/// The usual case, found out in one pass: nothing in the path could change.
fn is_clean(path: &str, how: &PathNormalization) -> bool {
    let mut previous = 0;
    path.bytes().all(|byte| {
        let clean = match byte {
            b'%' => !how.rfc3986 && how.escaped_slashes == EscapedSlashes::Keep,
            b'.' => !how.rfc3986 || previous != b'/',
            b'/' => !how.merge_slashes || previous != b'/',
            _ => !how.rfc3986 || !(byte == b'\\' || must_escape(byte)),
        };
        previous = byte;
        clean
    })
}

/// Decodes `%2F` and `%5C`; `None` when there is none.
fn unescape_slashes(path: &str) -> Option<String> {
    let slash = |bytes: &[u8]| match bytes {
        [b'%', b'2', b'f' | b'F', ..] => Some('/'),
        [b'%', b'5', b'c' | b'C', ..] => Some('\\'),
        _ => None,
    };
    let mut out = String::with_capacity(path.len());
    let mut found = false;
    let mut at = 0;
    while at < path.len() {
        if let Some(decoded) = slash(&path.as_bytes()[at..]) {
            found = true;
            out.push(decoded);
            at += 3;
        } else {
            out.push(char::from(path.as_bytes()[at]));
            at += 1;
        }
    }
    found.then_some(out)
}

/// RFC 3986 section 6.2.2.2 and 6.2.2.3: escapes of unreserved characters, then dot segments.
fn canonical(path: &str) -> Result<String, PathRejected> {
    let decoded = decode_unreserved(path)?;
    let mut out = String::with_capacity(decoded.len());
    let mut segments = decoded[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment.split_once(';').map_or(segment, |(name, _)| name) {
            "." => {}
            ".." => out.truncate(out.rfind('/').unwrap_or(0)),
            _ => {
                out.push('/');
                out.push_str(segment);
                continue;
            }
        }
        // A dot segment at the end leaves its slash behind: /a/. is /a/.
        if last {
            out.push('/');
        }
    }
    if out.is_empty() {
        out.push('/');
    }
    Ok(out)
}

/// Decodes escapes of unreserved characters, turns `\` into `/`, escapes what must be.
fn decode_unreserved(path: &str) -> Result<String, PathRejected> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(path.len() + 8);
    // Bytes since a percent sign that begins no escape: a digit decoded after it could complete one (`%%341`).
    let mut since_stray = usize::MAX;
    let mut at = 0;
    while at < bytes.len() {
        since_stray = since_stray.saturating_add(1);
        let escape = escaped(&bytes[at..]);
        match (bytes[at], escape) {
            (b'%', Some(0)) => return Err(PathRejected::BadCharacter),
            (b'%', Some(value)) if is_unreserved(value) && since_stray > 2 => {
                out.push(char::from(value));
                at += 3;
                continue;
            }
            (b'%', Some(_)) => {
                out.push_str(&path[at..at + 3]);
                at += 3;
                since_stray = usize::MAX;
                continue;
            }
            (b'%', None) => {
                since_stray = 0;
                out.push('%');
            }
            (b'\\', _) => out.push('/'),
            (byte, _) if must_escape(byte) => {
                out.push('%');
                out.push(char::from(HEX[usize::from(byte >> 4)]));
                out.push(char::from(HEX[usize::from(byte & 15)]));
                // An escape stands behind the stray sign now; nothing completes that any more.
                since_stray = usize::MAX;
            }
            (byte, _) => out.push(char::from(byte)),
        }
        at += 1;
    }
    Ok(out)
}

fn escaped(bytes: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = bytes else { return None };
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    Some(digit(*high)? << 4 | digit(*low)?)
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn must_escape(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}')
}

fn merge_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    out
}

/// How a host is normalised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostNormalization {
    /// Strip the port.
    pub strip_port: bool,
    /// Strip one trailing dot.
    pub strip_trailing_dot: bool,
}

/// Normalises an authority: lower case always, port and trailing dot as asked.
pub fn host<'a>(raw: &'a str, how: HostNormalization) -> Cow<'a, str> {
    let name = without_port(raw);
    let port = if how.strip_port { "" } else { &raw[name.len()..] };
    let bare = if how.strip_trailing_dot { name.strip_suffix('.').unwrap_or(name) } else { name };
    let upper = bare.bytes().any(|b| b.is_ascii_uppercase());
    if !upper && bare.len() + port.len() == raw.len() {
        return Cow::Borrowed(raw);
    }
    if !upper && port.is_empty() {
        return Cow::Borrowed(bare);
    }
    let mut out = String::with_capacity(bare.len() + port.len());
    out.push_str(bare);
    out.push_str(port);
    out.make_ascii_lowercase();
    Cow::Owned(out)
}

/// An authority without its port; addresses of IPv6 stand in brackets, and without them every colon is theirs.
pub fn without_port(authority: &str) -> &str {
    let digits = authority.bytes().rev().take_while(u8::is_ascii_digit).count();
    let Some(host) = authority[..authority.len() - digits].strip_suffix(':') else { return authority };
    if host.ends_with(']') || !host.bytes().any(|b| b == b':') { host } else { authority }
}

#[cfg(test)]
mod tests;
