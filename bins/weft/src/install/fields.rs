//! Which fields an installation may have ([`known`]), and what may stand there. A field that is not known is an error, and so is
//! a value of another kind: either would silently not hold.
//!
//! Names: Istio's `IstioOperatorSpec` and the values of its charts. Those that Weft knows of and does not act on are told of
//! as warnings ([`without_effect`]).

use super::path;
use anyhow::bail;
use known::{Known, TOP};
use serde_json::{Value, json};

mod known;

/// Looks for fields that an installation does not have.
///
/// # Errors
/// The first, by its path, and what there is in its place.
pub fn check(spec: &Value) -> anyhow::Result<()> {
    let mut passed_over = Vec::new();
    look(spec, "", &TOP, &mut passed_over)
}

/// Settings that have no effect with Weft, by their paths.
pub fn without_effect(spec: &Value) -> Vec<String> {
    let mut passed_over = Vec::new();
    // What is wrong has been told by `check`.
    _ = look(spec, "", &TOP, &mut passed_over);
    passed_over
}

fn look(value: &Value, path: &str, known: &Known, passed_over: &mut Vec<String>) -> anyhow::Result<()> {
    let whole = |value: &Value| value.as_u64().is_some();
    let fits = match known {
        _ if value.is_null() => return Ok(()),
        Known::Any => true,
        Known::Bool => value.is_boolean(),
        Known::Count => whole(value),
        Known::Amount => whole(value) || value.is_string(),
        Known::Text => value.is_string(),
        Known::Word => value.is_string() || value.is_number(),
        Known::Scalar => value.is_string() || value.is_number() || value.is_boolean(),
        Known::Map | Known::MapOf(_) => value.is_object(),
        Known::Of(_) => value.is_array(),
        Known::Fields(_) | Known::Values(..) => value.is_object(),
    };
    if !fits {
        bail!("{} is {}; it must {}", if path.is_empty() { "spec" } else { path }, sort(value), wanted(known));
    }
    match (known, value) {
        (Known::Of(item), Value::Array(items)) => {
            for (at, value) in items.iter().enumerate() {
                look(value, &format!("{path}[{at}]"), item, passed_over)?;
            }
        }
        (Known::MapOf(below), Value::Object(own)) => {
            for (name, value) in own {
                look(value, &format!("{path}.{name}"), below, passed_over)?;
            }
        }
        (Known::Fields(fields), Value::Object(own)) => below(own, path, fields, &[], passed_over)?,
        (Known::Values(fields, without), Value::Object(own)) => below(own, path, fields, without, passed_over)?,
        _ => {}
    }
    Ok(())
}

fn below(
    own: &serde_json::Map<String, Value>,
    path: &str,
    fields: &[(&str, Known)],
    without: &[&str],
    passed_over: &mut Vec<String>,
) -> anyhow::Result<()> {
    for (name, value) in own {
        let place = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match fields.iter().find(|(known, _)| known == name) {
            Some((_, known)) => look(value, &place, known, passed_over)?,
            None if without.contains(&name.as_str()) => passed_over.push(place),
            None => {
                let names: Vec<&str> = fields.iter().map(|(name, _)| *name).chain(without.iter().copied()).collect();
                bail!("{place} is not known; there are {}", names.join(", "));
            }
        }
    }
    Ok(())
}

/// What `text` stands for at a path of `--set`: what is a text there stays one, whatever it looks like; `{a,b}` is a list, as with
/// Helm.
///
/// # Errors
/// A path that cannot be read.
pub fn parse(path: &str, text: &str) -> anyhow::Result<Value> {
    let known = at(&path::names(path)?);
    let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
    Ok(match (known, inner) {
        (Known::Text | Known::Word, _) => text.into(),
        (Known::Of(item), Some(inner)) => items(inner, matches!(item, Known::Text)),
        (Known::Map | Known::MapOf(_) | Known::Fields(_) | Known::Values(..), Some(inner))
            if inner.trim().is_empty() =>
        {
            json!({})
        }
        // A text in JSON, such as a log's format, is no list.
        (Known::Any, Some(inner)) if serde_json::from_str::<Value>(text).is_err() => items(inner, false),
        _ => path::scalar(text),
    })
}

/// The items of `a,b`; `\,` is a comma in one.
fn items(inner: &str, are_texts: bool) -> Value {
    let (mut all, mut item, mut rest) = (Vec::new(), String::new(), inner.chars());
    while let Some(c) = rest.next() {
        match c {
            '\\' => item.extend(rest.next()),
            ',' => all.push(std::mem::take(&mut item)),
            c => item.push(c),
        }
    }
    if !item.is_empty() || !all.is_empty() {
        all.push(item);
    }
    let value = |item: &String| if are_texts { item.trim().into() } else { path::scalar(item.trim()) };
    all.iter().map(value).collect()
}

/// What may stand at a place; below what is the user's, anything.
fn at(names: &[Option<String>]) -> &'static Known {
    names.iter().fold(&TOP, |known, name| match (known, name) {
        (Known::Fields(fields) | Known::Values(fields, _), Some(name)) => {
            fields.iter().find(|(known, _)| known == name).map_or(&Known::Any, |(_, known)| known)
        }
        (Known::MapOf(below), Some(_)) | (Known::Of(below), None) => below,
        _ => &Known::Any,
    })
}

