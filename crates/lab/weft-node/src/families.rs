//! Families of a Service's addresses: what `ipFamilyPolicy`, `ipFamilies` and `clusterIPs` say together, and what they are where
//! the user says nothing (Kubernetes' page "IPv4/IPv6 dual-stack"). Which addresses those are is not decided here.

use crate::network::beside;
use serde_json::{Map, Value};
use std::net::{IpAddr, Ipv4Addr};
use weft_apiserver::Denial;

/// `clusterIP` of a service that has none.
pub(crate) const NO_ADDRESS: &str = "None";
const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4.
    Four,
    /// IPv6.
    Six,
}

impl Family {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "IPv4" => Some(Self::Four),
            "IPv6" => Some(Self::Six),
            _ => None,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Four => "IPv4",
            Self::Six => "IPv6",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Four => Self::Six,
            Self::Six => Self::Four,
        }
    }

    /// The address of this family that has that number.
    pub fn of(self, number: Ipv4Addr) -> IpAddr {
        match self {
            Self::Four => number.into(),
            Self::Six => beside(number).into(),
        }
    }
}

/// Settles a service's families, and writes them and the policy into its `spec`; `ips` are the addresses it has or asks for,
/// `old` is the spec before. A service that becomes single loses its second address.
///
/// # Errors
/// When what is asked for does not fit together, or a family is not one of the lab's (`ipv6`: both are).
pub(crate) fn settle(
    spec: &mut Map<String, Value>,
    old: Option<&Value>,
    ips: &mut Vec<String>,
    ipv6: bool,
) -> Result<Vec<Family>, Denial> {
    let without_selector = spec.get("selector").and_then(Value::as_object).is_none_or(Map::is_empty);
    let of_users = ips.first().is_some_and(|first| first == NO_ADDRESS) && without_selector;
    let policy = policy(spec, old, of_users)?;
    let mut families = given(spec)?;
    if families.is_empty() {
        families = given(old.and_then(Value::as_object).unwrap_or(&Map::new()))?;
    }
    if policy == SINGLE {
        // Whoever asks for one family in place of two means it.
        if old.is_some_and(|old| old["ipFamilyPolicy"] != SINGLE) {
            ips.truncate(1);
            families.truncate(1);
        }
        if ips.len() > 1 || families.len() > 1 {
            let message = format!("must be {PREFER} or {REQUIRE} where there are two families or addresses");
            return Err(Denial::field("spec.ipFamilyPolicy", message));
        }
    }
    fit(&mut families, ips)?;
    if families.is_empty() {
        families.push(Family::Four);
    }
    if !ipv6 && !of_users {
        only_ipv4(policy, &families)?;
    }
    if policy != SINGLE && families.len() == 1 && (ipv6 || of_users) {
        families.push(families[0].other());
    }
    spec.insert("ipFamilyPolicy".into(), policy.into());
    spec.insert("ipFamilies".into(), families.iter().map(|family| family.text()).collect());
    Ok(families)
}

fn policy(spec: &Map<String, Value>, old: Option<&Value>, of_users: bool) -> Result<&'static str, Denial> {
    let before = old.map_or(&Value::Null, |old| &old["ipFamilyPolicy"]);
    let given = spec.get("ipFamilyPolicy").filter(|policy| !policy.is_null()).unwrap_or(before);
    match given.as_str() {
        Some(given) => [SINGLE, PREFER, REQUIRE].into_iter().find(|policy| *policy == given).ok_or_else(|| {
            Denial::field("spec.ipFamilyPolicy", format!("{given:?} is not one of {SINGLE}, {PREFER}, {REQUIRE}"))
        }),
        None if of_users => Ok(REQUIRE),
        None => Ok(SINGLE),
    }
}

/// The families that a spec names.
fn given(spec: &Map<String, Value>) -> Result<Vec<Family>, Denial> {
    let wrong = |at: usize, why: &str| Denial::field(format!("spec.ipFamilies[{at}]"), why);
    let mut families = Vec::new();
    for (at, family) in spec.get("ipFamilies").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let known = family.as_str().and_then(Family::parse);
        let known = known.ok_or_else(|| wrong(at, &format!("{family} is neither IPv4 nor IPv6")))?;
        if families.contains(&known) {
            return Err(wrong(at, "is there twice"));
        }
        families.push(known);
    }
    Ok(families)
}

/// Families and addresses stand in the same order; addresses say families that are not named.
fn fit(families: &mut Vec<Family>, ips: &[String]) -> Result<(), Denial> {
    for (at, ip) in ips.iter().enumerate().filter(|(_, ip)| *ip != NO_ADDRESS) {
        let family = if ip.contains(':') { Family::Six } else { Family::Four };
        match families.get(at) {
            Some(known) if *known == family => {}
            None if !families.contains(&family) => families.push(family),
            _ => {
                let message = format!("{ip} is not of family {at} of spec.ipFamilies");
                return Err(Denial::field(format!("spec.clusterIPs[{at}]"), message));
            }
        }
    }
    Ok(())
}

fn only_ipv4(policy: &str, families: &[Family]) -> Result<(), Denial> {
    const HOW: &str = "the lab has IPv4 alone; start it with: weft up --ip-family dual";
    if let Some(at) = families.iter().position(|family| *family == Family::Six) {
        return Err(Denial::field(format!("spec.ipFamilies[{at}]"), format!("IPv6 is not there: {HOW}")));
    }
    match policy == REQUIRE {
        true => Err(Denial::field("spec.ipFamilyPolicy", format!("{REQUIRE} needs both families: {HOW}"))),
        false => Ok(()),
    }
}
