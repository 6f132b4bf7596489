//! From a URL's path to what it means. Pure; nothing is looked up but the kinds that are served.

use crate::kinds::Kinds;
use weft_k8s_api::KindInfo;

/// What a path means.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    /// `/version`
    Version,
    /// `/healthz`, `/livez`, `/readyz`
    Health,
    /// `/api`
    Core,
    /// `/apis`
    Groups,
    /// `/apis/G`
    Group(String),
    /// `/api/V`, `/apis/G/V`
    GroupVersion(String, String),
    /// `/openapi/v2`
    OpenApiV2,
    /// `/openapi/v3`
    OpenApi,
    /// `/openapi/v3/api/V`, `/openapi/v3/apis/G/V`
    OpenApiOf(String, String),
    /// Something that is asked, not stored: `tokenreviews` …
    Review(Review),
    /// An object or a collection.
    Resource(Target),
}

/// Questions that are posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Review {
    /// Whose token is this?
    Token,
    /// Who am I?
    SelfSubject,
    /// May I?
    SelfAccess,
    /// May they?
    Access,
    /// What may I?
    SelfRules,
}

/// An object, a collection, or a part of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The kind.
    pub kind: &'static KindInfo,
    /// The version that the client speaks.
    pub version: String,
    /// Namespace; `None` for cluster-scoped kinds and for collections of all namespaces.
    pub namespace: Option<String>,
    /// Name; `None` for collections.
    pub name: Option<String>,
    /// `status`, `log` …
    pub sub: Option<String>,
}

impl Target {
    /// Namespace, or empty.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }

    /// Name, or empty.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// `group/version` of the answers.
    pub fn api_version(&self) -> String {
        weft_k8s_api::kinds::api_version(self.kind.group, &self.version)
    }
}

/// Reads a path; `None` leads nowhere.
pub fn route(kinds: &Kinds, path: &str) -> Option<Route> {
    let mut segments = Vec::new();
    for segment in path.trim_start_matches('/').trim_end_matches('/').split('/').take(12) {
        segments.push(decode(segment)?);
    }
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let group_version = |group: &str, version: &str| {
        let found = kinds.group_versions().iter().any(|(g, versions)| *g == group && versions.contains(&version));
        found.then(|| (group.to_string(), version.to_string()))
    };
    match segments.as_slice() {
        ["version"] => Some(Route::Version),
        ["healthz" | "livez" | "readyz", ..] => Some(Route::Health),
        ["openapi", "v2"] => Some(Route::OpenApiV2),
        ["openapi", "v3"] => Some(Route::OpenApi),
        ["openapi", "v3", "api", version] => group_version("", version).map(|(g, v)| Route::OpenApiOf(g, v)),
        ["openapi", "v3", "apis", group, version] => group_version(group, version).map(|(g, v)| Route::OpenApiOf(g, v)),
        ["api"] => Some(Route::Core),
        ["apis"] => Some(Route::Groups),
        ["apis", group] => {
            kinds.group_versions().iter().any(|(g, _)| g == group).then(|| Route::Group((*group).into()))
        }
        ["api", version] => group_version("", version).map(|(g, v)| Route::GroupVersion(g, v)),
        ["apis", group, version] => group_version(group, version).map(|(g, v)| Route::GroupVersion(g, v)),
        ["api", version, rest @ ..] => resource(kinds, "", version, rest),
        ["apis", group, version, rest @ ..] => {
            review(group, version, rest).or_else(|| resource(kinds, group, version, rest))
        }
        _ => None,
    }
}

fn review(group: &str, version: &str, rest: &[&str]) -> Option<Route> {
    let review = match (group, version, rest) {
        ("authentication.k8s.io", "v1", ["tokenreviews"]) => Review::Token,
        ("authentication.k8s.io", "v1", ["selfsubjectreviews"]) => Review::SelfSubject,
        ("authorization.k8s.io", "v1", ["selfsubjectaccessreviews"]) => Review::SelfAccess,
        ("authorization.k8s.io", "v1", ["selfsubjectrulesreviews"]) => Review::SelfRules,
        ("authorization.k8s.io", "v1", ["subjectaccessreviews"] | ["namespaces", _, "localsubjectaccessreviews"]) => {
            Review::Access
        }
        _ => return None,
    };
    Some(Route::Review(review))
}

