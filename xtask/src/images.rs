//! `cargo xtask images`: container images of the release programs, as OCI archives, without a builder and without a registry.
//!
//! An image holds the program, the libraries that the loader finds for it on this machine, the authorities of the public web,
//! and nothing else: no shell, no package manager. The same programs give the same bytes. What stands in the files of
//! `containers/` is the same for those who build with podman, buildah or docker.
//!
//! Format: OCI image specification 1.1 (image layout, manifest, configuration), layers as plain tar.

use crate::run;
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An image.
struct Image {
    name: &'static str,
    /// What it starts. Injected containers give arguments alone.
    entrypoint: &'static [&'static str],
    /// Whom it runs as: that of injected pods, who is known to the redirection.
    user: &'static str,
    /// Ports that the documents name.
    ports: &'static [&'static str],
    /// Other programs that ours starts, by name.
    tools: &'static [&'static str],
    /// Other names of the program: those that Istio's documents use inside of pods.
    links: &'static [&'static str],
    /// A command by which to see that the image works.
    proof: &'static [&'static str],
}

const IMAGES: [Image; 4] = [
    Image {
        name: "weftd",
        entrypoint: &["/usr/local/bin/weftd"],
        user: "1337:1337",
        ports: &["15012/tcp", "15014/tcp", "15017/tcp"],
        tools: &[],
        links: &["pilot-discovery"],
        proof: &["/usr/local/bin/weftd", "--version"],
    },
    Image {
        name: "weft-proxy",
        entrypoint: &["/usr/local/bin/weft-proxy"],
        user: "1337:1337",
        ports: &["15001/tcp", "15006/tcp", "15020/tcp", "15021/tcp", "15090/tcp"],
        // For the init container.
        tools: &["nft"],
        links: &["pilot-agent"],
        proof: &["/usr/local/bin/weft-proxy", "istio-iptables", "--dry-run"],
    },
    Image {
        name: "weft",
        entrypoint: &["/usr/local/bin/weft"],
        user: "1337:1337",
        ports: &[],
        tools: &[],
        links: &["istioctl"],
        proof: &["/usr/local/bin/weft", "manifest", "generate", "--set", "profile=minimal"],
    },
    Image {
        name: "weft-cni",
        entrypoint: &["/usr/local/bin/weft-cni"],
        // Writes to the node's folders.
        user: "0:0",
        ports: &[],
        tools: &[],
        links: &[],
        proof: &["/usr/local/bin/weft-cni", "--version"],
    },
];

/// The authorities of the public web, for JWKS and external services.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
const USERS: &str = "root:x:0:0:root:/:/sbin/nologin\nistio-proxy:x:1337:1337:istio-proxy:/:/sbin/nologin\n";
const GROUPS: &str = "root:x:0:\nistio-proxy:x:1337:\n";

/// Builds all images into `target/images`, checks each, and tells where they are.
pub fn build() -> Result<()> {
    let bins = match std::env::var_os("WEFT_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            run::cargo(&[
                "build",
                "--release",
                "--quiet",
                "-p",
                "weftd",
                "-p",
                "weft-proxy",
                "-p",
                "weft",
                "-p",
                "weft-cni",
            ])?;
            run::target().join("release")
        }
    };
    build_from(&bins)
}

/// The same, of the programs in a folder.
pub fn build_from(bins: &Path) -> Result<()> {
    let folder = run::target().join("images");
    fs::create_dir_all(&folder)?;
    for image in &IMAGES {
        let archive = image.build(bins, &folder).with_context(|| format!("image {}", image.name))?;
        println!("{}: {} MiB", archive.display(), fs::metadata(&archive)?.len() >> 20);
    }
    Ok(())
}

