// SPDX-License-Identifier: GPL-2.0-only

//! A file that is written beside the one that it replaces, and takes its place when it is whole.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

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
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let mut draft = std::ffi::OsString::from(".");
        draft.push(name);
        draft.push(format!(".{}", std::process::id()));
        let draft = path.with_file_name(draft);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(true);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_draft_takes_the_place_when_it_is_whole() {
        let place = std::env::temp_dir().join(format!("pacifica-draft-{}", std::process::id()));
        fs::create_dir_all(&place).unwrap();
        let path = place.join("file");
        fs::write(&path, "old").unwrap();
        let mut draft = Draft::new(&path).unwrap();
        draft.file.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        drop(draft);
        assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
        let mut draft = Draft::new(&path).unwrap();
        draft.file.write_all(b"new").unwrap();
        draft.publish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
        fs::remove_dir_all(&place).unwrap();
    }
}
