//! Changes a secrets file atomically, for `keys generate --into`.
//!
//! The command writes the new content to a temporary file in the same directory, then renames
//! it. A reader sees either the old or the new content, even after a crash.

use std::{
    fs::{self, File, Metadata, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, OFlags, XattrFlags, fgetxattr, flistxattr, flock, fsetxattr},
    io::Errno,
};
use zeroize::Zeroizing;

use crate::keys::{add_key::Format, file::MAX_BYTES};

/// The mode of a new file.
const PRIVATE: u32 = 0o600;

const KUBERNETES: &str =
    "If Kubernetes mounts this file, add the key to the Secret that it comes from";

/// A secrets file and its content. While this exists, a lock keeps other instances of this
/// command from changing the file.
pub(super) struct SecretsFile {
    path: PathBuf,
    /// The locked file; `None` if there is no file yet.
    existing: Option<(File, Metadata)>,
    text: Zeroizing<String>,
}

impl SecretsFile {
    /// Opens the file at `path`, which need not exist.
    ///
    /// # Errors
    ///
    /// The reason why the file cannot be changed. The text continues a sentence that begins
    /// with the path.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let new = |existing, text| Self {
            path: path.to_owned(),
            existing,
            text,
        };
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(new(None, Zeroizing::default()));
            }
            Err(error) => return Err(format!("cannot be read ({error})")),
        };
        check_kind(path, &metadata)?;
        let (file, metadata) = open_locked(path)?;
        let text = read(&file, &metadata)?;
        Ok(new(Some((file, metadata)), text))
    }

    /// Whether the file exists.
    pub(super) fn exists(&self) -> bool {
        self.existing.is_some()
    }

    /// The content; empty if there is no file.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The format of a new or empty file, by the extension of its name.
    pub(super) fn format(&self) -> Format {
        let extension = self.path.extension();
        if extension.is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
            Format::Json
        } else {
            Format::Yaml
        }
    }

    /// Replaces the content.
    ///
    /// # Errors
    ///
    /// The reason why the file is unchanged. The text continues a sentence that begins with the
    /// path.
    pub(super) fn replace(&self, text: &str) -> Result<(), String> {
        let directory = match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let temporary = Temporary::create(directory)
            .map_err(|error| format!("cannot be changed: {}", explain(directory, &error)))?;
        self.fill(&temporary, text)
            .map_err(|error| format!("cannot be changed ({error}); it is as it was"))?;
        self.check_unchanged()?;
        let renamed = match &self.existing {
            Some(_) => fs::rename(&temporary.path, &self.path),
            // Unlike a rename, this fails if another program has created the file meanwhile.
            None => fs::hard_link(&temporary.path, &self.path),
        };
        renamed.map_err(|error| format!("cannot be changed ({error}); it is as it was"))?;
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(|error| {
            format!("was changed, and may be as it was after a power failure ({error})")
        })
    }

    /// Writes the new content, with owner, mode and attributes of the old file.
    fn fill(&self, temporary: &Temporary, text: &str) -> Result<(), String> {
        let failed = |error: io::Error| error.to_string();
        let mut file = &temporary.file;
        if let Some((existing, metadata)) = &self.existing {
            let ours = file.metadata().map_err(failed)?;
            let owner = (metadata.uid(), metadata.gid());
            if owner != (ours.uid(), ours.gid()) {
                fchown(file, Some(owner.0), Some(owner.1)).map_err(|error| {
                    format!(
                        "its owner is {}:{}, and this user may not keep that: {error}; run the \
                         command as the owner or as root",
                        owner.0, owner.1
                    )
                })?;
            }
            copy_attributes(existing, file)?;
            let mode = Permissions::from_mode(metadata.mode() & 0o7777);
            file.set_permissions(mode).map_err(failed)?;
        }
        file.write_all(text.as_bytes()).map_err(failed)?;
        file.sync_all().map_err(failed)
    }

    /// Checks that no editor or other program has changed the file since it was read.
    fn check_unchanged(&self) -> Result<(), String> {
        let state = |m: &Metadata| {
            let changed = (m.ctime(), m.ctime_nsec(), m.mtime(), m.mtime_nsec());
            (m.dev(), m.ino(), m.size(), changed)
        };
        let now = fs::symlink_metadata(&self.path).ok();
        let then = self.existing.as_ref().map(|(_, metadata)| metadata);
        if now.as_ref().map(state) == then.map(state) {
            Ok(())
        } else {
            Err(raced())
        }
    }
}

