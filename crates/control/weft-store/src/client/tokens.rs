//! Tokens of service accounts: asking for one (TokenRequest) and asking who holds one (TokenReview).

use super::{ApiClient, ClientError, encode};
use http::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What token to issue.
#[derive(Debug, Clone, Default)]
pub struct TokenRequest {
    /// Who will accept it; empty is the API server itself.
    pub audiences: Vec<String>,
    /// Lifetime; `None` leaves it to the server (one hour).
    pub expiration_seconds: Option<i64>,
    /// Pod (name, uid) with which the token dies.
    pub pod: Option<(String, String)>,
}

/// An issued token.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuedToken {
    /// The bearer token.
    pub token: String,
    /// Unix seconds of its end; 0 when the server did not say.
    pub expires: i64,
}

/// Does not print the token.
impl std::fmt::Debug for IssuedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuedToken").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Who a token belongs to. Only what [`ApiClient::token_review`] returns has been checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenIdentity {
    /// `system:serviceaccount:NAMESPACE:NAME` for service accounts.
    pub username: String,
    /// Uid of the account.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Those of the asked audiences that the token is for.
    pub audiences: Vec<String>,
    /// More facts, e.g. `authentication.kubernetes.io/pod-name`.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl TokenIdentity {
    /// Namespace and name of the service account, when it is one.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        let (namespace, name) = self.username.strip_prefix("system:serviceaccount:")?.split_once(':')?;
        (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
    }

    /// Name of the pod that the token is bound to.
    pub fn pod_name(&self) -> Option<&str> {
        self.extra.get("authentication.kubernetes.io/pod-name")?.first().map(String::as_str)
    }
}

impl ApiClient {
    /// Asks the server whose token this is, and whether it is for one of the audiences.
    ///
    /// # Errors
    /// [`ClientError::Unauthorized`] with the server's reason when the token is not valid, [`ClientError::Forbidden`] when this
    /// client may not ask, [`ClientError::Unreachable`] and their kin. A server that answers without naming one of the asked audiences has not checked them: refused.
    pub async fn token_review(&self, token: &str, audiences: &[&str]) -> Result<TokenIdentity, ClientError> {
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": audiences},
        });
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let answer = self.call(Method::POST, path, Some(("application/json", body))).await;
        let answer = answer.map_err(|error| match error {
            // It says nothing about the token: it is the reviewer that the server does not know.
            ClientError::Unauthorized { message, .. } => ClientError::Forbidden(format!(
                "{}: the server does not accept the credentials of this process, which asks for a token review ({message})",
                self.url
            )),
            other => other,
        })?;
        let answer: Value = self.parse(path, &answer.body)?;
        let status = answer.get("status").cloned().unwrap_or(Value::Null);
        let refused = |message: String| ClientError::Unauthorized { url: self.url.clone(), message };
        if status.get("authenticated").and_then(Value::as_bool) != Some(true) {
            let reason = status.get("error").and_then(Value::as_str).unwrap_or("the token is not valid");
            return Err(refused(reason.to_string()));
        }
        let identity = read_identity(&status);
        if !audiences.is_empty() && !identity.audiences.iter().any(|a| audiences.contains(&a.as_str())) {
            return Err(refused(format!("the token is not for the audience {}", audiences.join(", "))));
        }
        Ok(identity)
    }

    /// Asks the server whether a service account may do something with a kind of a namespace (SubjectAccessReview).
    ///
    /// # Errors
    /// [`ClientError::Forbidden`] when this client may not ask, [`ClientError::Unreachable`] and their kin.
    pub async fn may_access(
        &self,
        (namespace, service_account): (&str, &str),
        verb: &str,
        resource: &str,
        within: &str,
    ) -> Result<bool, ClientError> {
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let body = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": format!("system:serviceaccount:{namespace}:{service_account}"),
                "groups": [
                    "system:serviceaccounts", format!("system:serviceaccounts:{namespace}"), "system:authenticated",
                ],
                "resourceAttributes": {"namespace": within, "verb": verb, "version": "v1", "resource": resource},
            },
        });
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let answer = self.call(Method::POST, path, Some(("application/json", body))).await?;
        let answer: Value = self.parse(path, &answer.body)?;
        Ok(answer.pointer("/status/allowed").and_then(Value::as_bool) == Some(true))
    }

    /// Asks for a token of a service account.
    ///
    /// # Errors
    /// [`ClientError::NotFound`], [`ClientError::Invalid`] and their kin.
    pub async fn token_request(
        &self,
        namespace: &str,
        service_account: &str,
        request: &TokenRequest,
    ) -> Result<IssuedToken, ClientError> {
        let account = encode(service_account);
        let path = format!("/api/v1/namespaces/{}/serviceaccounts/{account}/token", encode(namespace));
        let mut spec = json!({ "audiences": request.audiences });
        if let Some(seconds) = request.expiration_seconds {
            spec["expirationSeconds"] = seconds.into();
        }
        if let Some((name, uid)) = &request.pod {
            spec["boundObjectRef"] = json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid});
        }
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let answer = self.call(Method::POST, &path, Some(("application/json", body))).await?;
        let answer: Value = self.parse(&path, &answer.body)?;
        let token = answer.pointer("/status/token").and_then(Value::as_str).filter(|t| !t.is_empty());
        let token = token.ok_or_else(|| ClientError::Protocol {
            url: self.url.clone(),
            message: format!("{path}: no token in the answer"),
        })?;
        let expires = answer.pointer("/status/expirationTimestamp").and_then(Value::as_str);
        let expires = expires.and_then(|t| t.parse::<jiff::Timestamp>().ok()).map_or(0, jiff::Timestamp::as_second);
        Ok(IssuedToken { token: token.into(), expires })
    }
}

fn read_identity(status: &Value) -> TokenIdentity {
    let texts = |value: Option<&Value>| -> Vec<String> {
        let items = value.and_then(Value::as_array).into_iter().flatten();
        items.filter_map(|v| v.as_str().map(str::to_string)).collect()
    };
    let user = status.get("user").unwrap_or(&Value::Null);
    let text = |name: &str| user.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
    let extra = user.get("extra").and_then(Value::as_object).into_iter().flatten();
    TokenIdentity {
        username: text("username"),
        uid: text("uid"),
        groups: texts(user.get("groups")),
        audiences: texts(status.get("audiences")),
        extra: extra.map(|(name, values)| (name.clone(), texts(Some(values)))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_accounts() {
        let table = [
            ("system:serviceaccount:default:reviews", Some(("default", "reviews"))),
            ("system:serviceaccount:default:", None),
            ("system:serviceaccount::a", None),
            ("system:serviceaccount:a:b:c", None),
            ("admin", None),
        ];
        for (username, want) in table {
            let identity = TokenIdentity { username: username.into(), ..TokenIdentity::default() };
            assert_eq!(identity.service_account(), want, "{username}");
        }
    }
}
