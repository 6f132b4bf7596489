//! Any bytes as manifests: parsing, validation and the lines of problems must not panic, and must end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_k8s_api::{validate, yaml};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(documents) = yaml::documents(text, "fuzz.yaml") else { return };
    for document in &documents {
        let found = validate(&document.object);
        for problem in found.errors.iter().chain(&found.warnings).chain(&found.unknown_fields) {
            let _ = document.locate(&problem.path);
            let _ = problem.to_string();
        }
    }
});
