//! Wire protocols, tried on the real program from raw sockets: [`proxy`] runs weft-proxy in front of [`backend`], [`frame`]
//! and [`http2`] speak HTTP/2 frame by frame, right or wrong as a test wants it.

pub mod backend;
pub mod frame;
pub mod http2;
pub mod proxy;

/// Fails with every case of a table that does not hold.
///
/// # Panics
/// When one does not hold.
pub fn all_hold<T>(cases: &[(&str, T)], check: impl Fn(&T) -> anyhow::Result<()>) {
    let wrong: Vec<String> =
        cases.iter().filter_map(|(name, case)| check(case).err().map(|error| format!("{name}: {error:#}"))).collect();
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
