//! Access logs. A log that cannot be written as asked for is left out and reported: traffic does not stop for it, and no
//! log says more than its filter allows.

use super::Ctx;
use crate::{AccessLog, LogFilter, LogFormat, LogSink};
use serde_json::Value as Json;
use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;
use weft_core::Strng;
use weft_proto::any::TypeUrl;
use weft_proto::envoy::config::accesslog::v3 as proto;
use weft_proto::envoy::config::core::v3::{SubstitutionFormatString, substitution_format_string::Format};
use weft_proto::envoy::extensions::access_loggers::file::v3 as file;
use weft_proto::envoy::extensions::access_loggers::stream::v3 as stream;
use weft_route::error::Path;

/// Deepest nesting of filters and of JSON formats.
const MAX_DEPTH: usize = 16;
/// Extension whose command the formats of this proxy have built in.
const REQ_WITHOUT_QUERY: &str = "envoy.formatter.req_without_query";

impl Ctx<'_> {
    /// The logs of one listener, connection manager or TCP proxy.
    pub(super) fn access_logs(&mut self, list: &[proto::AccessLog], path: &Path<'_>) -> Arc<[AccessLog]> {
        let mut logs = Vec::with_capacity(list.len());
        for (i, log) in list.iter().enumerate() {
            let from = self.c.errors.len();
            let compiled = self.access_log(log, &path.item("access_log", i));
            let refused = self.c.errors.refused_since(from).is_some();
            self.c.errors.contain(from);
            logs.extend(compiled.filter(|_| !refused));
        }
        logs.into()
    }

    fn access_log(&mut self, message: &proto::AccessLog, path: &Path<'_>) -> Option<AccessLog> {
        let Some(proto::access_log::ConfigType::TypedConfig(any)) = &message.config_type else {
            self.c.errors.refuse(&path.field("typed_config"), "must be set");
            return None;
        };
        let filter = match &message.filter {
            Some(filter) => Some(Arc::new(self.log_filter(filter, &path.field("filter"), 0)?)),
            None => None,
        };
        let path = path.field("typed_config");
        let (sink, format, omit_empty) = match any.type_url.as_str() {
            url if url == file::FileAccessLog::type_url_of() => {
                let message: file::FileAccessLog = self.c.unpacked(any, &path)?;
                let sink = self.sink(&message.path, &path)?;
                let (format, omit) = self.file_format(message.access_log_format.as_ref(), &path)?;
                (sink, format, omit)
            }
            url if url == stream::StdoutAccessLog::type_url_of() => {
                let message: stream::StdoutAccessLog = self.c.unpacked(any, &path)?;
                let format =
                    message.access_log_format.map(|stream::stdout_access_log::AccessLogFormat::LogFormat(f)| f);
                let (format, omit) = self.format(format.as_ref(), &path)?;
                (LogSink::Stdout, format, omit)
            }
            url if url == stream::StderrAccessLog::type_url_of() => {
                let message: stream::StderrAccessLog = self.c.unpacked(any, &path)?;
                let format =
                    message.access_log_format.map(|stream::stderr_access_log::AccessLogFormat::LogFormat(f)| f);
                let (format, omit) = self.format(format.as_ref(), &path)?;
                (LogSink::Stderr, format, omit)
            }
            url => {
                self.c
                    .errors
                    .refuse(&path, format!("access log {:?} ({url}) is not supported by weft-proxy", message.name));
                return None;
            }
        };
        Some(AccessLog { sink, format, filter, omit_empty })
    }

    fn sink(&mut self, name: &str, path: &Path<'_>) -> Option<LogSink> {
        match name {
            "" => {
                self.c.errors.refuse(&path.field("path"), "must name a file, such as /dev/stdout");
                None
            }
            "/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1" => Some(LogSink::Stdout),
            "/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2" => Some(LogSink::Stderr),
            file => Some(LogSink::File(self.c.pool.text(file))),
        }
    }

    #[allow(deprecated)]
    fn file_format(
        &mut self,
        message: Option<&file::file_access_log::AccessLogFormat>,
        path: &Path<'_>,
    ) -> Option<(LogFormat, bool)> {
        use file::file_access_log::AccessLogFormat as Kind;
        match message {
            None => Some((LogFormat::Default, false)),
            Some(Kind::LogFormat(format)) => self.format(Some(format), path),
            Some(Kind::Format(text)) => self.text_format(text, &path.field("format")).map(|f| (f, false)),
            Some(Kind::JsonFormat(fields) | Kind::TypedJsonFormat(fields)) => {
                self.json_format(fields, &path.field("json_format")).map(|f| (f, false))
            }
        }
    }

    #[allow(deprecated)]
    fn format(&mut self, message: Option<&SubstitutionFormatString>, path: &Path<'_>) -> Option<(LogFormat, bool)> {
        let Some(message) = message else { return Some((LogFormat::Default, false)) };
        let path = path.field("log_format");
        let SubstitutionFormatString {
            omit_empty_values,
            // Of replies, not of logs.
            content_type: _,
            formatters,
            json_format_options: _,
            format,
        } = message;
        for (i, extension) in formatters.iter().enumerate() {
            if extension.name != REQ_WITHOUT_QUERY {
                let message = format!("formatter {:?} is not supported by weft-proxy", extension.name);
                self.c.errors.refuse(&path.item("formatters", i), message);
            }
        }
        let format = match format {
            None => LogFormat::Default,
            Some(Format::TextFormat(text)) => self.text_format(text, &path.field("text_format"))?,
            Some(Format::TextFormatSource(source)) => {
                let path = path.field("text_format_source");
                let bytes = self.data(Some(source), &path)?;
                match String::from_utf8(bytes) {
                    Ok(text) => self.text_format(&text, &path)?,
                    Err(_) => {
                        self.c.errors.refuse(&path, "must be UTF-8");
                        return None;
                    }
                }
            }
            Some(Format::JsonFormat(fields)) => self.json_format(fields, &path.field("json_format"))?,
        };
        Some((format, *omit_empty_values))
    }

    fn text_format(&mut self, text: &str, path: &Path<'_>) -> Option<LogFormat> {
        if text.is_empty() {
            return Some(LogFormat::Default);
        }
        match weft_telemetry::Format::parse(text) {
            Ok(_) => Some(LogFormat::Text(self.c.pool.text(text))),
            Err(error) => {
                self.c.errors.refuse(path, error.to_string());
                None
            }
        }
    }

    fn json_format(&mut self, fields: &weft_proto::Struct, path: &Path<'_>) -> Option<LogFormat> {
        let checked = struct_json(fields, 0).and_then(|json| match weft_telemetry::JsonFormat::parse(&json) {
            Ok(_) => Ok(json),
            Err(error) => Err(error.to_string()),
        });
        match checked {
            Ok(json) => Some(LogFormat::Json(Arc::new(json))),
            Err(reason) => {
                self.c.errors.refuse(path, reason);
                None
            }
        }
    }

    fn log_filter(&mut self, message: &proto::AccessLogFilter, path: &Path<'_>, depth: usize) -> Option<LogFilter> {
        use proto::access_log_filter::FilterSpecifier as Spec;
        if depth > MAX_DEPTH {
            self.c.errors.refuse(path, format!("is nested deeper than {MAX_DEPTH}"));
            return None;
        }
        let all = |this: &mut Self, list: &[proto::AccessLogFilter], path: &Path<'_>| -> Option<Vec<LogFilter>> {
            list.iter().enumerate().map(|(i, f)| this.log_filter(f, &path.item("filters", i), depth + 1)).collect()
        };
        match &message.filter_specifier {
            Some(Spec::StatusCodeFilter(f)) => {
                self.status_filter(f.comparison.as_ref(), &path.field("status_code_filter"))
            }
            Some(Spec::DurationFilter(f)) => {
                self.duration_filter(f.comparison.as_ref(), &path.field("duration_filter"))
            }
            Some(Spec::NotHealthCheckFilter(_)) => Some(LogFilter::NotHealthCheck),
            Some(Spec::RuntimeFilter(f)) => {
                let path = path.field("runtime_filter");
                Some(LogFilter::Sample(f.percent_sampled.as_ref().map_or(0, |p| self.c.ppm(p, &path))))
            }
            Some(Spec::AndFilter(f)) => all(self, &f.filters, &path.field("and_filter")).map(LogFilter::And),
            Some(Spec::OrFilter(f)) => all(self, &f.filters, &path.field("or_filter")).map(LogFilter::Or),
            Some(Spec::HeaderFilter(f)) => {
                let path = path.field("header_filter");
                let Some(header) = &f.header else {
                    self.c.errors.refuse(&path, "must be set");
                    return None;
                };
                self.c.header_matcher(header, &path).map(LogFilter::Header)
            }
            Some(Spec::ResponseFlagFilter(f)) => {
                Some(LogFilter::Flags(f.flags.iter().map(|flag| self.c.pool.text(flag)).collect()))
            }
            Some(
                Spec::TraceableFilter(_)
                | Spec::GrpcStatusFilter(_)
                | Spec::ExtensionFilter(_)
                | Spec::MetadataFilter(_)
                | Spec::LogTypeFilter(_),
            ) => {
                self.c.errors.refuse(path, "is of a kind that weft-proxy does not support: the log is left out");
                None
            }
            None => {
                self.c.errors.refuse(path, "must set a filter");
                None
            }
        }
    }

    fn comparison(
        &mut self,
        message: Option<&proto::ComparisonFilter>,
        path: &Path<'_>,
    ) -> Option<(proto::comparison_filter::Op, u32)> {
        let value = message.and_then(|m| m.value.as_ref());
        let op = message.and_then(|m| proto::comparison_filter::Op::try_from(m.op).ok());
        match (op, value) {
            (Some(op), Some(value)) => Some((op, value.default_value)),
            _ => {
                self.c.errors.refuse(&path.field("comparison"), "must set op and value");
                None
            }
        }
    }

    fn status_filter(&mut self, message: Option<&proto::ComparisonFilter>, path: &Path<'_>) -> Option<LogFilter> {
        use proto::comparison_filter::Op;
        let (op, value) = self.comparison(message, path)?;
        // No status is above: such a value compares as the largest.
        let status = u16::try_from(value).unwrap_or(u16::MAX);
        Some(match op {
            Op::Eq => LogFilter::Status(Ordering::Equal, false, status),
            Op::Ne => LogFilter::Status(Ordering::Equal, true, status),
            Op::Ge => LogFilter::Status(Ordering::Greater, false, status),
            Op::Le => LogFilter::Status(Ordering::Less, false, status),
        })
    }

    fn duration_filter(&mut self, message: Option<&proto::ComparisonFilter>, path: &Path<'_>) -> Option<LogFilter> {
        let (op, millis) = self.comparison(message, path)?;
        if op != proto::comparison_filter::Op::Ge {
            self.c.errors.refuse(&path.field("comparison").field("op"), "must be GE");
            return None;
        }
        Some(LogFilter::Slower(Duration::from_millis(millis.into())))
    }
}

