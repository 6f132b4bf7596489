//! A pod's volumes: folders under the lab's tmpfs, filled from the store and kept up to date, and where each container sees
//! them.

use super::env::Source;
use crate::sandbox::Bind;
use k8s_openapi::api::core::v1::{
    Container, DownwardAPIVolumeFile, KeyToPath, Pod, ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};
use weft_k8s_api::Object;
use weft_store::MemoryStore;

/// Issues tokens for service accounts.
pub trait TokenIssuer: Send + Sync {
    /// A token for the pod's account and this audience, good for so many seconds; returns it and its end in Unix seconds.
    ///
    /// # Errors
    /// Why not.
    fn issue(&self, pod: &Object, audience: Option<&str>, seconds: i64) -> Result<(String, i64), String>;
}

/// The volumes of one pod.
pub struct Volumes {
    folder: PathBuf,
    claims: PathBuf,
    volumes: Vec<Volume>,
    tokens: BTreeMap<PathBuf, Token>,
}

struct Token {
    value: String,
    /// Unix seconds from which on a new one is asked for.
    renew: i64,
}

type Files = BTreeMap<PathBuf, (Vec<u8>, u32)>;

impl Volumes {
    /// `run` is the lab's tmpfs.
    pub fn new(run: &Path, uid: &str, spec: &Pod) -> Self {
        let volumes = spec.spec.as_ref().and_then(|spec| spec.volumes.clone()).unwrap_or_default();
        Self { folder: run.join("pods").join(uid), claims: run.join("claims"), volumes, tokens: BTreeMap::new() }
    }

    /// Makes and fills all volumes; called again, it brings them up to date.
    ///
    /// # Errors
    /// Which volume cannot be had, and why; the pod waits until it can.
    pub fn refresh(&mut self, store: &MemoryStore, pod: &Object, tokens: &dyn TokenIssuer) -> Result<(), String> {
        let source = Source { store, pod };
        for volume in self.volumes.clone() {
            let failed = |why: String| format!("volume {:?}: {why}", volume.name);
            let folder = self.path_of(&volume, pod.namespace()).map_err(failed)?;
            if let Some(files) = self.files(&volume, &source, tokens).map_err(failed)? {
                write_files(&folder, &files).map_err(|error| failed(error.to_string()))?;
            } else if volume.host_path.is_none() {
                std::fs::create_dir_all(&folder).map_err(|error| failed(error.to_string()))?;
            }
        }
        Ok(())
    }

    /// Where a volume's content is on this machine.
    fn path_of(&self, volume: &Volume, namespace: &str) -> Result<PathBuf, String> {
        if let Some(host) = &volume.host_path {
            let path = PathBuf::from(&host.path);
            return if path.exists() {
                Ok(path)
            } else {
                Err(format!("hostPath {} does not exist on this machine", host.path))
            };
        }
        if let Some(claim) = &volume.persistent_volume_claim {
            return Ok(self.claims.join(safe(namespace)).join(safe(&claim.claim_name)));
        }
        Ok(self.folder.join(safe(&volume.name)))
    }

    /// The files that a volume must hold; `None` for a volume that is the container's own to fill.
    fn files(
        &mut self,
        volume: &Volume,
        source: &Source<'_>,
        tokens: &dyn TokenIssuer,
    ) -> Result<Option<Files>, String> {
        let mut files = Files::new();
        if let Some(map) = &volume.config_map {
            let all = source.all_of("ConfigMap", &map.name, map.optional == Some(true))?;
            add_keys(&mut files, all, map.items.as_deref(), map.default_mode)?;
        } else if let Some(secret) = &volume.secret {
            let name = secret.secret_name.as_deref().unwrap_or_default();
            let all = source.all_of("Secret", name, secret.optional == Some(true))?;
            add_keys(&mut files, all, secret.items.as_deref(), secret.default_mode)?;
        } else if let Some(downward) = &volume.downward_api {
            add_fields(&mut files, source, downward.items.as_deref().unwrap_or_default(), downward.default_mode)?;
        } else if let Some(projected) = &volume.projected {
            for part in projected.sources.iter().flatten() {
                self.project(&mut files, volume, part, projected.default_mode, source, tokens)?;
            }
        } else if is_own_to_fill(volume) {
            return Ok(None);
        } else {
            return Err(
                "of a kind that the lab does not have; use emptyDir, configMap, secret, projected, downwardAPI, \
                        persistentVolumeClaim or hostPath"
                    .into(),
            );
        }
        Ok(Some(files))
    }