fn wanted(known: &Known) -> &'static str {
    match known {
        Known::Any => "be anything",
        Known::Bool => "be true or false, without quotes",
        Known::Count => "be a whole number from 0, without quotes",
        Known::Amount => "be a whole number or a share such as 25%",
        Known::Text => "be a text, in quotes where it looks like something else",
        Known::Word => "be a text or a number",
        Known::Scalar => "be a text, a number, true or false",
        Known::Map | Known::MapOf(_) => "be a map",
        Known::Of(_) => "be a list, with --set {a,b}",
        Known::Fields(_) | Known::Values(..) => "have fields",
    }
}

fn sort(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_and_wrong_sorts() {
        for (spec, said) in [
            (json!({"meshconfig": {}}), "meshconfig is not known; there are profile, hub"),
            (json!({"components": {"mixer": {}}}), "components.mixer is not known; there are base, pilot"),
            (json!({"components": {"pilot": {"k8s": {"replicas": 2}}}}), "components.pilot.k8s.replicas is not known"),
            (
                json!({"components": {"ingressGateways": {"name": "x"}}}),
                "components.ingressGateways is a map; it must be a list",
            ),
            (
                json!({"components": {"egressGateways": [{}, {"k8s": {"overlays": [{"patches": [{"pth": 1}]}]}}]}}),
                "components.egressGateways[1].k8s.overlays[0].patches[0].pth",
            ),
            (json!({"values": {"global": {"proxi": {}}}}), "values.global.proxi is not known"),
            (json!({"values": {"global": {"proxy": {"logLevl": 1}}}}), "values.global.proxy.logLevl"),
            (json!({"values": {"pilot": true}}), "values.pilot is true or false; it must have fields"),
            (json!([]), "spec is a list"),
        ] {
            let error = check(&spec).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn the_values_of_the_injector_are_known() {
        check(&json!({"values": weft_inject::Values::default().tree()})).unwrap();
        let spec = json!({"values": {"pilot": {"plugins": []}, "global": {"jwtPolicy": "x", "hub": "h"}}});
        check(&spec).unwrap();
        assert_eq!(without_effect(&spec), ["values.pilot.plugins", "values.global.jwtPolicy"]);
    }

    #[test]
    fn values_of_another_kind() {
        for (spec, said) in [
            (
                json!({"components": {"pilot": {"enabled": "false"}}}),
                "components.pilot.enabled is a text; it must be true or false",
            ),
            (
                json!({"components": {"pilot": {"k8s": {"replicaCount": "3"}}}}),
                "components.pilot.k8s.replicaCount is a text; it must be a whole number",
            ),
            (
                json!({"values": {"pilot": {"replicaCount": 2.5}}}),
                "values.pilot.replicaCount is a number; it must be a whole",
            ),
            (json!({"values": {"pilot": {"autoscaleMax": -1}}}), "values.pilot.autoscaleMax is a number"),
            (
                json!({"components": {"pilot": {"k8s": {"env": {"A": "b"}}}}}),
                "components.pilot.k8s.env is a map; it must be a list",
            ),
            (
                json!({"components": {"pilot": {"k8s": {"env": [{"name": "A", "value": true}]}}}}),
                "components.pilot.k8s.env[0].value is true or false; it must be a text",
            ),
            (
                json!({"values": {"revisionTags": "prod"}}),
                "values.revisionTags is a text; it must be a list, with --set {a,b}",
            ),
            (
                json!({"values": {"global": {"imagePullSecrets": [{"name": "a"}]}}}),
                "values.global.imagePullSecrets[0] is a map",
            ),
            (json!({"values": {"pilot": {"podAnnotations": {"a": 1}}}}), "values.pilot.podAnnotations.a is a number"),
            (json!({"values": {"pilot": {"volumes": ["a"]}}}), "values.pilot.volumes[0] is a text; it must be a map"),
            (json!({"revision": 100}), "revision is a number; it must be a text"),
            (
                json!({"values": {"global": {"network": []}}}),
                "values.global.network is a list; it must be a text or a number",
            ),
        ] {
            let error = check(&spec).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn what_texts_stand_for() {
        for (path, text, wanted) in [
            ("values.revisionTags", "{prod,canary}", json!(["prod", "canary"])),
            ("values.revisionTags", "{prod}", json!(["prod"])),
            ("values.revisionTags", "{}", json!([])),
            ("values.revisionTags", "{1, 2}", json!(["1", "2"])),
            ("values.revisionTags[0]", "1", json!("1")),
            ("values.pilot.extraContainerArgs", "{--a=b\\,c,7}", json!(["--a=b,c", 7])),
            ("values.pilot.nodeSelector", "{}", json!({})),
            ("values.pilot.nodeSelector.disk", "true", json!("true")),
            ("values.pilot.env.A", "true", json!(true)),
            ("components.pilot.k8s.env[0].value", "true", json!("true")),
            ("components.ingressGateways.[name:a].k8s.replicaCount", "3", json!(3)),
            ("values.pilot.tag", "1.10", json!("1.10")),
            ("values.pilot.rollingMaxUnavailable", "0", json!(0)),
            ("meshConfig.enablePrometheusMerge", "false", json!(false)),
            ("meshConfig.a.b", "{x,1}", json!(["x", 1])),
            ("meshConfig.accessLogFormat", r#"{"a":"%B%","b":1}"#, json!(r#"{"a":"%B%","b":1}"#)),
        ] {
            assert_eq!(parse(path, text).unwrap(), wanted, "{path}={text}");
        }
    }
}