impl Image {
    fn build(&self, bins: &Path, folder: &Path) -> Result<PathBuf> {
        let work = folder.join(format!("{}.work", self.name));
        let _ = fs::remove_dir_all(&work);
        let (root, layout) = (work.join("root"), work.join("layout"));
        self.fill(bins, &root)?;
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let layer_file = work.join("layer.tar");
        tar(&root, &layer_file)?;
        let layer = store(&layer_file, &blobs)?;
        let config = store_text(&work, &blobs, &self.config(&layer.digest))?;
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
            config.describe("application/vnd.oci.image.config.v1+json", ""),
            layer.describe("application/vnd.oci.image.layer.v1.tar", "")
        );
        let manifest = store_text(&work, &blobs, &manifest)?;
        let tag = format!(r#","annotations":{{"org.opencontainers.image.ref.name":"{}"}}"#, env!("CARGO_PKG_VERSION"));
        let index = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{}]}}"#,
            manifest.describe("application/vnd.oci.image.manifest.v1+json", &tag)
        );
        fs::write(layout.join("index.json"), index)?;
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let archive = folder.join(format!("{}.oci.tar", self.name));
        tar(&layout, &archive)?;
        self.check(&archive, &root, &work)?;
        fs::remove_dir_all(&work)?;
        Ok(archive)
    }

    /// Lays out the file tree.
    fn fill(&self, bins: &Path, root: &Path) -> Result<()> {
        let program = bins.join(self.name);
        ensure!(program.is_file(), "{} is not there; build it with: cargo build --release", program.display());
        let bin = root.join("usr/local/bin");
        fs::create_dir_all(&bin)?;
        copy(&program, &bin.join(self.name))?;
        for link in self.links {
            std::os::unix::fs::symlink(self.name, bin.join(link))?;
        }
        let mut libraries = libraries(&program)?;
        for tool in self.tools {
            let found = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(|dir| Path::new(dir).join(tool));
            let found = found.into_iter().find(|file| file.is_file());
            let found = found.with_context(|| format!("{tool} is not installed on this machine"))?;
            libraries.extend(libraries_of(&found)?);
            copy(&found, &root.join("usr/sbin").join(tool))?;
        }
        for library in libraries {
            copy(&library, &root.join(library.strip_prefix("/")?))?;
        }
        let etc = root.join("etc");
        fs::create_dir_all(&etc)?;
        fs::write(etc.join("passwd"), USERS)?;
        fs::write(etc.join("group"), GROUPS)?;
        if Path::new(CERTIFICATES).is_file() {
            copy(Path::new(CERTIFICATES), &root.join(&CERTIFICATES[1..]))?;
        }
        // Where the injector mounts, and where a read-only file tree must have a folder already.
        for folder in ["tmp", "var/run/secrets", "var/lib/istio/data", "etc/istio/proxy"] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        Ok(())
    }

    /// The image's configuration. No field says when it was made: the same programs give the same image.
    fn config(&self, layer: &str) -> String {
        let words = |list: &[&str]| list.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(",");
        let ports: Vec<String> = self.ports.iter().map(|port| format!("{port:?}:{{}}")).collect();
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        format!(
            r#"{{"architecture":"{arch}","os":"linux","config":{{"User":"{}","ExposedPorts":{{{}}},"Env":["PATH=/usr/local/bin:/usr/sbin","SSL_CERT_FILE={CERTIFICATES}"],"Entrypoint":[{}],"WorkingDir":"/","Labels":{{"org.opencontainers.image.title":"{}","org.opencontainers.image.version":"{}","org.opencontainers.image.licenses":"{}"}}}},"rootfs":{{"type":"layers","diff_ids":["sha256:{layer}"]}},"history":[{{"created_by":"cargo xtask images"}}]}}"#,
            self.user,
            ports.join(","),
            words(self.entrypoint),
            self.name,
            env!("CARGO_PKG_VERSION"),
            env!("CARGO_PKG_LICENSE"),
        )
    }

    /// What a registry and a node would do: the archive is read by a program that nobody here wrote, where there is one; and
    /// the program runs with nothing but the image's files, where this machine permits that.
    fn check(&self, archive: &Path, root: &Path, work: &Path) -> Result<()> {
        if run::works(Path::new("skopeo"), &["--version"]) {
            let source = format!("oci-archive:{}", archive.display());
            let said = output("skopeo", &["inspect", "--config", &source])?;
            ensure!(said.contains(self.entrypoint[0]) && said.contains(self.user), "skopeo reads\n{said}");
            // Copying looks at every digest.
            let copied = format!("dir:{}", work.join("copied").display());
            output("skopeo", &["copy", "--insecure-policy", "--quiet", &source, &copied])?;
        } else {
            println!("{}: not looked at by skopeo, which is not installed", self.name);
        }
        let root = root.to_str().context("the target directory's path is not UTF-8")?;
        if !run::works(Path::new("unshare"), &["--user", "--map-root-user", "chroot", "/", "true"]) {
            println!("{}: not started, this machine permits no user namespaces", self.name);
            return Ok(());
        }
        let inside = ["--user", "--map-root-user", "chroot", root];
        output("unshare", &[&inside, self.proof].concat()).map(drop)
    }
}

