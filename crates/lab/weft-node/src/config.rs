//! `weft-lab.yaml`: programs for a user's own images, and folders that their containers may read.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Largest file read.
const MAX_SIZE: u64 = 1 << 20;

/// The file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LabConfig {
    /// Image name → command. Names match with or without registry and tag.
    pub images: BTreeMap<String, ImageCommand>,
    /// Folders of this machine that all containers see, read-only, at the same path.
    pub mounts: Vec<PathBuf>,
    /// Folder of the file: commands with a relative path are looked up there, and containers see it, read-only.
    #[serde(skip_deserializing)]
    pub folder: Option<PathBuf>,
}

/// A command: words in one string, or a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ImageCommand {
    /// `python3 app.py --port 8080`; with quotes, `$`, `|` and the like it is given to `sh -c`.
    Line(String),
    /// `[python3, app.py]`
    Words(Vec<String>),
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// The file.
        path: String,
        /// The system's words.
        cause: std::io::Error,
    },
    /// It is not as it should be.
    #[error(
        "{path}: {cause}\nexpected, for example:\n  images:\n    my/app: /path/to/program --port 8080\n  mounts:\n    - /path/to/data"
    )]
    Wrong {
        /// The file.
        path: String,
        /// Line, column and what is wrong.
        cause: String,
    },
}

impl LabConfig {
    /// A real Envoy: containers see its folder, and the image `envoyproxy/envoy` is it, unless the file says otherwise.
    pub fn add_envoy(&mut self, program: &Path) {
        self.mounts.extend(program.parent().map(PathBuf::from));
        let words = ImageCommand::Words(vec![program.display().to_string()]);
        self.images.entry("envoyproxy/envoy".into()).or_insert(words);
    }

    /// Reads the file.
    ///
    /// # Errors
    /// With file, line and what would be right.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let shown = path.display().to_string();
        let failed = |cause| ConfigError::Read { path: shown.clone(), cause };
        let wrong = |cause: String| ConfigError::Wrong { path: shown.clone(), cause };
        if std::fs::metadata(path).map_err(failed)?.len() > MAX_SIZE {
            return Err(wrong(format!("the file is larger than {MAX_SIZE} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let mut config: Self = serde_saphyr::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        let file = std::fs::canonicalize(path).map_err(failed)?;
        let folder = file.parent().map(Path::to_path_buf);
        for mount in &mut config.mounts {
            let full = folder.as_deref().unwrap_or(Path::new("/")).join(&*mount);
            *mount = std::fs::canonicalize(&full)
                .map_err(|error| wrong(format!("mounts: {}: {error}; name a folder that exists", full.display())))?;
        }
        if let Some((name, _)) = config.images.iter().find(|(_, command)| command.words().is_empty()) {
            return Err(wrong(format!("images: {name}: the command is empty")));
        }
        config.folder = folder;
        Ok(config)
    }
}

impl ImageCommand {
    /// Program and arguments.
    pub fn words(&self) -> Vec<String> {
        match self {
            Self::Words(words) => words.clone(),
            Self::Line(line) if line.contains(['"', '\'', '$', '|', '&', ';', '<', '>', '*', '\\', '`']) => {
                ["sh", "-c", line].map(String::from).to_vec()
            }
            Self::Line(line) => line.split_whitespace().map(String::from).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lab_s_envoy_is_an_image_too() {
        let mut config = LabConfig::default();
        config.add_envoy(Path::new("/opt/peers/envoy"));
        config.add_envoy(Path::new("/elsewhere/envoy"));
        assert_eq!(config.images["envoyproxy/envoy"].words(), ["/opt/peers/envoy"]);
        assert_eq!(config.mounts, [Path::new("/opt/peers"), Path::new("/elsewhere")]);
    }

    #[test]
    fn reads_and_refuses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weft-lab.yaml");
        std::fs::write(
            &path,
            "images:\n  my/app: ./run --port 8080\n  other: [python3, app.py]\n  third: 'echo $HOME'\nmounts: [.]\n",
        )
        .unwrap();
        let config = LabConfig::read(&path).unwrap();
        assert_eq!(config.images["my/app"].words(), ["./run", "--port", "8080"]);
        assert_eq!(config.images["other"].words(), ["python3", "app.py"]);
        assert_eq!(config.images["third"].words(), ["sh", "-c", "echo $HOME"]);
        assert_eq!(config.mounts, [std::fs::canonicalize(folder.path()).unwrap()]);
        for (text, said) in
            [("image: {}\n", "image"), ("images: {a: ''}\n", "empty"), ("mounts: [/none/here]\n", "/none/here")]
        {
            std::fs::write(&path, text).unwrap();
            let error = LabConfig::read(&path).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("weft-lab.yaml"), "{error}");
        }
    }
}
