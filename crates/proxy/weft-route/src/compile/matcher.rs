//! Conditions of routes: path, headers, query parameters; and the string matchers that other crates use too.

use super::Compiler;
use crate::error::Path;
use crate::{HeaderKey, HeaderMatcher, HeaderTest, PathMatcher, QueryMatcher, RouteMatcher, StringMatcher, refuse_set};
use weft_proto::envoy::config::core::v3::TypedExtensionConfig;
use weft_proto::envoy::config::route::v3 as proto;
use weft_proto::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use weft_proto::envoy::r#type::matcher::v3 as matcher;

impl Compiler<'_> {
    /// Conditions of a route. What cannot be read is left out (and refused), so that the unusable route that results
    /// covers at least the requests which were meant.
    pub fn route_matcher(&mut self, message: Option<&proto::RouteMatch>, path: &Path<'_>) -> RouteMatcher {
        let Some(message) = message else {
            self.errors.refuse(path, "must be set, for instance to {prefix: /}");
            return RouteMatcher::default();
        };
        let proto::RouteMatch {
            case_sensitive,
            runtime_fraction,
            headers,
            query_parameters,
            cookies,
            grpc,
            tls_context,
            dynamic_metadata,
            filter_state,
            path_specifier,
        } = message;
        refuse_set!(self.errors, path, cookies, tls_context, filter_state);
        let path_matcher = self.path_matcher(path_specifier.as_ref(), path);
        let headers =
            headers.iter().enumerate().filter_map(|(i, h)| self.header_matcher(h, &path.item("headers", i))).collect();
        let query = query_parameters
            .iter()
            .enumerate()
            .filter_map(|(i, q)| self.query_matcher(q, &path.item("query_parameters", i)))
            .collect();
        let metadata = dynamic_metadata
            .iter()
            .enumerate()
            .filter_map(|(i, m)| self.metadata_matcher(m, &path.item("dynamic_metadata", i)))
            .collect();
        let fraction = runtime_fraction.as_ref();
        RouteMatcher {
            path: path_matcher,
            ignore_case: *case_sensitive == Some(false),
            headers,
            query,
            metadata,
            grpc: grpc.is_some(),
            fraction: fraction.map(|f| self.runtime_ppm(Some(f), &path.field("runtime_fraction"))),
        }
    }

    fn path_matcher(&mut self, message: Option<&proto::route_match::PathSpecifier>, path: &Path<'_>) -> PathMatcher {
        use proto::route_match::PathSpecifier as Spec;
        match message {
            Some(Spec::Prefix(prefix)) => PathMatcher::Prefix(self.pool.text(prefix)),
            Some(Spec::Path(exact)) => PathMatcher::Exact(self.pool.text(exact)),
            Some(Spec::PathSeparatedPrefix(prefix)) => {
                if !prefix.starts_with('/') || prefix.ends_with('/') || prefix.contains(['?', '#']) {
                    let message = "must begin with / and must not end with / nor hold ? or #; an example is /api/v1";
                    self.errors.refuse(&path.field("path_separated_prefix"), format!("{prefix:?} {message}"));
                    return PathMatcher::Any;
                }
                PathMatcher::SegmentPrefix(self.pool.text(prefix))
            }
            Some(Spec::SafeRegex(regex)) => match self.pool.whole(&regex.regex) {
                Ok(regex) => PathMatcher::Regex(regex),
                Err(reason) => {
                    self.errors.refuse(&path.field("safe_regex").field("regex"), reason);
                    PathMatcher::Any
                }
            },
            Some(Spec::ConnectMatcher(_)) => PathMatcher::Connect,
            Some(Spec::PathMatchPolicy(policy)) => match self.uri_template(policy, &path.field("path_match_policy")) {
                Some(regex) => PathMatcher::Template(regex),
                None => PathMatcher::Any,
            },
            None => {
                self.errors.refuse(path, "must say how the path is matched: prefix, path, path_separated_prefix, safe_regex, path_match_policy or connect_matcher");
                PathMatcher::Any
            }
        }
    }

    /// A URI template extension, compiled to an anchored expression.
    pub fn uri_template(&mut self, message: &TypedExtensionConfig, path: &Path<'_>) -> Option<crate::Regex> {
        let config = match message.typed_config.as_ref().map(weft_proto::unpack::<UriTemplateMatchConfig>) {
            Some(Ok(config)) => config,
            Some(Err(error)) => {
                self.errors.refuse(&path.field("typed_config"), format!("only URI templates are supported: {error}"));
                return None;
            }
            None => {
                self.errors.refuse(&path.field("typed_config"), "must be set");
                return None;
            }
        };
        let path = path.field("typed_config");
        match crate::template_regex(&config.path_template).and_then(|text| self.pool.whole(&text)) {
            Ok(regex) => Some(regex),
            Err(reason) => {
                self.errors.refuse(&path.field("path_template"), reason);
                None
            }
        }
    }

    /// A condition on a header.
    #[allow(deprecated)]
    pub fn header_matcher(&mut self, message: &proto::HeaderMatcher, path: &Path<'_>) -> Option<HeaderMatcher> {
        use proto::header_matcher::HeaderMatchSpecifier as Spec;
        let proto::HeaderMatcher { name, invert_match, treat_missing_header_as_empty, header_match_specifier } =
            message;
        let key = self.header_key(name, &path.field("name"))?;
        let ok = |m| Some(HeaderTest::Value(m));
        let test = match header_match_specifier {
            None => Some(HeaderTest::Present(true)),
            Some(Spec::PresentMatch(present)) => Some(HeaderTest::Present(*present)),
            Some(Spec::ExactMatch(text)) => ok(StringMatcher::Exact(self.pool.text(text))),
            Some(Spec::PrefixMatch(text)) => ok(StringMatcher::Prefix(self.pool.text(text))),
            Some(Spec::SuffixMatch(text)) => ok(StringMatcher::Suffix(self.pool.text(text))),
            Some(Spec::ContainsMatch(text)) => ok(StringMatcher::Contains(self.pool.text(text))),
            Some(Spec::RangeMatch(range)) if range.start < range.end => Some(HeaderTest::Range(range.start, range.end)),
            Some(Spec::RangeMatch(_)) => {
                self.errors.refuse(&path.field("range_match"), "start must be below end");
                None
            }
            Some(Spec::SafeRegexMatch(regex)) => self
                .regex(&regex.regex, &path.field("safe_regex_match"))
                .map(|r| HeaderTest::Value(StringMatcher::Regex(r))),
            Some(Spec::StringMatch(text)) => {
                self.string_matcher(text, &path.field("string_match")).map(HeaderTest::Value)
            }
        }?;
        Some(HeaderMatcher { key, test, invert: *invert_match, missing_as_empty: *treat_missing_header_as_empty })
    }

    /// A header name, or one of the pseudo-headers; `host` is `:authority`.
    pub fn header_key(&mut self, name: &str, path: &Path<'_>) -> Option<HeaderKey> {
        let key = match name.to_ascii_lowercase().as_str() {
            ":method" => HeaderKey::Method,
            ":authority" | "host" => HeaderKey::Authority,
            ":path" => HeaderKey::Path,
            ":scheme" => HeaderKey::Scheme,
            lower => match http::HeaderName::from_bytes(lower.as_bytes()) {
                Ok(name) => HeaderKey::Name(name),
                Err(_) => {
                    self.errors.refuse(path, format!("{name:?} is not a header name"));
                    return None;
                }
            },
        };
        Some(key)
    }

    pub(super) fn query_matcher(
        &mut self,
        message: &proto::QueryParameterMatcher,
        path: &Path<'_>,
    ) -> Option<QueryMatcher> {
        use proto::query_parameter_matcher::QueryParameterMatchSpecifier as Spec;
        if message.name.is_empty() {
            self.errors.refuse(&path.field("name"), "must not be empty");
            return None;
        }
        let name = self.pool.text(&message.name);
        let (value, absent) = match &message.query_parameter_match_specifier {
            None | Some(Spec::PresentMatch(true)) => (None, false),
            Some(Spec::PresentMatch(false)) => (None, true),
            Some(Spec::StringMatch(text)) => (Some(self.string_matcher(text, &path.field("string_match"))?), false),
        };
        Some(QueryMatcher { name, value, absent })
    }

    /// A condition on a string.
    pub fn string_matcher(&mut self, message: &matcher::StringMatcher, path: &Path<'_>) -> Option<StringMatcher> {
        use matcher::string_matcher::MatchPattern as Pattern;
        let inner = match &message.match_pattern {
            Some(Pattern::Exact(text)) => StringMatcher::Exact(self.pool.text(text)),
            Some(Pattern::Prefix(text)) => StringMatcher::Prefix(self.pool.text(text)),
            Some(Pattern::Suffix(text)) => StringMatcher::Suffix(self.pool.text(text)),
            Some(Pattern::Contains(text)) => StringMatcher::Contains(self.pool.text(text)),
            // Envoy: ignore_case has no effect on expressions.
            Some(Pattern::SafeRegex(regex)) => {
                return self.regex(&regex.regex, &path.field("safe_regex")).map(StringMatcher::Regex);
            }
            Some(Pattern::Custom(custom)) => {
                let message = format!("string matcher extension {:?} is not supported by weft-proxy", custom.name);
                self.errors.refuse(&path.field("custom"), message);
                return None;
            }
            None => {
                self.errors.refuse(path, "must set one of exact, prefix, suffix, contains, safe_regex");
                return None;
            }
        };
        Some(if message.ignore_case { StringMatcher::IgnoreCase(Box::new(inner)) } else { inner })
    }

    /// An expression that must match the whole text.
    pub fn regex(&mut self, pattern: &str, path: &Path<'_>) -> Option<crate::Regex> {
        match self.pool.whole(pattern) {
            Ok(regex) => Some(regex),
            Err(reason) => {
                self.errors.refuse(&path.field("regex"), reason);
                None
            }
        }
    }
}
