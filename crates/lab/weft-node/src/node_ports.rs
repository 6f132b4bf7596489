//! Node ports of Services: which port gets which number. Some numbers have a listening socket on the machine; they are given
//! first, so that a Service's node port can be reached from outside of the lab. Pure.
//!
//! Source: Kubernetes' page "Service", types `NodePort` and `LoadBalancer`; the range is the API server's default.

use serde_json::Value;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use weft_apiserver::Denial;
use weft_k8s_api::Object;

/// Numbers that node ports have.
pub const RANGE: RangeInclusive<u16> = 30_000..=32_767;

/// A number with its protocol: the same number of two protocols is two node ports.
pub type Taken = (u16, String);

/// The node ports of a Service.
pub fn of(service: &Object) -> impl Iterator<Item = Taken> + '_ {
    service.spec()["ports"].as_array().into_iter().flatten().filter_map(|port| Some((number(port)?, protocol(port))))
}

fn number(port: &Value) -> Option<u16> {
    port["nodePort"].as_u64().and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0)
}

fn protocol(port: &Value) -> String {
    port["protocol"].as_str().unwrap_or("TCP").to_string()
}

/// Gives the ports of a Service their node ports: those that it names, those that it had, else free ones, of `first` before
/// others. A Service of another type has none.
///
/// # Errors
/// A number outside of [`RANGE`] or of another Service, with the field.
pub fn assign(
    service: &mut Object,
    old: Option<&Object>,
    taken: &BTreeSet<Taken>,
    first: &[u16],
) -> Result<(), Denial> {
    let spec = service.spec();
    let wanted = match spec["type"].as_str() {
        Some("NodePort") => true,
        Some("LoadBalancer") => spec["allocateLoadBalancerNodePorts"] != false,
        _ => return clear(service, old),
    };
    let mut taken = taken.clone();
    let ports = service.body.get_mut("spec").and_then(|spec| spec["ports"].as_array_mut());
    for (at, port) in ports.into_iter().flatten().enumerate() {
        let wrong = |message: String| Denial::field(format!("spec.ports[{at}].nodePort"), message);
        let protocol = protocol(port);
        let free = |number: &u16| !taken.contains(&(*number, protocol.clone()));
        let chosen = match number(port).or_else(|| had(old, port)) {
            Some(given) if !RANGE.contains(&given) => {
                return Err(wrong(format!(
                    "{given} is outside {}-{}; leave it out to get a free one",
                    RANGE.start(),
                    RANGE.end()
                )));
            }
            Some(given) if !free(&given) => {
                return Err(wrong(format!("{given} is another service's; leave it out to get a free one")));
            }
            Some(given) => given,
            None if !wanted => continue,
            None => {
                let next = first.iter().copied().chain(RANGE).find(free);
                next.ok_or_else(|| Denial::Forbidden("no node port is free".into()))?
            }
        };
        port["nodePort"] = chosen.into();
        taken.insert((chosen, protocol));
    }
    Ok(())
}

/// What the same port of the Service had before; only of a type that has node ports.
fn had(old: Option<&Object>, port: &Value) -> Option<u16> {
    let before = old?.spec()["ports"].as_array()?;
    let same = |other: &&Value| other["port"] == port["port"] && protocol(other) == protocol(port);
    before.iter().find(same).and_then(number)
}

/// A Service that no longer has node ports gives up those that it had; one that asks for some has the wrong type.
fn clear(service: &mut Object, old: Option<&Object>) -> Result<(), Denial> {
    let before: BTreeSet<Taken> = old.into_iter().flat_map(of).collect();
    let ports = service.body.get_mut("spec").and_then(|spec| spec["ports"].as_array_mut());
    for (at, port) in ports.into_iter().flatten().enumerate() {
        let Some(number) = number(port) else { continue };
        if !before.contains(&(number, protocol(port))) {
            let message =
                "only services of type NodePort and LoadBalancer have node ports; set spec.type, or leave it out";
            return Err(Denial::field(format!("spec.ports[{at}].nodePort"), message));
        }
        port.as_object_mut().map(|port| port.shift_remove("nodePort"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(spec: Value) -> Object {
        let value =
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "n"}, "spec": spec});
        serde_json::from_value(value).unwrap()
    }

    fn numbers(service: &Object) -> Vec<u16> {
        of(service).map(|(number, _)| number).collect()
    }

    #[test]
    fn who_gets_which() {
        let taken: BTreeSet<Taken> = [(30_000, "TCP".to_string()), (31_500, "TCP".to_string())].into();
        let first = [31_500, 31_501];
        let http = json!({"name": "http", "port": 80});
        for (spec, old, wanted) in [
            (json!({"type": "NodePort", "ports": [http, {"port": 443}]}), None, vec![31_501, 30_001]),
            (json!({"type": "LoadBalancer", "ports": [http]}), None, vec![31_501]),
            (json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [http]}), None, vec![]),
            (json!({"ports": [http]}), None, vec![]),
            (json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 32_000}]}), None, vec![32_000]),
            (
                json!({"type": "NodePort", "ports": [{"port": 53, "protocol": "UDP", "nodePort": 30_000}]}),
                None,
                vec![30_000],
            ),
            // It keeps what it had, and gives it up with its type.
            (json!({"type": "NodePort", "ports": [http]}), Some(30_777), vec![30_777]),
            (json!({"type": "ClusterIP", "ports": [{"port": 80, "nodePort": 30_777}]}), Some(30_777), vec![]),
        ] {
            let old = old.map(|port| service(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]})));
            let mut made = service(spec.clone());
            assign(&mut made, old.as_ref(), &taken, &first).unwrap();
            assert_eq!(numbers(&made), wanted, "{spec}");
        }
    }

    #[test]
    fn refusals_name_the_field() {
        let taken: BTreeSet<Taken> = [(30_000, "TCP".to_string())].into();
        for (spec, said) in [
            (json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}), "outside 30000-32767"),
            (json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_000}]}), "another service's"),
            (json!({"ports": [{"port": 80, "nodePort": 30_001}]}), "set spec.type"),
        ] {
            let error = format!("{:?}", assign(&mut service(spec.clone()), None, &taken, &[]).unwrap_err());
            assert!(error.contains(said) && error.contains("spec.ports[0].nodePort"), "{spec}: {error}");
        }
    }
}