    fn project(
        &mut self,
        files: &mut Files,
        volume: &Volume,
        part: &VolumeProjection,
        mode: Option<i32>,
        source: &Source<'_>,
        tokens: &dyn TokenIssuer,
    ) -> Result<(), String> {
        if let Some(map) = &part.config_map {
            let all = source.all_of("ConfigMap", &map.name, map.optional == Some(true))?;
            add_keys(files, all, map.items.as_deref(), mode)?;
        }
        if let Some(secret) = &part.secret {
            let all = source.all_of("Secret", &secret.name, secret.optional == Some(true))?;
            add_keys(files, all, secret.items.as_deref(), mode)?;
        }
        if let Some(downward) = &part.downward_api {
            add_fields(files, source, downward.items.as_deref().unwrap_or_default(), mode)?;
        }
        if let Some(token) = &part.service_account_token {
            let value = self.token(&volume.name, token, source.pod, tokens)?;
            files.insert(inside(&token.path)?, (value.into_bytes(), file_mode(None, mode)));
        }
        Ok(())
    }

    /// The present token, or a new one when 80 % of its time is over (as the kubelet does).
    fn token(
        &mut self,
        volume: &str,
        wanted: &ServiceAccountTokenProjection,
        pod: &Object,
        tokens: &dyn TokenIssuer,
    ) -> Result<String, String> {
        let now = jiff::Timestamp::now().as_second();
        let place = Path::new(volume).join(&wanted.path);
        if let Some(token) = self.tokens.get(&place).filter(|token| token.renew > now) {
            return Ok(token.value.clone());
        }
        let seconds = wanted.expiration_seconds.unwrap_or(3600);
        let (value, end) = tokens.issue(pod, wanted.audience.as_deref(), seconds)?;
        let renew = now + (end - now) * 8 / 10;
        self.tokens.insert(place, Token { value: value.clone(), renew });
        Ok(value)
    }

    /// What one container sees.
    ///
    /// # Errors
    /// When it mounts a volume that the pod does not have.
    pub fn binds(&self, container: &Container, namespace: &str) -> Result<Vec<Bind>, String> {
        let mut binds = Vec::new();
        for wanted in container.volume_mounts.iter().flatten() {
            let volume = self.volumes.iter().find(|volume| volume.name == wanted.name);
            let volume = volume.ok_or_else(|| format!("volumeMounts: the pod has no volume {:?}", wanted.name))?;
            let mut source = self.path_of(volume, namespace)?;
            if let Some(sub) = wanted.sub_path.as_deref().filter(|sub| !sub.is_empty()) {
                source = source.join(inside(sub)?);
                if !source.exists() {
                    std::fs::create_dir_all(&source).map_err(|error| error.to_string())?;
                }
            }
            let filled = volume.config_map.is_some()
                || volume.secret.is_some()
                || volume.projected.is_some()
                || volume.downward_api.is_some();
            // The machine's own files are never written to by a pod.
            let read_only = wanted.read_only == Some(true) || filled || volume.host_path.is_some();
            binds.push(Bind { source, target: PathBuf::from(&wanted.mount_path), read_only });
        }
        // Outer folders first, whatever the order in the spec: a mount inside another must come after it.
        binds.sort_by_key(|bind| bind.target.components().count());
        Ok(binds)
    }

