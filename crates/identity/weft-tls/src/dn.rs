//! Distinguished names as RFC 2253 text, the form of `Subject=` in `x-forwarded-client-cert`.

use x509_parser::x509::X509Name;

/// Attribute types with a short name (RFC 2253, section 2.3, and e-mail, which OpenSSL adds).
const SHORT_NAMES: [(&str, &str); 10] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.6", "C"),
    ("2.5.4.9", "STREET"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

/// The name, last part first.
pub(crate) fn rfc2253(name: &X509Name<'_>) -> String {
    let parts: Vec<String> = name
        .iter_rdn()
        .map(|rdn| {
            rdn.iter()
                .map(|a| attribute(&a.attr_type().to_id_string(), a.as_str().ok(), a.as_slice()))
                .collect::<Vec<_>>()
                .join("+")
        })
        .collect();
    parts.into_iter().rev().collect::<Vec<_>>().join(",")
}

fn attribute(oid: &str, text: Option<&str>, raw: &[u8]) -> String {
    let short = SHORT_NAMES.iter().find(|(id, _)| *id == oid).map(|(_, name)| *name);
    match (short, text) {
        (Some(name), Some(text)) => format!("{name}={}", escape(text)),
        (name, _) => format!("{}=#{}", name.unwrap_or(oid), crate::hex(raw)),
    }
}

/// Escapes what has a meaning in the text (RFC 2253, section 2.4), and control characters as hex pairs.
fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for (index, c) in value.char_indices() {
        let at_edge = index == 0 || index + c.len_utf8() == value.len();
        match c {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => out.extend(['\\', c]),
            '#' if index == 0 => out.push_str("\\#"),
            ' ' if at_edge => out.push_str("\\ "),
            c if c.is_control() => {
                let mut bytes = [0; 4];
                for byte in c.encode_utf8(&mut bytes).bytes() {
                    out.push_str(&format!("\\{byte:02X}"));
                }
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        for (value, text) in [
            ("plain", "plain"),
            ("a,b", "a\\,b"),
            ("#x#", "\\#x#"),
            (" x ", "\\ x\\ "),
            ("a\"b;c", "a\\\"b\\;c"),
            ("a\nb", "a\\0Ab"),
            ("ä", "ä"),
        ] {
            assert_eq!(escape(value), text);
        }
        assert_eq!(attribute("1.2.3", Some("x"), b"x"), "1.2.3=#78");
    }
}
