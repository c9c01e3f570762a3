//! Writing files that others watch: whole or not at all.

use std::fs::Permissions;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Whether a file that is there may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    Keep,
    Replace,
}

/// Anybody may read it.
pub(super) const PUBLIC: u32 = 0o644;

/// Only its owner may read it.
pub(super) const SECRET: u32 = 0o600;

/// Puts `contents` at `path` by way of a temporary file beside it, so that nobody ever reads half
/// of it. With [`Existing::Keep`] a file that is there is an `AlreadyExists` error.
pub(super) fn write(path: &Path, contents: &str, mode: u32, existing: Existing) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".starling-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(directory)?;
    file.write_all(contents.as_bytes())?;
    // Renaming is atomic only for names; without this a power cut may leave an empty file.
    file.as_file().sync_all()?;
    match existing {
        Existing::Keep => file.persist_noclobber(path)?,
        Existing::Replace => file.persist(path)?,
    };
    Ok(())
}