/// A blob.
struct Blob {
    digest: String,
    size: u64,
}

impl Blob {
    /// A descriptor, with further members.
    fn describe(&self, media_type: &str, more: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{}","size":{}{more}}}"#, self.digest, self.size)
    }
}

/// Puts a file among the blobs, under its digest.
fn store(file: &Path, blobs: &Path) -> Result<Blob> {
    let said = output("sha256sum", &["--", file.to_str().context("path")?])?;
    let digest = said.split_whitespace().next().unwrap_or_default().to_string();
    ensure!(digest.len() == 64, "sha256sum printed {said:?}");
    let size = fs::metadata(file)?.len();
    fs::rename(file, blobs.join(&digest))?;
    Ok(Blob { digest, size })
}

fn store_text(work: &Path, blobs: &Path, text: &str) -> Result<Blob> {
    let file = work.join("blob.json");
    fs::write(&file, text)?;
    store(&file, blobs)
}

/// Packs a folder: names in order, no times, no owners, so that equal trees are equal archives.
fn tar(folder: &Path, archive: &Path) -> Result<()> {
    let (folder, archive) = (folder.to_str().context("path")?, archive.to_str().context("path")?);
    let same = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--format=ustar"];
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    output("tar", &[&same[..], &["-cf", archive, "-C", folder], &names].concat()).map(drop)
}

/// The libraries that the loader finds for a program, and the loader itself.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = libraries_of(program)?;
    // Names are looked up by libraries that no program names.
    for name in ["libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2"] {
        let beside = found.iter().filter_map(|library| Some(library.parent()?.join(name))).find(|file| file.is_file());
        found.extend(beside);
    }
    Ok(found)
}

/// What `ldd` says. A static program has none.
fn libraries_of(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let out = Command::new("ldd").arg(program).stdin(Stdio::null()).output().context("ldd")?;
    let text = String::from_utf8_lossy(&out.stdout);
    if text.contains("not found") {
        bail!("{}: {text}", program.display());
    }
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("path")?)?;
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    let mode = if fs::metadata(from)?.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
    fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// Runs a program that must succeed; what it printed.
fn output(program: &str, args: &[&str]) -> Result<String> {
    let out = Command::new(program).args(args).stdin(Stdio::null()).output().with_context(|| program.to_string())?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{program} {}: {}\n{said}", args.join(" "), out.status);
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_trees_are_equal_blobs_and_the_loader_is_found() {
        let folder = run::target().join("tmp/images-test");
        let _ = fs::remove_dir_all(&folder);
        let digests = ["a", "b"].map(|name| {
            let (root, blobs) = (folder.join(name).join("root"), folder.join(name).join("blobs"));
            fs::create_dir_all(root.join("z/y")).unwrap();
            fs::create_dir_all(&blobs).unwrap();
            fs::write(root.join("z/y/one"), "1").unwrap();
            fs::write(root.join("two"), "2").unwrap();
            let layer = folder.join(name).join("layer.tar");
            tar(&root, &layer).unwrap();
            let blob = store(&layer, &blobs).unwrap();
            assert_eq!(fs::metadata(blobs.join(&blob.digest)).unwrap().len(), blob.size);
            blob.digest
        });
        assert_eq!(digests[0], digests[1]);
        let own = std::env::current_exe().unwrap();
        assert!(libraries(&own).unwrap().iter().any(|library| library.to_string_lossy().contains("ld-linux")));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_images_say() {
        for image in &IMAGES {
            let config = image.config("abc");
            assert!(
                config.contains(r#""diff_ids":["sha256:abc"]"#) && config.contains(image.entrypoint[0]),
                "{config}"
            );
            assert_eq!(config.matches('{').count(), config.matches('}').count(), "{config}");
        }
    }
}
