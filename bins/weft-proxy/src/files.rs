//! Keeps the secrets that the configuration names after files at what the files hold.

use crate::plane::Plane;
use std::collections::BTreeMap;
use std::time::Duration;
use weft_sds::FileSecret;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What was made of a secret's files: the content in force, and why a later one is not.
#[derive(Default)]
struct Seen {
    used: Option<FileSecret>,
    refused: Option<String>,
}

/// Follows configuration and files for as long as the process lives. What cannot be read or used is said once; what was good
/// before stays.
pub async fn follow(plane: Plane) {
    let mut versions = plane.versions();
    let mut seen = BTreeMap::<String, Seen>::new();
    loop {
        let _ = tokio::time::timeout(LOOK, versions.changed()).await;
        let names = plane.file_secrets();
        seen.retain(|name, _| names.contains(name));
        for name in names {
            let seen = seen.entry(name.clone()).or_default();
            look(&plane, &name, seen);
        }
        // Setting a secret made a version too.
        versions.borrow_and_update();
    }
}

fn look(plane: &Plane, name: &str, seen: &mut Seen) {
    let read = FileSecret::read(name).map_err(|error| error.to_string());
    if read.as_ref().is_ok_and(|now| seen.used.as_ref() == Some(now)) {
        return;
    }
    match read.and_then(|secret| Ok((secret.ready().map_err(|error| error.to_string())?, secret))) {
        Ok((ready, secret)) => {
            plane.set_file_secret(name, ready);
            *seen = Seen { used: Some(secret), refused: None };
        }
        Err(reason) if seen.refused.as_ref() != Some(&reason) => {
            tracing::warn!(secret = name, reason, "a secret of files cannot be used; what was there before stays");
            seen.refused = Some(reason);
        }
        Err(_) => {}
    }
}
