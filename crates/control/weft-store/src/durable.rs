//! A store's objects in a file, so that they outlive the program: a log of changes, each batch of which counts whole or not at
//! all, and which is written anew when it has grown. Who wants only some objects kept says so; the store itself knows nothing
//! of the file.
//!
//! A line is a JSON object: `{"put": OBJECT}`, `{"delete": {group, kind, namespace, name}}`, or `{"end": REVISION}`, which ends a
//! batch. What follows the last `end` was being written when the program or the machine died, and is dropped.

use crate::memory::MemoryStore;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;
use weft_k8s_api::{Object, ObjectKey};

/// Name of the file in its folder.
pub const FILE: &str = "objects.log";
/// Longest line in bytes; more than any object may have.
const MAX_LINE: u64 = 16 << 20;
/// The log is written anew when it is longer than this and than twice what it held after it was last written anew, in bytes.
const MIN_COMPACT: u64 = 4 << 20;
/// Pause in which changes come together into one batch.
const SETTLE: Duration = Duration::from_millis(50);

/// Why a file cannot be read or written.
#[derive(Debug, Error)]
pub enum DurableError {
    /// The operating system said no.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// The file is not what this program writes.
    #[error("{} line {line}: {reason}; move the file away to start empty", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Record {
    Put(Box<Object>),
    Delete(Place),
    End(u64),
}

#[derive(Serialize, Deserialize)]
struct Place {
    group: String,
    kind: String,
    namespace: String,
    name: String,
}

/// Which objects are kept.
pub type Keep = fn(&Object) -> bool;

/// The file, open for the changes of one store.
pub struct Durable {
    path: PathBuf,
    file: File,
    keep: Keep,
    /// What the file holds: resource versions.
    held: HashMap<ObjectKey, String>,
    size: u64,
    compact_at: u64,
}

impl Durable {
    /// Opens the file in a folder, or makes it. Returns the objects that it holds, too. A batch that was not finished is cut off.
    ///
    /// # Errors
    /// When the file cannot be read or written, or is not what this program writes.
    pub fn open(folder: &Path, keep: Keep) -> Result<(Self, Vec<Object>), DurableError> {
        let path = folder.join(FILE);
        let failed = |error| DurableError::Io { path: path.clone(), error };
        fs::create_dir_all(folder).map_err(failed)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        // Secrets are among the objects.
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&path).map_err(failed)?;
        let (objects, whole) = read(&path, &file)?;
        file.set_len(whole).map_err(failed)?;
        file.seek(io::SeekFrom::Start(whole)).map_err(failed)?;
        let held = objects.iter().map(|o| (o.key(), version(o))).collect();
        let durable = Self { path, file, keep, held, size: whole, compact_at: MIN_COMPACT.max(whole * 2) };
        Ok((durable, objects))
    }

    /// Writes what has changed in the store since the last time; returns how many objects that were.
    ///
    /// # Errors
    /// When the file cannot be written. The next call tries again.
    pub fn write(&mut self, store: &MemoryStore) -> Result<usize, DurableError> {
        let revision = store.revision();
        let kept: Vec<_> = store.all().into_iter().filter(|o| (self.keep)(o)).collect();
        let now: HashMap<ObjectKey, String> = kept.iter().map(|o| (o.key(), version(o))).collect();
        let changed = kept.iter().filter(|o| self.held.get(&o.key()) != now.get(&o.key()));
        let mut records: Vec<Record> = changed.map(|o| Record::Put(Box::new(Object::clone(o)))).collect();
        let gone = self.held.keys().filter(|key| !now.contains_key(*key));
        records.extend(gone.map(|key| {
            Record::Delete(Place {
                group: key.group.clone(),
                kind: key.kind.clone(),
                namespace: key.namespace.clone(),
                name: key.name.clone(),
            })
        }));
        let count = records.len();
        if count == 0 {
            return Ok(0);
        }
        records.push(Record::End(revision));
        self.append(&records).map_err(|error| DurableError::Io { path: self.path.clone(), error })?;
        self.held = now;
        if self.size > self.compact_at {
            let all = kept.iter().map(|o| Record::Put(Box::new(Object::clone(o)))).chain([Record::End(revision)]);
            self.compact(all).map_err(|error| DurableError::Io { path: self.path.clone(), error })?;
        }
        Ok(count)
    }

    /// Appends a batch. When that breaks off, the file is cut to what it was.
    fn append(&mut self, records: &[Record]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for record in records {
            serde_json::to_writer(&mut bytes, record)?;
            bytes.push(b'\n');
        }
        let written = self.file.write_all(&bytes).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            self.file.set_len(self.size)?;
            self.file.seek(io::SeekFrom::Start(self.size))?;
            return Err(error);
        }
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Writes the file anew, beside the old one, and puts it into its place.
    fn compact(&mut self, records: impl Iterator<Item = Record>) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut writer = BufWriter::new(options.open(&new)?);
        for record in records {
            serde_json::to_writer(&mut writer, &record)?;
            writer.write_all(b"\n")?;
        }
        let mut file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        if let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        self.size = file.stream_position()?;
        self.compact_at = MIN_COMPACT.max(self.size * 2);
        self.file = file;
        Ok(())
    }

    /// Keeps the file equal to the store, for ever. What was changed in the last moment before the program dies may be missing:
    /// changes are gathered for 50 ms.
    pub async fn run(mut self, store: MemoryStore) {
        let mut changed = store.changed();
        loop {
            changed.mark_unchanged();
            let this = store.clone();
            let written = tokio::task::spawn_blocking(move || {
                let written = self.write(&this);
                (self, written)
            });
            let Ok((back, written)) = written.await else { return };
            self = back;
            if let Err(error) = written {
                tracing::error!(%error, "the objects are not kept; trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            if changed.changed().await.is_err() {
                return;
            }
            tokio::time::sleep(SETTLE).await;
        }
    }
}

