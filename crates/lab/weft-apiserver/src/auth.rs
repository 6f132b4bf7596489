//! Who asks, and whether they may. Authentication is by bearer token, and by impersonation for those who may. Administrators
//! and listed service accounts may everything; what everybody else may, roles say ([`crate::rbac`]).

use crate::rbac::{self, Wish};
use crate::route::Target;
use crate::server::ApiServer;
use crate::status::{ApiError, resource};
use http::HeaderMap;
use serde_json::{Value, json};
use std::collections::BTreeMap;

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
    /// What an impersonating client says of the user besides.
    pub extra: BTreeMap<String, Vec<String>>,
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
        let mut extra = self.extra.clone();
        if let Some((name, uid)) = &self.pod {
            extra.insert("authentication.kubernetes.io/pod-name".into(), vec![name.clone()]);
            extra.insert("authentication.kubernetes.io/pod-uid".into(), vec![uid.clone()]);
        }
        if !extra.is_empty() {
            user["extra"] = json!(extra);
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
            extra: BTreeMap::new(),
        };
        Ok((user, grant.audiences))
    }

    pub(crate) fn authenticate(&self, headers: &HeaderMap) -> Result<User, ApiError> {
        let token = bearer(headers).ok_or_else(ApiError::unauthorized)?;
        match self.user_of(token) {
            Ok((user, audiences)) if audiences.iter().any(|a| a == self.tokens().audience()) => {
                self.impersonated(user, headers)
            }
            // A token for another audience is none for this server.
            _ => Err(ApiError::unauthorized()),
        }
    }

    /// The user that the caller wants to be: `Impersonate-User`, `-Group`, `-Uid`, `-Extra-KEY`. Each must be allowed.
    fn impersonated(&self, caller: User, headers: &HeaderMap) -> Result<User, ApiError> {
        let all = |name: &str| -> Vec<String> {
            headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(str::to_string).collect()
        };
        let asks = headers.keys().any(|name| name.as_str().starts_with("impersonate-"));
        if !asks {
            return Ok(caller);
        }
        let name = all("impersonate-user").into_iter().next().filter(|n| !n.is_empty());
        let name = name.ok_or_else(|| ApiError::bad_request("Impersonate-User is required for impersonation"))?;
        let mut user = User { name, groups: all("impersonate-group"), ..User::default() };
        user.uid = all("impersonate-uid").into_iter().next().unwrap_or_default();
        let account = user.service_account().map(|(n, a)| (n.to_string(), a.to_string()));
        match &account {
            Some((namespace, name)) => self.may_impersonate(&caller, "serviceaccounts", namespace, name)?,
            None => self.may_impersonate(&caller, "users", "", &user.name)?,
        }
        for group in &user.groups {
            self.may_impersonate(&caller, "groups", "", group)?;
        }
        for (header, value) in headers {
            if let Some(key) = header.as_str().strip_prefix("impersonate-extra-") {
                self.may_impersonate(&caller, "userextras", "", key)?;
                let text = value.to_str().unwrap_or_default().to_string();
                user.extra.entry(key.into()).or_default().push(text);
            }
        }
        if let (Some((namespace, _)), true) = (&account, user.groups.is_empty()) {
            user.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
        }
        if !user.groups.iter().any(|g| g == "system:authenticated") {
            user.groups.push("system:authenticated".into());
        }
        Ok(user)
    }

    fn may_impersonate(&self, caller: &User, resource: &str, namespace: &str, name: &str) -> Result<(), ApiError> {
        let group = if resource == "userextras" { "authentication.k8s.io" } else { "" };
        let wish = Wish { verb: "impersonate", group, resource, namespace, name, ..Wish::default() };
        if self.decide(caller, &wish).is_some() {
            return Ok(());
        }
        Err(ApiError::forbidden(format!(
            "{resource} {name:?} is forbidden: User {:?} cannot impersonate resource {resource:?} in API group {group:?}",
            caller.name
        )))
    }

    /// Whether a user may do something, and why.
    pub(crate) fn decide(&self, user: &User, wish: &Wish<'_>) -> Option<String> {
        if self.allows(user) {
            return Some("administrators and listed service accounts may everything".into());
        }
        rbac::allows(self.store(), user, wish)
    }

    /// Whether a user may everything.
    pub(crate) fn allows(&self, user: &User) -> bool {
        let privileged =
            |(namespace, name)| self.options().privileged_accounts.iter().any(|(n, a)| n == namespace && a == name);
        user.groups.iter().any(|g| g == ADMIN_GROUP) || user.service_account().is_some_and(privileged)
    }

    pub(crate) fn authorize(&self, user: &User, verb: &str, target: &Target) -> Result<(), ApiError> {
        let wish = Wish {
            verb,
            group: target.kind.group,
            resource: target.kind.plural,
            sub: target.sub.as_deref().unwrap_or_default(),
            namespace: target.namespace(),
            name: target.name(),
            path: "",
        };
        if self.decide(user, &wish).is_some() {
            return Ok(());
        }
        let scope = match &target.namespace {
            Some(namespace) => format!("in the namespace {namespace:?}"),
            None => "at the cluster scope".into(),
        };
        let sub = target.sub.as_ref().map(|s| format!("/{s}")).unwrap_or_default();
        Err(ApiError::forbidden(format!(
            "{}{} is forbidden: User {:?} cannot {verb} resource \"{}{sub}\" in API group {:?} {scope}",
            resource(target.kind),
            target.name.as_ref().map(|n| format!(" {n:?}")).unwrap_or_default(),
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
