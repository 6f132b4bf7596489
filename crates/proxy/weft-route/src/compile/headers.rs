//! Header operations.

use super::Compiler;
use crate::error::Path;
use crate::{AppendAction, HeaderAdd, HeaderEdit, HeaderFormat, HeaderKey};
use http::{HeaderName, HeaderValue};
use weft_proto::envoy::config::common::mutation_rules::v3 as mutation;
use weft_proto::envoy::config::core::v3 as core;

impl AppendAction {
    /// What a message says; its deprecated switch counts where it is there. `None`: it is no action.
    pub fn of(message: &core::HeaderValueOption) -> Option<Self> {
        use core::header_value_option::HeaderAppendAction as Append;
        #[allow(deprecated)]
        let append = message.append;
        Some(match (append, Append::try_from(message.append_action)) {
            (Some(false), _) => Self::OverwriteOrAdd,
            (Some(true), _) | (None, Ok(Append::AppendIfExistsOrAdd)) => Self::AppendOrAdd,
            (None, Ok(Append::AddIfAbsent)) => Self::AddIfAbsent,
            (None, Ok(Append::OverwriteIfExistsOrAdd)) => Self::OverwriteOrAdd,
            (None, Ok(Append::OverwriteIfExists)) => Self::OverwriteIfExists,
            (None, Err(_)) => return None,
        })
    }
}

impl Compiler<'_> {
    /// Removals and additions of one side; `side` is `request` or `response`, and names the fields in errors.
    pub fn header_edit(
        &mut self,
        add: &[core::HeaderValueOption],
        remove: &[String],
        side: &'static str,
        path: &Path<'_>,
    ) -> HeaderEdit {
        let (add_field, remove_field) = match side {
            "request" => ("request_headers_to_add", "request_headers_to_remove"),
            _ => ("response_headers_to_add", "response_headers_to_remove"),
        };
        let remove: Vec<_> = remove
            .iter()
            .enumerate()
            .filter_map(|(i, name)| self.removable(name, &path.item(remove_field, i)))
            .collect();
        let add: Vec<_> = add
            .iter()
            .enumerate()
            .filter_map(|(i, option)| self.header_add(option, &path.item(add_field, i)))
            .collect();
        HeaderEdit { remove, add }
    }

    /// A list of mutations, in which removals and additions keep their order as far as this proxy's form can say it:
    /// removals come first, so a removal after an addition of the same header is refused.
    pub fn header_mutations(&mut self, list: &[mutation::HeaderMutation], field: &str, path: &Path<'_>) -> HeaderEdit {
        use mutation::header_mutation::Action;
        let mut edit = HeaderEdit::default();
        for (i, mutation) in list.iter().enumerate() {
            let path = path.item(field, i);
            match &mutation.action {
                Some(Action::Append(option)) => edit.add.extend(self.header_add(option, &path.field("append"))),
                Some(Action::Remove(name)) => {
                    let Some(name) = self.removable(name, &path.field("remove")) else { continue };
                    if edit.add.iter().any(|a| a.key == HeaderKey::Name(name.clone())) {
                        self.errors.refuse(&path, format!("removes {name} after adding it; put removals first"));
                    }
                    edit.remove.push(name);
                }
                Some(Action::RemoveOnMatch(_)) => {
                    self.errors
                        .refuse(&path.field("remove_on_match"), "is not supported by weft-proxy; name the headers");
                }
                None => self.errors.refuse(&path, "must set remove or append"),
            }
        }
        edit
    }

    fn removable(&mut self, name: &str, path: &Path<'_>) -> Option<HeaderName> {
        // Without these a request is no request.
        if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
            self.errors.refuse(path, format!("{name:?} must not be removed"));
            return None;
        }
        match HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()) {
            Ok(name) => Some(name),
            Err(_) => {
                self.errors.refuse(path, format!("{name:?} is not a header name"));
                None
            }
        }
    }

    #[allow(deprecated)]
    fn header_add(&mut self, message: &core::HeaderValueOption, path: &Path<'_>) -> Option<HeaderAdd> {
        let core::HeaderValueOption { header, append: _, append_action, keep_empty_value } = message;
        let Some(core::HeaderValue { key, value, raw_value }) = header else {
            self.errors.refuse(&path.field("header"), "must be set");
            return None;
        };
        let header_path = path.field("header");
        let key = self.header_key(key, &header_path.field("key"))?;
        if matches!(key, HeaderKey::Method | HeaderKey::Path | HeaderKey::Scheme) {
            self.errors.refuse(&header_path.field("key"), "of the pseudo-headers only :authority may be set");
            return None;
        }
        let value = if raw_value.is_empty() { value.as_bytes() } else { raw_value.as_slice() };
        let value = self.header_format(value, &header_path.field("value"))?;
        let Some(append) = AppendAction::of(message) else {
            self.errors.refuse(&path.field("append_action"), format!("{append_action} is not an action"));
            return None;
        };
        Some(HeaderAdd { key, value, append, keep_empty: *keep_empty_value })
    }

    /// A literal, or a format with commands. `%%` is a percent sign.
    fn header_format(&mut self, value: &[u8], path: &Path<'_>) -> Option<HeaderFormat> {
        if value.contains(&b'%') {
            let Ok(text) = std::str::from_utf8(value) else {
                self.errors.refuse(path, "must be UTF-8 when it holds %COMMAND%s");
                return None;
            };
            match has_command(text) {
                Ok(true) => return Some(HeaderFormat::Command(self.pool.text(text))),
                Ok(false) => return self.literal(text.replace("%%", "%").as_bytes(), path),
                Err(reason) => {
                    self.errors.refuse(path, reason);
                    return None;
                }
            }
        }
        self.literal(value, path)
    }

    fn literal(&mut self, value: &[u8], path: &Path<'_>) -> Option<HeaderFormat> {
        match HeaderValue::from_bytes(value) {
            Ok(value) => Some(HeaderFormat::Literal(value)),
            Err(_) => {
                self.errors.refuse(path, "is not a header value: control characters are not allowed");
                None
            }
        }
    }
}

/// Whether a format holds a command.
fn has_command(text: &str) -> Result<bool, String> {
    let mut rest = text;
    let mut found = false;
    while let Some(at) = rest.find('%') {
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            rest = after;
            continue;
        }
        let end =
            rest.find('%').ok_or_else(|| format!("{text:?} has a % that ends nowhere; write %% for a percent sign"))?;
        let name = rest[..end].split(['(', ':']).next().unwrap_or_default();
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_') {
            return Err(format!("{text:?}: %{}% is not a command; write %% for a percent sign", &rest[..end]));
        }
        found = true;
        rest = &rest[end + 1..];
    }
    Ok(found)
}
