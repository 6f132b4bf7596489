//! Profiles: settings under a name, each over `default`. Those of the program, and those of a folder (`--manifests`).

use super::fields;
use super::operator::{overlay, spec_of};
use anyhow::{Context, bail};
use serde_json::Value;
use std::path::Path;
use weft_k8s_api::yaml;

/// The program's own, in the order in which they are listed.
const OWN: [(&str, &str); 7] = [
    ("default", include_str!("../../../../manifests/profiles/default.yaml")),
    ("demo", include_str!("../../../../manifests/profiles/demo.yaml")),
    ("empty", include_str!("../../../../manifests/profiles/empty.yaml")),
    ("external", include_str!("../../../../manifests/profiles/external.yaml")),
    ("minimal", include_str!("../../../../manifests/profiles/minimal.yaml")),
    ("openshift", include_str!("../../../../manifests/profiles/openshift.yaml")),
    ("preview", include_str!("../../../../manifests/profiles/preview.yaml")),
];
/// Largest profile, bytes.
const MAX_FILE: u64 = 1 << 20;

/// The settings of a profile, those of `default` below them.
///
/// # Errors
/// A folder without profiles, a name that there is no profile of, or a file that is none.
pub fn read(name: &str, folder: Option<&Path>) -> anyhow::Result<Value> {
    if let Some(folder) = folder {
        check(folder)?;
    }
    let mut spec = one("default", folder)?;
    if name != "default" {
        overlay(&mut spec, &one(name, folder)?);
    }
    Ok(spec)
}

/// A folder that is misspelt would silently not count.
fn check(folder: &Path) -> anyhow::Result<()> {
    let shown = folder.display();
    if folder.to_string_lossy().contains("://") {
        bail!(
            "--manifests {shown} is a URL; it must be a folder of this machine. Fetch it, look at it, name the folder: mkdir charts && \
             curl -sSfL {shown} | tar -xz -C charts"
        );
    }
    if folder.is_file() {
        bail!(
            "--manifests {shown} is a file; it must be a folder. Unpack it first: mkdir charts && tar -xzf {shown} -C charts"
        );
    }
    if !folder.join("profiles").is_dir() {
        bail!("--manifests {shown}: there is no folder {shown}/profiles; name the one that profiles/NAME.yaml is in");
    }
    Ok(())
}

fn one(name: &str, folder: Option<&Path>) -> anyhow::Result<Value> {
    let of_folder = folder.map(|folder| folder.join("profiles").join(format!("{name}.yaml")));
    // A name with a slash would be another folder's file.
    let of_folder = of_folder.filter(|path| !name.contains(['/', '\\']) && path.is_file());
    let text = match &of_folder {
        Some(path) => {
            let shown = || format!("cannot read {}", path.display());
            if std::fs::metadata(path).with_context(shown)?.len() > MAX_FILE {
                bail!("{} is larger than {MAX_FILE} bytes", path.display());
            }
            std::fs::read_to_string(path).with_context(shown)?
        }
        None => match OWN.iter().find(|(own, _)| *own == name) {
            Some((_, text)) => (*text).to_string(),
            None => bail!("profile {name:?} is not known; there are {}", names(folder)?.join(", ")),
        },
    };
    let object = yaml::value(&text).map_err(|error| anyhow::anyhow!("profile {name}: {error}"))?;
    let spec = spec_of(&object).with_context(|| format!("profile {name}"))?;
    fields::check(&spec).with_context(|| format!("profile {name}"))?;
    Ok(spec)
}

/// Names of all profiles, in their order.
///
/// # Errors
/// When a folder is named that has no profiles.
pub fn names(folder: Option<&Path>) -> anyhow::Result<Vec<String>> {
    let mut names: Vec<String> = OWN.iter().map(|(name, _)| (*name).to_string()).collect();
    if let Some(folder) = folder {
        check(folder)?;
        let profiles = folder.join("profiles");
        let entries = std::fs::read_dir(&profiles).with_context(|| format!("cannot read {}", profiles.display()))?;
        for entry in entries {
            let name = entry.context("cannot read a folder")?.file_name().to_string_lossy().into_owned();
            names.extend(name.strip_suffix(".yaml").map(str::to_string));
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_is_read() {
        for name in names(None).unwrap() {
            let spec = read(&name, None).unwrap_or_else(|error| panic!("{error:#}"));
            assert!(spec["components"].is_object(), "{name}");
        }
        let on =
            |name: &str, path: &str| read(name, None).unwrap().pointer(&format!("/components/{path}/enabled")).cloned();
        for (name, base, pilot, ingress, egress) in [
            ("default", true, true, true, false),
            ("demo", true, true, true, true),
            ("minimal", true, true, false, false),
            ("empty", false, false, false, false),
            ("preview", true, true, true, false),
            ("openshift", true, true, true, false),
            ("external", true, false, false, false),
        ] {
            let wanted =
                [("base", base), ("pilot", pilot), ("ingressGateways/0", ingress), ("egressGateways/0", egress)];
            for (path, enabled) in wanted {
                assert_eq!(on(name, path), Some(enabled.into()), "{name}: {path}");
            }
        }
    }

    #[test]
    fn profiles_of_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("profiles")).unwrap();
        std::fs::write(
            folder.path().join("profiles/custom1.yaml"),
            "spec: {tag: mine}\nkind: IstioOperator\napiVersion: install.istio.io/v1alpha1\n",
        )
        .unwrap();
        let spec = read("custom1", Some(folder.path())).unwrap();
        assert_eq!((&spec["tag"], &spec["components"]["pilot"]["enabled"]), (&"mine".into(), &true.into()));
        assert!(names(Some(folder.path())).unwrap().contains(&"custom1".to_string()));
        for (name, said) in [("custom2", "custom1, default"), ("../profiles/custom1", "not known")] {
            let error = read(name, Some(folder.path())).unwrap_err().to_string();
            assert!(error.contains(said), "{name}: {error}");
        }
        std::fs::write(folder.path().join("profiles/bad.yaml"), "tagg: x\n").unwrap();
        assert!(format!("{:#}", read("bad", Some(folder.path())).unwrap_err()).contains("profile bad: tagg"));
        for (folder, said) in [
            ("/nonexistent", "/nonexistent/profiles; name the one"),
            (
                "https://github.com/istio/istio/releases/x.tar.gz",
                "curl -sSfL https://github.com/istio/istio/releases/x.tar.gz | tar",
            ),
            (folder.path().join("profiles/bad.yaml").to_str().unwrap(), "bad.yaml is a file; it must be a folder"),
            (folder.path().join("profiles").to_str().unwrap(), "profiles/profiles"),
        ] {
            let folder = Some(Path::new(folder));
            for error in [read("demo", folder).map(|_| ()), names(folder).map(|_| ())] {
                let error = error.unwrap_err().to_string();
                assert!(error.contains(said), "{error}");
            }
        }
    }
}
