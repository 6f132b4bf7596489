//! The archive of a report: files in one folder of a `.tar.gz`, which others on this machine cannot read, and which is there
//! whole or not at all.

use anyhow::Context as _;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Folder in the archive that everything is in, and name of the archive.
pub const NAME: &str = "bug-report";
/// Most bytes of all files before compression.
const MAX_BYTES: u64 = 1 << 30;

/// An archive that is being written.
pub struct Archive {
    tar: tar::Builder<GzEncoder<File>>,
    path: PathBuf,
    /// Where it is written until it is whole.
    beside: PathBuf,
    made: u64,
    left: u64,
    /// Sizes by name.
    pub files: BTreeMap<String, u64>,
}

impl Archive {
    /// Begins `bug-report.tar.gz` in a folder.
    ///
    /// # Errors
    /// When nothing can be written there.
    pub fn create(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(format!("{NAME}.tar.gz"));
        let beside = folder.join(format!(".{NAME}.tar.gz.{}", std::process::id()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside);
        let file = file.with_context(|| format!("cannot write {}", beside.display()))?;
        let tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        let made = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Ok(Self { tar, path, beside, made, left: MAX_BYTES, files: BTreeMap::new() })
    }

    /// Adds a file; `false` when there is no room for it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, name: &str, content: &[u8]) -> anyhow::Result<bool> {
        let size = content.len() as u64;
        let Some(left) = self.left.checked_sub(size) else { return Ok(false) };
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o600);
        header.set_mtime(self.made);
        let written = self.tar.append_data(&mut header, format!("{NAME}/{name}"), content);
        written.with_context(|| format!("cannot write {name} to {}", self.beside.display()))?;
        self.left = left;
        self.files.insert(name.to_string(), size);
        Ok(true)
    }

    /// Ends the archive, and gives its place.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> anyhow::Result<PathBuf> {
        let wrong = || format!("cannot write {}", self.path.display());
        self.tar.finish().with_context(wrong)?;
        let encoder = self.tar.get_mut();
        encoder.try_finish().with_context(wrong)?;
        encoder.get_mut().flush().and_then(|()| encoder.get_mut().sync_all()).with_context(wrong)?;
        std::fs::rename(&self.beside, &self.path).with_context(wrong)?;
        Ok(self.path.clone())
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        // After the end there is none by that name.
        let _ = std::fs::remove_file(&self.beside);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn it_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let names = || std::fs::read_dir(folder.path()).unwrap().count();
        let mut given_up = Archive::create(folder.path()).unwrap();
        given_up.add("a", b"a").unwrap();
        drop(given_up);
        assert_eq!(names(), 0);
        let mut archive = Archive::create(folder.path()).unwrap();
        let long = format!("proxies/{}/x.json", "n".repeat(150));
        for (name, content) in [("versions", "1"), (&long, "{}")] {
            assert!(archive.add(name, content.as_bytes()).unwrap());
        }
        archive.left = 3;
        assert!(!archive.add("large", b"1234").unwrap() && archive.add("small", b"123").unwrap());
        let path = archive.finish().unwrap();
        assert_eq!((names(), std::fs::metadata(&path).unwrap().permissions().mode() & 0o777), (1, 0o600));
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(File::open(path).unwrap()));
        let mut found = BTreeMap::new();
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let (name, mut text) = (entry.path().unwrap().display().to_string(), String::new());
            entry.read_to_string(&mut text).unwrap();
            found.insert(name, text);
        }
        let wanted = [("bug-report/versions", "1"), ("bug-report/small", "123")];
        assert!(
            wanted.iter().all(|(name, text)| found[*name] == *text) && found[&format!("bug-report/{long}")] == "{}",
            "{found:?}"
        );
        assert_eq!(found.len(), 3);
    }
}
