//! Versions of control planes, and from which to which one goes in place.
//!
//! Source: Istio's "In-place Upgrades": at most one minor version, up or down.

use std::fmt;

/// A version such as `1.8.0`; what follows the numbers does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Version {
    /// Reads `1.8.0`, `v1.8`, `1.8.0-rc.1`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let numbers = text.split(['-', '+']).next()?;
        let mut parts = numbers.split('.').map(|part| part.parse::<u32>().ok());
        let version = Self { major: parts.next()??, minor: parts.next()??, patch: parts.next().unwrap_or(Some(0))? };
        parts.next().is_none().then_some(version)
    }

    /// The tag of an image as a version.
    pub fn of_image(image: &str) -> Option<Self> {
        let name = image.rsplit('/').next()?;
        Self::parse(name.split('@').next()?.split_once(':')?.1)
    }

    /// Whether an installation of this version becomes one of `target` in place.
    ///
    /// # Errors
    /// Why not, and what to do instead.
    pub fn may_become(self, target: Self) -> Result<(), String> {
        let (word, way) = if target < self { ("downgrade", "lower") } else { ("upgrade", "higher") };
        if self.major == target.major && self.minor.abs_diff(target.minor) <= 1 {
            return Ok(());
        }
        Err(format!(
            "{word} from {self} to {target} is not supported: the target is more than one minor version {way}; go by the \
             versions between, or install the new one beside the old with --revision"
        ))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_images() {
        for (text, wanted) in [
            ("1.8.0", Some("1.8.0")),
            ("v1.10", Some("1.10.0")),
            ("1.8.0-rc.1", Some("1.8.0")),
            ("latest", None),
            ("1", None),
            ("1.2.3.4", None),
            ("", None),
        ] {
            assert_eq!(Version::parse(text).map(|v| v.to_string()).as_deref(), wanted, "{text}");
        }
        for (image, wanted) in [
            ("localhost:5000/weft/weftd:0.1.0", Some("0.1.0")),
            ("docker.io/istio/pilot", None),
            ("localhost:5000/pilot", None),
            ("h/weftd:1.2.3@sha256:00", Some("1.2.3")),
        ] {
            assert_eq!(Version::of_image(image).map(|v| v.to_string()).as_deref(), wanted, "{image}");
        }
    }

    #[test]
    fn one_minor_version_at_a_time() {
        for (from, to, said) in [
            ("1.6.0", "1.7.3", None),
            ("1.7.3", "1.7.0", None),
            ("1.7.0", "1.6.0", None),
            ("1.6.0", "1.8.0", Some("upgrade from 1.6.0 to 1.8.0 is not supported")),
            ("1.7.0", "1.5.9", Some("downgrade from 1.7.0 to 1.5.9")),
            ("1.7.0", "2.0.0", Some("--revision")),
        ] {
            let answer = Version::parse(from).unwrap().may_become(Version::parse(to).unwrap());
            match (said, &answer) {
                (None, Ok(())) => {}
                (Some(said), Err(why)) if why.contains(said) => {}
                _ => panic!("{from} to {to}: {answer:?}"),
            }
        }
    }
}