fn struct_json(fields: &weft_proto::Struct, depth: usize) -> Result<Json, String> {
    if depth > MAX_DEPTH {
        return Err(format!("is nested deeper than {MAX_DEPTH}"));
    }
    let fields = fields.fields.iter().map(|(name, value)| Ok((name.clone(), value_json(value, depth + 1)?)));
    Ok(Json::Object(fields.collect::<Result<_, String>>()?))
}

fn value_json(value: &weft_proto::Value, depth: usize) -> Result<Json, String> {
    use prost_types::value::Kind;
    Ok(match &value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(value)) => Json::Bool(*value),
        Some(Kind::NumberValue(value)) => Json::from(*value),
        Some(Kind::StringValue(text)) => Json::String(text.clone()),
        Some(Kind::StructValue(fields)) => struct_json(fields, depth)?,
        Some(Kind::ListValue(_)) if depth > MAX_DEPTH => return Err(format!("is nested deeper than {MAX_DEPTH}")),
        Some(Kind::ListValue(list)) => {
            Json::Array(list.values.iter().map(|item| value_json(item, depth + 1)).collect::<Result<_, String>>()?)
        }
    })
}

/// A tag's or a header's literal text as a format: percent signs stand for themselves.
pub(super) fn literal(text: &str) -> Strng {
    text.replace('%', "%%").into()
}
