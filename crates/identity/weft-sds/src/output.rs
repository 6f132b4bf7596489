//! The secrets as files, for programs that read them from disk (`OUTPUT_CERTS`). Only when asked for: a key on disk is a key
//! that others may find. Files are for their owner alone, replaced in one step, and taken away when the identity is lost.

use crate::WorkloadSecrets;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Name of the key's file.
pub const KEY: &str = "key.pem";
/// Name of the chain's file.
pub const CHAIN: &str = "cert-chain.pem";
/// Name of the roots' file.
pub const ROOTS: &str = "root-cert.pem";

/// Writes the three files into `folder`, which is made when it is not there.
///
/// # Errors
/// When one cannot be written.
pub fn write(folder: &Path, secrets: &WorkloadSecrets) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    replace(folder, ROOTS, secrets.roots_pem.as_bytes())?;
    replace(folder, CHAIN, secrets.svid.chain_pem.as_bytes())?;
    replace(folder, KEY, secrets.svid.key_pem.as_bytes())
}

/// Takes key and chain away: an identity that is lost is not to be shown. What is not there is no error.
///
/// # Errors
/// When a file is there and cannot be removed.
pub fn remove(folder: &Path) -> io::Result<()> {
    for name in [KEY, CHAIN] {
        match fs::remove_file(folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn replace(folder: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let temporary = folder.join(format!(".{name}.{}", std::process::id()));
    // One that a process that died left behind may have other rights than ours.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    drop(file);
    fs::rename(&temporary, folder.join(name))
}
