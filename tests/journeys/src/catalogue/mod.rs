//! All journeys, by the station of the mesh that they are about. To add one: a function that takes a
//! [`Run`](crate::journey::Run), a row in its module's `JOURNEYS` with the ids that it proves, its YAML in `yaml/`.

mod bookinfo;
mod egress;
mod families;
mod helm;
mod identity;
mod ingress;
mod install;
mod kubernetes;
mod on_demand;
mod policy;
mod protocols;
mod resilience;
mod security;
mod traffic;
mod tunnel;
mod wildcard;

use crate::journey::Journey;

/// All journeys in the order of the spec.
pub fn all() -> Vec<Journey> {
    let mut all = [
        kubernetes::JOURNEYS,
        install::JOURNEYS,
        helm::JOURNEYS,
        bookinfo::JOURNEYS,
        resilience::JOURNEYS,
        traffic::JOURNEYS,
        protocols::JOURNEYS,
        ingress::JOURNEYS,
        egress::JOURNEYS,
        wildcard::JOURNEYS,
        identity::JOURNEYS,
        security::JOURNEYS,
        policy::JOURNEYS,
        on_demand::JOURNEYS,
        families::JOURNEYS,
        tunnel::JOURNEYS,
    ]
    .concat();
    // Spec files in their order; within one the order of the modules above.
    all.sort_by_key(|journey| journey.id.split(':').next());
    all
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_are_well_formed_and_unique() {
        let all = super::all();
        for (at, journey) in all.iter().enumerate() {
            let (file, name) = journey.id.split_once(':').unwrap();
            assert!(["1", "2", "3", "6"].contains(&file) && name.starts_with('J'), "{}", journey.id);
            assert!(all[..at].iter().all(|other| other.id != journey.id), "{} twice", journey.id);
            assert!(!journey.proves.is_empty(), "{} proves nothing", journey.id);
            for id in journey.proves {
                assert!(id.split_once(':').is_some_and(|(file, _)| ["1", "2", "3", "6"].contains(&file)), "{id}");
            }
        }
    }
}
