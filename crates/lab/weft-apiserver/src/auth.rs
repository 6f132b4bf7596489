//! Who asks, and whether they may. Authentication is by bearer token alone. Authorization knows three sorts of callers:
//! administrators and listed service accounts may everything, everybody else may only ask about themselves.

use crate::route::Target;
use crate::server::ApiServer;
use crate::status::{ApiError, resource};
use http::HeaderMap;
use serde_json::{Map, Value, json};

/// Group that may everything.
pub const ADMIN_GROUP: &str = "system:masters";

/// An authenticated caller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// Name; `system:serviceaccount:NAMESPACE:NAME` for service accounts.
    pub name: String,
    /// Uid, for service accounts.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Pod that the token is bound to: name and uid.
    pub pod: Option<(String, String)>,
}

impl User {
    /// An administrator of that name; also what the lab's own controllers act as.
    pub fn admin(name: &str) -> Self {
        let groups = vec![ADMIN_GROUP.into(), "system:authenticated".into()];
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// Namespace and name, for service accounts.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        self.name.strip_prefix("system:serviceaccount:")?.split_once(':')
    }

    /// `authentication.k8s.io/v1` `UserInfo`.
    pub(crate) fn to_value(&self) -> Value {
        let mut user = json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            user["uid"] = self.uid.clone().into();
        }
        if let Some((name, uid)) = &self.pod {
            let mut extra = Map::new();
            extra.insert("authentication.kubernetes.io/pod-name".into(), json!([name]));
            extra.insert("authentication.kubernetes.io/pod-uid".into(), json!([uid]));
            user["extra"] = extra.into();
        }
        user
    }
}

/// The token of a request.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(http::header::AUTHORIZATION).iter();
    let (value, more) = (values.next()?.to_str().ok()?, values.next());
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (more.is_none() && scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

impl ApiServer {
    /// Whose token it is, and for which audiences it is good.
    pub(crate) fn user_of(&self, token: &str) -> Result<(User, Vec<String>), String> {
        if let Some(admin) = self.options().admin_tokens.iter().find(|a| same(&a.token, token)) {
            return Ok((User::admin(&admin.user), vec![self.tokens().audience().to_string()]));
        }
        let grant = self.tokens().check(self.store(), token)?;
        let user = User {
            name: format!("system:serviceaccount:{}:{}", grant.namespace, grant.account),
            uid: grant.account_uid,
            groups: vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{}", grant.namespace),
                "system:authenticated".into(),
            ],
            pod: grant.pod.map(|p| (p.name, p.uid)),
        };
        Ok((user, grant.audiences))
    }

    pub(crate) fn authenticate(&self, headers: &HeaderMap) -> Result<User, ApiError> {
        let token = bearer(headers).ok_or_else(ApiError::unauthorized)?;
        // Ignoring it would do as the caller what was meant to be done as somebody else.
        if headers.keys().any(|name| name.as_str().starts_with("impersonate-")) {
            return Err(ApiError::forbidden("impersonation is not offered; use a token of the user"));
        }
        match self.user_of(token) {
            Ok((user, audiences)) if audiences.iter().any(|a| a == self.tokens().audience()) => Ok(user),
            // A token for another audience is none for this server.
            _ => Err(ApiError::unauthorized()),
        }
    }

    /// Whether a user may do anything at all with objects.
    pub(crate) fn allows(&self, user: &User) -> bool {
        let privileged =
            |(namespace, name)| self.options().privileged_accounts.iter().any(|(n, a)| n == namespace && a == name);
        user.groups.iter().any(|g| g == ADMIN_GROUP) || user.service_account().is_some_and(privileged)
    }

    pub(crate) fn authorize(&self, user: &User, verb: &str, target: &Target) -> Result<(), ApiError> {
        if self.allows(user) {
            return Ok(());
        }
        let scope = match &target.namespace {
            Some(namespace) => format!("in the namespace {namespace:?}"),
            None => "at the cluster scope".into(),
        };
        let sub = target.sub.as_ref().map(|s| format!("/{s}")).unwrap_or_default();
        Err(ApiError::forbidden(format!(
            "{}{sub} is forbidden: User {:?} cannot {verb} resource \"{}{sub}\" in API group {:?} {scope}",
            resource(target.kind),
            user.name,
            target.kind.plural,
            target.kind.group
        )))
    }
}

/// Compares in a time that does not depend on where the texts differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_tokens() {
        let table = [
            (&["Bearer abc"][..], Some("abc")),
            (&["bearer  abc "], Some("abc")),
            (&["Basic abc"], None),
            (&["Bearer "], None),
            (&["Bearer"], None),
            (&["Bearer a", "Bearer b"], None),
            (&[], None),
        ];
        for (values, want) in table {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("authorization", value.parse().unwrap());
            }
            assert_eq!(bearer(&headers), want, "{values:?}");
        }
        assert!(same("abc", "abc") && !same("abc", "abd") && !same("abc", "ab"));
    }
}
