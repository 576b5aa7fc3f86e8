//! What the system allows this process, and what lies under a folder. What cannot be told on a system is absent.

use std::path::{Path, PathBuf};

use engine::memory::Memory;
use serde::Serialize;

/// Limits and settings.
#[derive(Debug, Serialize)]
pub(crate) struct System {
    pub(crate) system: String,
    pub(crate) memory: Memory,
    /// Files that may be open at a time.
    pub(crate) open_files: Option<u64>,
    /// Bytes that may be locked in memory; `u64::MAX` is no limit, as for the superuser.
    pub(crate) locked_bytes: Option<u64>,
    /// Whether memory is given out in huge pages: always, madvise (when asked, as slotbank does) or never.
    pub(crate) huge_pages: Option<String>,
}

impl System {
    pub(crate) fn now() -> System {
        System {
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            memory: Memory::now(),
            open_files: limits::open_files(),
            locked_bytes: limits::locked_bytes(),
            huge_pages: std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
                .ok()
                .and_then(|text| chosen(&text)),
        }
    }
}

/// `always [madvise] never`
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(chosen, _)| chosen.to_owned())
}

#[cfg(unix)]
mod limits {
    use rustix::process::{Resource, getrlimit};

    fn soft(resource: Resource) -> Option<u64> {
        Some(getrlimit(resource).current.unwrap_or(u64::MAX))
    }

    pub(super) fn open_files() -> Option<u64> {
        soft(Resource::Nofile)
    }

    pub(super) fn locked_bytes() -> Option<u64> {
        if rustix::process::geteuid().is_root() { Some(u64::MAX) } else { soft(Resource::Memlock) }
    }
}

#[cfg(not(unix))]
mod limits {
    pub(super) fn open_files() -> Option<u64> {
        None
    }

    pub(super) fn locked_bytes() -> Option<u64> {
        None
    }
}

/// The filesystem under a path.
#[derive(Debug, Serialize)]
pub(crate) struct Filesystem {
    /// Its type, such as ext4.
    pub(crate) kind: Option<String>,
    /// Where it is mounted.
    pub(crate) mounted_at: Option<PathBuf>,
    /// What is mounted there.
    pub(crate) source: Option<String>,
    /// Whether the drive below has platters that turn, as the system sees it.
    pub(crate) rotational: Option<bool>,
    /// Bytes free for this user.
    pub(crate) free_bytes: Option<u64>,
}

impl Filesystem {
    pub(crate) fn of(path: &Path) -> Filesystem {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mount = mount_of(&mounts, &path);
        Filesystem {
            rotational: mount.as_ref().and_then(|mount| rotational(&mount.device)),
            kind: mount.as_ref().map(|mount| mount.kind.clone()),
            source: mount.as_ref().map(|mount| mount.source.clone()),
            mounted_at: mount.map(|mount| mount.point),
            free_bytes: free_bytes(&path),
        }
    }

    /// Whether its files lie in memory.
    pub(crate) fn is_memory(&self) -> bool {
        matches!(self.kind.as_deref(), Some("tmpfs" | "ramfs"))
    }

    /// Whether the bytes come over a network, as far as its type tells.
    pub(crate) fn is_remote(&self) -> bool {
        const REMOTE: [&str; 9] =
            ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs", "fuse.rclone", "virtiofs"];
        self.kind.as_deref().is_some_and(|kind| REMOTE.contains(&kind))
    }
}

#[cfg(unix)]
fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

#[cfg(not(unix))]
fn free_bytes(path: &Path) -> Option<u64> {
    let _ = path;
    None
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// Major and minor number, as `8:1`.
    device: String,
    point: PathBuf,
    kind: String,
    source: String,
}

/// The mount that holds a path: the longest mount point above it, and of equals the last, which hides the others.
fn mount_of(mounts: &str, path: &Path) -> Option<Mount> {
    let parse = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(2);
        let (device, _root, point) = (before.next()?, before.next()?, before.next()?);
        let mut after = after.split(' ');
        let (kind, source) = (after.next()?, after.next()?);
        let (device, kind, source) = (device.to_owned(), kind.to_owned(), unescape(source));
        Some(Mount { device, point: unescape(point).into(), kind, source })
    };
    let above = mounts.lines().filter_map(parse).filter(|mount| path.starts_with(&mount.point));
    above.max_by_key(|mount| mount.point.components().count())
}

/// Blanks and the like are written as three octal digits.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out + rest
}

/// A partition's queue is that of its drive, one folder up.
fn rotational(device: &str) -> Option<bool> {
    let folder = Path::new("/sys/dev/block").join(device);
    let read = |queue: &str| std::fs::read_to_string(folder.join(queue)).ok();
    let text = read("queue/rotational").or_else(|| read("../queue/rotational"))?;
    Some(text.trim() == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_counts_and_the_last_of_equals() {
        let mounts = "6 1 254:0 / / rw - ext4 /dev/vda rw\n\
                      7 6 8:1 / /data rw - xfs /dev/sda1 rw\n\
                      8 6 0:25 / /data/my\\040models rw shared:1 - nfs4 host:/x rw\n\
                      9 6 8:2 / /data rw - btrfs /dev/sdb rw\n";
        let of = |path: &str| mount_of(mounts, Path::new(path)).expect("a mount");
        assert_eq!(of("/home/x").kind, "ext4");
        assert_eq!(of("/data/file").kind, "btrfs");
        assert_eq!((of("/data/my models/m").kind, of("/database").kind), ("nfs4".into(), "ext4".into()));
        assert_eq!(of("/data/file").device, "8:2");
        assert_eq!(mount_of("nonsense\n", Path::new("/")), None);
    }

    #[test]
    fn settings_are_read_from_brackets() {
        assert_eq!(chosen("always [madvise] never\n").as_deref(), Some("madvise"));
        assert_eq!(chosen("always"), None);
        assert_eq!(unescape("a\\040b\\x"), "a b\\x");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_can_be_asked() {
        let system = System::now();
        assert!(
            system.memory.available_bytes > 0 && system.memory.available_bytes <= system.memory.total_bytes
        );
        assert!(system.open_files.is_some_and(|n| n > 2));
        let here = Filesystem::of(Path::new("."));
        assert!(here.kind.is_some() && here.free_bytes.is_some());
        if Path::new("/dev/shm").is_dir()
            && Filesystem::of(Path::new("/dev/shm")).kind.as_deref() == Some("tmpfs")
        {
            assert!(Filesystem::of(Path::new("/dev/shm")).is_memory());
        }
    }
}
