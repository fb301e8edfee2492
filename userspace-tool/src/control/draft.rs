// SPDX-License-Identifier: GPL-2.0-only

//! A file that is written beside the one that it replaces, and takes its place when it is whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::state::file::MAGIC;

/// The file. Without [`Draft::publish`] it goes when this is dropped; after a hard end of the
/// program it stays, under a name that begins with a dot, and is in nothing's way.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) file: File,
    draft: PathBuf,
    path: PathBuf,
}

impl Draft {
    /// A new file beside `path`, which only this user can read: it has all that a guest knows.
    /// What is there already is refused if it is not to be replaced.
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        if !is_replaceable(path)? {
            return Err(io::Error::other(
                "it is there, and is no machine that was saved",
            ));
        }
        let mut random = [0; 8];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        let mut draft = std::ffi::OsString::from(".");
        draft.push(name);
        draft.push(format!(".{:016x}", u64::from_ne_bytes(random)));
        let draft = path.with_file_name(draft);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create_new(true);
        let file = options.mode(0o600).open(&draft)?;
        Ok(Self {
            file,
            draft,
            path: path.into(),
        })
    }

    /// The file takes its place: on the medium, too, when this returns.
    pub(crate) fn publish(self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.draft, &self.path)?;
        let directory = match self.path.parent() {
            Some(directory) if !directory.as_os_str().is_empty() => directory,
            _ => Path::new("."),
        };
        File::open(directory)?.sync_all()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After `publish` there is none.
        let _ = fs::remove_file(&self.draft);
    }
}

/// Whether a draft may take this place: there is nothing, or a regular file that is empty or has a
/// machine that was saved.
fn is_replaceable(path: &Path) -> io::Result<bool> {
    let about = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        result => result?,
    };
    if !about.is_file() {
        return Ok(false);
    }
    let mut start = Vec::new();
    let limit = MAGIC.len() as u64;
    File::open(path)?.take(limit).read_to_end(&mut start)?;
    Ok(start.is_empty() || start == MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_draft_takes_the_place_when_it_is_whole() {
        let place = std::env::temp_dir().join(format!("pacifica-draft-{}", std::process::id()));
        fs::create_dir_all(&place).unwrap();
        let path = place.join("file");
        let old = [&MAGIC[..], b"old"].concat();
        fs::write(&path, &old).unwrap();
        let mut draft = Draft::new(&path).unwrap();
        draft.file.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), old);
        drop(draft);
        assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
        let mut draft = Draft::new(&path).unwrap();
        draft.file.write_all(b"new").unwrap();
        draft.publish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
        fs::remove_dir_all(&place).unwrap();
    }

    #[test]
    fn only_a_saved_machine_is_replaced() {
        use std::os::unix::fs::{symlink, PermissionsExt};
        let place = std::env::temp_dir().join(format!("pacifica-place-{}", std::process::id()));
        fs::create_dir_all(place.join("directory")).unwrap();
        let path = |name: &str| place.join(name);
        fs::write(path("disk"), "PACIFIC ocean").unwrap();
        fs::write(path("short"), "PACIFIC").unwrap();
        fs::write(path("empty"), "").unwrap();
        fs::write(path("saved"), MAGIC).unwrap();
        symlink(path("saved"), path("link")).unwrap();
        for (name, good) in [
            ("disk", false),
            ("short", false),
            ("directory", false),
            ("link", false),
            ("empty", true),
            ("saved", true),
            ("absent", true),
        ] {
            assert_eq!(Draft::new(&path(name)).is_ok(), good, "{name}");
        }
        assert!(Draft::new(Path::new("/dev/null")).is_err());
        let (one, other) = (Draft::new(&path("empty")), Draft::new(&path("empty")));
        let (one, other) = (one.unwrap(), other.unwrap());
        assert_ne!(one.draft, other.draft);
        let mode = one.file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        drop((one, other));
        fs::remove_dir_all(&place).unwrap();
    }
}