fn raced() -> String {
    "was changed by somebody else at the same time; nothing of that was overwritten. Run the \
     command again"
        .to_owned()
}

/// Refuses files that a rename cannot replace correctly: links, and files of the kubelet.
fn check_kind(path: &Path, metadata: &Metadata) -> Result<(), String> {
    if metadata.is_symlink() {
        let target = fs::read_link(path).unwrap_or_default();
        return Err(format!(
            "is a symbolic link to {}: name the file itself. {KUBERNETES}",
            target.display()
        ));
    }
    if !metadata.is_file() {
        return Err("is not a regular file".to_owned());
    }
    if metadata.nlink() > 1 {
        return Err(format!(
            "has {} hard links, of which only this one would get the key: remove the others, or add \
             the key by hand",
            metadata.nlink()
        ));
    }
    // The kubelet keeps the files of a volume in a directory `..<date>` behind a link `..data`,
    // and replaces all of them when the Secret changes.
    let real = fs::canonicalize(path).unwrap_or_default();
    let of_kubelet = |part: Component<'_>| match part {
        Component::Normal(name) => name.as_encoded_bytes().starts_with(b".."),
        _ => false,
    };
    if real.components().any(of_kubelet) {
        return Err(format!(
            "is in a volume that Kubernetes writes, and a change would be lost. {KUBERNETES}"
        ));
    }
    Ok(())
}

fn open_locked(path: &Path) -> Result<(File, Metadata), String> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(|error| format!("cannot be read ({error})"))?;
    // Two concurrent commands must not lose a key. Other errors are ignored, since not every file
    // system has locks.
    if flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
        return Err(raced());
    }
    let metadata = file
        .metadata()
        .map_err(|error| format!("cannot be read ({error})"))?;
    // Another program replaced the file before this one locked it.
    if metadata.nlink() == 0 {
        return Err(raced());
    }
    check_kind(path, &metadata)?;
    Ok((file, metadata))
}

fn read(file: &File, metadata: &Metadata) -> Result<Zeroizing<String>, String> {
    let size = metadata.len();
    if size > MAX_BYTES {
        return Err(format!("is larger than {} MiB", MAX_BYTES >> 20));
    }
    // A buffer that grows would leave copies of keys in memory.
    let capacity = usize::try_from(size).unwrap_or_default() + 1;
    let mut text = Zeroizing::new(String::with_capacity(capacity));
    match file.take(size + 1).read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err("is not UTF-8".to_owned()),
        Err(error) => Err(format!("cannot be read ({error})")),
    }
}

/// The reason why no file can be created in `directory`.
fn explain(directory: &Path, error: &io::Error) -> String {
    let directory = directory.display();
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            format!("{directory} is read-only. {KUBERNETES}")
        }
        io::ErrorKind::PermissionDenied => format!(
            "this user may not make files in {directory}; run the command as a user who may. \
             {KUBERNETES}"
        ),
        io::ErrorKind::NotFound => format!("there is no directory {directory}"),
        _ => format!("no file can be made in {directory} ({error})"),
    }
}

/// Copies extended attributes. Access control lists are mandatory, labels are not.
fn copy_attributes(from: &File, to: &File) -> Result<(), String> {
    let mut names = vec![0; 64 << 10];
    let Ok(length) = flistxattr(from, &mut names[..]) else {
        // The file system has no extended attributes.
        return Ok(());
    };
    let mut value = vec![0; 64 << 10];
    for name in names[..length].split(|byte| *byte == 0) {
        if name.is_empty() {
            continue;
        }
        let copied = fgetxattr(from, name, &mut value[..])
            .and_then(|length| fsetxattr(to, name, &value[..length], XattrFlags::empty()));
        if copied.is_err() && name.starts_with(b"system.") {
            let name = String::from_utf8_lossy(name);
            return Err(format!("its attribute {name} cannot be kept"));
        }
    }
    Ok(())
}

/// A temporary file with mode 0600. Dropping this removes the file unless it was renamed.
struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    fn create(directory: &Path) -> io::Result<Self> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let name = format!(".nico-rewrap-{:016x}", u64::from_ne_bytes(random));
        let path = directory.join(name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(PRIVATE)
            .open(&path)?;
        Ok(Self { path, file })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename, no file has this name.
        let _ = fs::remove_file(&self.path);
    }
}