fn resource(kinds: &Kinds, group: &str, version: &str, rest: &[&str]) -> Option<Route> {
    let target = |namespace: Option<&str>, plural: &str, name: Option<&&str>, sub: Option<&&str>| {
        let kind = kinds.by_plural(group, plural).filter(|k| k.versions.contains(&version))?;
        let placed = namespace.is_some() == kind.namespaced;
        // Objects of all namespaces are listed without a namespace; a single object needs its own.
        let all_namespaces = kind.namespaced && name.is_none();
        if !placed && !all_namespaces {
            return None;
        }
        let text = |t: Option<&&str>| t.map(|t| (*t).to_string());
        let namespace = namespace.map(str::to_string);
        Some(Route::Resource(Target { kind, version: version.into(), namespace, name: text(name), sub: text(sub) }))
    };
    match rest {
        ["namespaces", name, sub @ ("status" | "finalize")] => target(None, "namespaces", Some(name), Some(sub)),
        ["namespaces", namespace, plural] => target(Some(namespace), plural, None, None),
        ["namespaces", namespace, plural, name] => target(Some(namespace), plural, Some(name), None),
        ["namespaces", namespace, plural, name, sub] => target(Some(namespace), plural, Some(name), Some(sub)),
        [plural] => target(None, plural, None, None),
        [plural, name] => target(None, plural, Some(name), None),
        [plural, name, sub] => target(None, plural, Some(name), Some(sub)),
        _ => None,
    }
}

/// Percent-decodes one path segment (RFC 3986, 2.1). A slash inside a segment is refused: no name has one.
fn decode(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
        let (high, low) = (digit(rest.next())?, digit(rest.next())?);
        bytes.push(high * 16 + low);
    }
    String::from_utf8(bytes).ok().filter(|s| !s.contains('/') && s != "." && s != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brief(path: &str) -> String {
        match route(&Kinds::default(), path) {
            Some(Route::Resource(t)) => format!(
                "{} {} {} {} {}",
                t.api_version(),
                t.kind.kind,
                t.namespace.as_deref().unwrap_or("-"),
                t.name.as_deref().unwrap_or("-"),
                t.sub.as_deref().unwrap_or("-")
            ),
            Some(other) => format!("{other:?}"),
            None => "none".into(),
        }
    }

    #[test]
    fn paths() {
        let table = [
            ("/version", "Version"),
            ("/readyz", "Health"),
            ("/livez/ping", "Health"),
            ("/api", "Core"),
            ("/api/", "Core"),
            ("/api/v1", "GroupVersion(\"\", \"v1\")"),
            ("/api/v2", "none"),
            ("/apis/apps", "Group(\"apps\")"),
            ("/apis/unknown.example", "none"),
            ("/apis/networking.istio.io/v1alpha3", "GroupVersion(\"networking.istio.io\", \"v1alpha3\")"),
            ("/api/v1/pods", "v1 Pod - - -"),
            ("/api/v1/pods/a", "none"),
            ("/api/v1/namespaces", "v1 Namespace - - -"),
            ("/api/v1/namespaces/n", "v1 Namespace - n -"),
            ("/api/v1/namespaces/n/finalize", "v1 Namespace - n finalize"),
            ("/api/v1/namespaces/n/status", "v1 Namespace - n status"),
            ("/api/v1/namespaces/n/nodes", "none"),
            ("/api/v1/namespaces/n/pods/p/log", "v1 Pod n p log"),
            ("/api/v1/namespaces/n/pods/p/proxy/x", "none"),
            ("/apis/apps/v1/namespaces/n/deployments/d/scale", "apps/v1 Deployment n d scale"),
            (
                "/apis/networking.istio.io/v1beta1/namespaces/n/virtualservices/v",
                "networking.istio.io/v1beta1 VirtualService n v -",
            ),
            ("/apis/networking.istio.io/v1/namespaces/n/envoyfilters", "none"),
            ("/api/v1/namespaces/n/configmaps/a%2Fb", "none"),
            ("/api/v1/namespaces/n/configmaps/a%2Db", "v1 ConfigMap n a-b -"),
            ("/api/v1/namespaces/n/configmaps/%zz", "none"),
            ("/apis/authentication.k8s.io/v1/tokenreviews", "Review(Token)"),
            ("/apis/authorization.k8s.io/v1/namespaces/n/localsubjectaccessreviews", "Review(Access)"),
            ("/openapi/v3/apis/apps/v1", "OpenApiOf(\"apps\", \"v1\")"),
            ("/", "none"),
            ("/metrics", "none"),
        ];
        for (path, want) in table {
            assert_eq!(brief(path), want, "{path}");
        }
    }
}