    /// Removes what the pod leaves behind; claims stay.
    pub fn remove(&self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Volumes that start as an empty folder, or as one of the machine. A volume without any source, as some manifests have,
/// counts as the former, and so does the socket folder of a SPIFFE driver: the proxy makes the socket itself.
fn is_own_to_fill(volume: &Volume) -> bool {
    let bare = Volume { name: volume.name.clone(), ..Volume::default() };
    let folder = volume.empty_dir.is_some() || volume.host_path.is_some() || volume.persistent_volume_claim.is_some();
    folder || *volume == bare || volume.csi.as_ref().is_some_and(|csi| csi.driver.contains("spiffe"))
}

fn add_keys(
    files: &mut Files,
    mut all: BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    mode: Option<i32>,
) -> Result<(), String> {
    let Some(items) = items else {
        for (key, value) in all {
            files.insert(inside(&key)?, (value, file_mode(None, mode)));
        }
        return Ok(());
    };
    for item in items {
        // A key that is missing is an error in Kubernetes unless the source is optional, and then the source is missing too.
        if let Some(value) = all.remove(&item.key) {
            files.insert(inside(&item.path)?, (value, file_mode(item.mode, mode)));
        }
    }
    Ok(())
}

fn add_fields(
    files: &mut Files,
    source: &Source<'_>,
    items: &[DownwardAPIVolumeFile],
    mode: Option<i32>,
) -> Result<(), String> {
    for item in items {
        let value = match &item.field_ref {
            Some(field) => source.field(field)?,
            None => "0".into(),
        };
        files.insert(inside(&item.path)?, (value.into_bytes(), file_mode(item.mode, mode)));
    }
    Ok(())
}

fn file_mode(own: Option<i32>, default: Option<i32>) -> u32 {
    u32::try_from(own.or(default).unwrap_or(0o644)).unwrap_or(0o644) & 0o777
}

/// A relative path that stays inside the volume.
fn inside(path: &str) -> Result<PathBuf, String> {
    let path = Path::new(path);
    let good = path.components().all(|part| matches!(part, Component::Normal(_)));
    if good && path.components().next().is_some() {
        Ok(path.into())
    } else {
        Err(format!("path {path:?} must be relative, without .."))
    }
}

/// Names come from validated objects; what is no plain name still never leaves the folder.
fn safe(name: &str) -> String {
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect();
    if name.is_empty() || name.starts_with('.') { format!("_{name}") } else { name }
}

/// Writes each file whole (a reader sees the old or the new one) and removes what is no longer there.
fn write_files(folder: &Path, files: &Files) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (path, (content, mode)) in files {
        let target = folder.join(path);
        if std::fs::read(&target).is_ok_and(|old| old == *content) {
            continue;
        }
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let new = target.with_file_name(format!("..{}.new", target.file_name().unwrap_or_default().display()));
        std::fs::write(&new, content)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(*mode))?;
        std::fs::rename(&new, &target)?;
    }
    for entry in std::fs::read_dir(folder)?.flatten() {
        let name = PathBuf::from(entry.file_name());
        let kept = files.keys().any(|path| path.starts_with(&name));
        if !kept && entry.file_type()?.is_file() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    struct Counter(std::sync::atomic::AtomicU32);

    impl TokenIssuer for Counter {
        fn issue(&self, _: &Object, audience: Option<&str>, seconds: i64) -> Result<(String, i64), String> {
            let number = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok((format!("{}-{number}", audience.unwrap_or("api")), jiff::Timestamp::now().as_second() + seconds))
        }
    }

    #[test]
    fn fills_updates_and_waits() {
        let run = tempfile::tempdir().unwrap();
        let store =
            MemoryStore::with_options(weft_store::StoreOptions { require_namespaces: false, ..Default::default() });
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "a"}},
            "spec": {"containers": [{"name": "c", "volumeMounts": [
                        {"name": "all", "mountPath": "/etc/all/inner"}, {"name": "tmp", "mountPath": "/etc/all"}]}],
                     "volumes": [
                {"name": "tmp", "emptyDir": {}},
                {"name": "all", "projected": {"sources": [
                    {"serviceAccountToken": {"path": "token", "audience": "istio-ca"}},
                    {"configMap": {"name": "m", "items": [{"key": "k", "path": "deep/k"}]}},
                    {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}}]}});
        let object: Object = serde_json::from_value(pod.clone()).unwrap();
        let typed: Pod = serde_json::from_value(pod).unwrap();
        let mut volumes = Volumes::new(run.path(), "u", &typed);
        let issuer = Counter(0.into());
        assert!(volumes.refresh(&store, &object, &issuer).unwrap_err().contains("ConfigMap n/m"));
        let map = |value: &str| -> Object {
            serde_json::from_value(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "n"}, "data": {"k": value}})).unwrap()
        };
        store.create(map("one")).unwrap();
        volumes.refresh(&store, &object, &issuer).unwrap();
        let read = |file: &str| std::fs::read_to_string(run.path().join("pods/u/all").join(file)).unwrap();
        assert_eq!((read("deep/k"), read("labels")), ("one".into(), "app=\"a\"\n".into()));
        let token = read("token");
        assert!(token.starts_with("istio-ca-"));
        store.update(map("two")).unwrap();
        volumes.refresh(&store, &object, &issuer).unwrap();
        assert_eq!((read("deep/k"), read("token")), ("two".into(), token));
        let container = &typed.spec.as_ref().unwrap().containers[0];
        let binds = volumes.binds(container, "n").unwrap();
        assert_eq!(binds[0].target, Path::new("/etc/all"));
        assert!(binds[1].read_only && !binds[0].read_only);
        volumes.remove();
        assert!(!run.path().join("pods/u").exists());
    }

    #[test]
    fn paths_stay_inside() {
        for bad in ["../x", "/x", "a/../../x", ""] {
            assert!(inside(bad).is_err(), "{bad}");
        }
        assert_eq!(safe("../a/b"), "_.._a_b");
    }
}