fn version(object: &Object) -> String {
    object.metadata.resource_version.clone().unwrap_or_default()
}

/// The objects of all whole batches, and where these end.
fn read(path: &Path, file: &File) -> Result<(Vec<Object>, u64), DurableError> {
    let failed = |error| DurableError::Io { path: path.to_path_buf(), error };
    let mut reader = BufReader::new(file);
    let (mut objects, mut batch) = (std::collections::BTreeMap::new(), Vec::new());
    let (mut at, mut whole, mut line) = (0_u64, 0_u64, Vec::new());
    for number in 1.. {
        line.clear();
        let length = io::Read::take(&mut reader, MAX_LINE).read_until(b'\n', &mut line).map_err(failed)?;
        if length == 0 || line.last() != Some(&b'\n') {
            // The end, or a line that was being written; a line that is too long cannot come from here.
            if length as u64 >= MAX_LINE {
                let reason = "the line is too long".into();
                return Err(DurableError::Corrupt { path: path.into(), line: number, reason });
            }
            break;
        }
        at += length as u64;
        let record = serde_json::from_slice(&line).map_err(|e| DurableError::Corrupt {
            path: path.into(),
            line: number,
            reason: e.to_string(),
        })?;
        match record {
            Record::End(_) => {
                whole = at;
                for record in batch.drain(..) {
                    match record {
                        Record::Put(object) => drop(objects.insert(object.key(), *object)),
                        Record::Delete(place) => {
                            let Place { group, kind, namespace, name } = place;
                            objects.remove(&ObjectKey { group, kind, namespace, name });
                        }
                        Record::End(_) => {}
                    }
                }
            }
            record => batch.push(record),
        }
    }
    Ok((objects.into_values().collect(), whole))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{DeleteOptions, StoreOptions, key};
    use serde_json::json;

    fn store() -> MemoryStore {
        MemoryStore::with_options(StoreOptions { require_namespaces: false, ..StoreOptions::default() })
    }

    fn map(name: &str, size: usize) -> Object {
        let data = json!({"k": "x".repeat(size)});
        let value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "n"}, "data": data});
        serde_json::from_value(value).unwrap()
    }

    fn names(objects: &[Object]) -> Vec<&str> {
        objects.iter().map(Object::name).collect()
    }

    const ALL: Keep = |_| true;

    #[test]
    fn objects_outlive_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let (mut durable, found) = Durable::open(folder.path(), |o| o.name() != "volatile").unwrap();
        assert!(found.is_empty());
        let first = store();
        for name in ["a", "b", "volatile"] {
            first.create(map(name, 1)).unwrap();
        }
        assert_eq!(durable.write(&first).unwrap(), 2);
        assert_eq!(durable.write(&first).unwrap(), 0, "nothing changed");
        first.delete(&key("", "ConfigMap", "n", "a"), &DeleteOptions::default()).unwrap();
        first.modify(&key("", "ConfigMap", "n", "b"), |o| o.body["data"] = json!({"k": "new"})).unwrap();
        assert_eq!(durable.write(&first).unwrap(), 2);
        drop(durable);
        let (_, found) = Durable::open(folder.path(), ALL).unwrap();
        assert_eq!((names(&found), &found[0].body["data"]["k"]), (vec!["b"], &json!("new")));
        let second = store();
        assert_eq!(second.restore(found), 1);
        let (old, new) =
            (first.find("", "ConfigMap", "n", "b").unwrap(), second.find("", "ConfigMap", "n", "b").unwrap());
        assert_eq!(old.metadata.uid, new.metadata.uid, "it is the same object");
        assert_eq!(old.metadata.creation_timestamp, new.metadata.creation_timestamp);
    }

    #[test]
    fn a_batch_counts_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let (mut durable, _) = Durable::open(folder.path(), ALL).unwrap();
        let objects = store();
        objects.create(map("a", 1)).unwrap();
        durable.write(&objects).unwrap();
        let path = folder.path().join(FILE);
        let whole = fs::metadata(&path).unwrap().len();
        objects.create(map("b", 1)).unwrap();
        objects.create(map("c", 1)).unwrap();
        durable.write(&objects).unwrap();
        let bytes = fs::read(&path).unwrap();
        for cut in usize::try_from(whole).unwrap()..bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            let (_, found) = Durable::open(folder.path(), ALL).unwrap();
            assert_eq!(names(&found), ["a"], "cut at {cut} of {}", bytes.len());
            assert_eq!(fs::metadata(&path).unwrap().len(), whole, "the rest is cut off");
        }
        fs::write(&path, &bytes).unwrap();
        assert_eq!(names(&Durable::open(folder.path(), ALL).unwrap().1), ["a", "b", "c"]);
        fs::write(&path, b"{\"put\": 1}\n").unwrap();
        let error = Durable::open(folder.path(), ALL).err().unwrap().to_string();
        assert!(error.contains("objects.log line 1") && error.contains("move the file away"), "{error}");
    }

    #[test]
    fn the_file_stays_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let (mut durable, _) = Durable::open(folder.path(), ALL).unwrap();
        let objects = store();
        objects.create(map("a", 1)).unwrap();
        for n in 0..40 {
            objects
                .modify(&key("", "ConfigMap", "n", "a"), |o| {
                    o.body["data"] = json!({"k": n.to_string().repeat(200_000)})
                })
                .unwrap();
            durable.write(&objects).unwrap();
        }
        let size = fs::metadata(folder.path().join(FILE)).unwrap().len();
        assert!(size < 2 * MIN_COMPACT, "{size}");
        drop(durable);
        let (_, found) = Durable::open(folder.path(), ALL).unwrap();
        assert_eq!(found[0].body["data"]["k"].as_str().unwrap().len(), 400_000);
    }
}
