//! Memory limits of Linux control groups, both versions: that of the process and of every group above it.

use std::path::{Path, PathBuf};

/// A control group with a limit below the machine's memory.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Group {
    /// 1 or 2.
    pub version: u8,
    /// Its folder.
    pub path: PathBuf,
    /// Memory that its processes may use together.
    pub limit_bytes: u64,
    /// What they use, without file pages that the system would drop to make room.
    pub used_bytes: u64,
}

/// Where a file's content comes from; tests bring their own.
type ReadFile<'a> = &'a dyn Fn(&Path) -> Option<String>;

impl Group {
    /// The group with the least room, of those above this process; `None` where none sets a limit or there are no such groups.
    pub(super) fn tightest(total_bytes: u64) -> Option<Group> {
        tightest(total_bytes, &|path| std::fs::read_to_string(path).ok())
    }

    /// What may still be taken.
    pub fn room_bytes(&self) -> u64 {
        self.limit_bytes.saturating_sub(self.used_bytes)
    }
}

fn tightest(total_bytes: u64, read: ReadFile<'_>) -> Option<Group> {
    let groups = read(Path::new("/proc/self/cgroup"))?;
    let mounts = read(Path::new("/proc/self/mountinfo"))?;
    let all = folders(&groups, &mounts).into_iter().flat_map(|(version, top, own)| {
        let up = own.ancestors().take_while(|path| path.starts_with(&top)).map(Path::to_owned);
        let found: Vec<Group> = up.filter_map(|path| limit(version, path, read)).collect();
        found
    });
    all.filter(|group| group.limit_bytes < total_bytes).min_by_key(Group::room_bytes)
}

/// (version, where the hierarchy is mounted, this process's folder in it).
fn folders(groups: &str, mounts: &str) -> Vec<(u8, PathBuf, PathBuf)> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let version = match controllers {
            "" => 2,
            names if names.split(',').any(|name| name == "memory") => 1,
            _ => continue,
        };
        for mount in mounts.lines().filter_map(|line| mount(line, version)) {
            // In a container the mount may show only a part of the hierarchy, and the path may be relative to that.
            let inside =
                Path::new(path).strip_prefix(&mount.root).or_else(|_| Path::new(path).strip_prefix("/"));
            let own = inside.map_or_else(|_| mount.point.clone(), |inside| mount.point.join(inside));
            found.push((version, mount.point, own));
        }
    }
    found
}

struct Mount {
    /// The part of the hierarchy that is mounted.
    root: PathBuf,
    point: PathBuf,
}

/// A line of mountinfo, if it mounts the memory hierarchy of that version.
fn mount(line: &str, version: u8) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let (root, point) = (before.next()?, before.next()?);
    let mut after = after.split(' ');
    let (kind, options) = (after.next()?, after.nth(1)?);
    let right = match version {
        2 => kind == "cgroup2",
        _ => kind == "cgroup" && options.split(',').any(|option| option == "memory"),
    };
    right.then(|| Mount { root: root.into(), point: point.into() })
}

/// The limit that this folder sets, if any.
fn limit(version: u8, path: PathBuf, read: ReadFile<'_>) -> Option<Group> {
    let number = |name: &str| read(&path.join(name))?.trim().parse::<u64>().ok();
    let (limit, usage, prefix) = match version {
        2 => (number("memory.max")?, number("memory.current")?, ""),
        _ => (number("memory.limit_in_bytes")?, number("memory.usage_in_bytes")?, "total_"),
    };
    let stat = read(&path.join("memory.stat")).unwrap_or_default();
    let file_pages = stat_value(&stat, &format!("{prefix}inactive_file"))
        .saturating_add(stat_value(&stat, &format!("{prefix}active_file")));
    Some(Group { version, path, limit_bytes: limit, used_bytes: usage.saturating_sub(file_pages) })
}

/// The value behind a key of `memory.stat`; 0 without it.
pub(super) fn stat_value(stat: &str, key: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok();
    stat.lines().find_map(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn with(files: &[(&str, &str)]) -> Option<Group> {
        let files: HashMap<PathBuf, String> =
            files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect();
        tightest(64 * GIB, &|path| files.get(path).cloned())
    }

    #[test]
    fn version_1_counts_what_cannot_be_dropped() {
        let group = with(&[
            ("/proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/job\n0::/\n"),
            (
                "/proc/self/mountinfo",
                "34 31 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                 35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n",
            ),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "1\n"),
            ("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "4294967296\n"),
            ("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "3221225472\n"),
            (
                "/sys/fs/cgroup/memory/job/memory.stat",
                "inactive_file 7\ntotal_inactive_file 1073741824\ntotal_active_file 1073741824\n",
            ),
        ]);
        let group = group.expect("the job's limit");
        assert_eq!((group.version, group.limit_bytes, group.used_bytes), (1, 4 * GIB, GIB));
        assert_eq!(group.room_bytes(), 3 * GIB);
    }

    /// The parent is tighter than the group itself: both count.
    #[test]
    fn version_2_asks_every_group_above() {
        let group = with(&[
            ("/proc/self/cgroup", "0::/user/job\n"),
            ("/proc/self/mountinfo", "40 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"),
            ("/sys/fs/cgroup/user/job/memory.max", "8589934592\n"),
            ("/sys/fs/cgroup/user/job/memory.current", "1073741824\n"),
            ("/sys/fs/cgroup/user/memory.max", "6442450944\n"),
            ("/sys/fs/cgroup/user/memory.current", "5368709120\n"),
            ("/sys/fs/cgroup/user/memory.stat", "anon 1\ninactive_file 1073741824\nactive_file 0\n"),
        ]);
        let group = group.expect("two limits");
        assert_eq!(group.path, Path::new("/sys/fs/cgroup/user"));
        assert_eq!(group.room_bytes(), 2 * GIB);
    }

    #[test]
    fn no_limit_is_none() {
        let mounts = "40 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let unlimited = [
            ("/proc/self/cgroup", "0::/\n"),
            ("/proc/self/mountinfo", mounts),
            ("/sys/fs/cgroup/memory.max", "max\n"),
            ("/sys/fs/cgroup/memory.current", "5\n"),
        ];
        assert_eq!(with(&unlimited), None);
        assert_eq!(with(&[]), None);
        let beyond = [("/proc/self/cgroup", "0::/../other\n"), ("/proc/self/mountinfo", mounts)];
        assert_eq!(with(&beyond), None);
    }

    /// A container that sees its own part of the hierarchy at the mount point.
    #[test]
    fn a_mounted_part_is_the_whole() {
        let group = with(&[
            ("/proc/self/cgroup", "4:memory:/docker/abc\n"),
            (
                "/proc/self/mountinfo",
                "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
            ),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n"),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "536870912\n"),
        ]);
        assert_eq!(group.expect("the container's limit").room_bytes(), GIB / 2);
    }
}
