//! Determines which bytes a disk consists of, so that no disk is copied onto itself.
//!
//! Owns the comparison of disks, and must not open them. A file is identified by its device and inode. A
//! block device is identified by its number, and lies on other devices: a partition on its disk, a loop
//! device on its file, a mapped device on its slaves (`/sys/dev/block`). An export is identified by the
//! address of its server and its name. `cairn nbd serve` also publishes the identity of its disk in the
//! description of the export, so that the same file is recognised through any address. Invariant: what cannot
//! be determined is no reason to refuse.

use std::fmt;
use std::fs::Metadata;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use rustix::fs::{major, makedev, minor};
use xxhash_rust::xxh3::xxh3_64;

use crate::client::Address;

/// Precedes an identity in the description of an export.
const PREFIX: &str = "cairn nbd serve ";
/// Where Linux describes block devices.
const DEVICES: &str = "/sys/dev/block";
/// Maximum depth of devices that lie on one another.
const MAXIMUM_DEPTH: usize = 8;
/// Maximum number of files and devices that are examined below one device.
const MAXIMUM_LAYERS: usize = 16;
/// The unit in which Linux reports the position of partitions, in bytes.
const SECTOR_BYTES: u64 = 512;

const EVERYTHING: Range<u64> = 0..u64::MAX;

/// The bytes of a disk: those of the disk itself, and of everything that it lies on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity(Vec<Layer>);

/// A range of bytes of a file, a device or an export.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layer {
    /// Hash that identifies the file, device or export.
    of: u64,
    range: Range<u64>,
    /// Whether the disk covers the whole range, and not only some part of it.
    exact: bool,
}

impl Layer {
    fn overlaps(&self, other: &Self) -> bool {
        self.of == other.of
            && (self.exact || other.exact)
            && self.range.start < other.range.end
            && other.range.start < self.range.end
    }
}

impl Identity {
    /// Returns the identity of a file or block device.
    pub(super) fn of_file(metadata: &Metadata) -> Self {
        let mut layers = Vec::new();
        if metadata.file_type().is_block_device() {
            add_device(Path::new(DEVICES), metadata.rdev(), EVERYTHING, true, MAXIMUM_DEPTH, &mut layers);
        } else {
            layers.push(Layer { of: file(metadata), range: EVERYTHING, exact: true });
        }
        Self(layers)
    }

    /// Returns the identity of an export, from the address of its server, its name and its description.
    pub(super) fn of_export(
        address: &Address,
        peer: Option<SocketAddr>,
        name: &str,
        description: &str,
    ) -> Self {
        let server = match (address, peer) {
            (Address::Unix(path), _) => std::fs::metadata(path)
                .map_or_else(|_| path.display().to_string(), |it| file(&it).to_string()),
            (Address::Tcp { .. }, Some(peer)) => {
                let ip = peer.ip().to_canonical();
                let ip = if ip == std::net::Ipv6Addr::LOCALHOST {
                    std::net::Ipv4Addr::LOCALHOST.into()
                } else {
                    ip
                };
                format!("{ip} {}", peer.port())
            }
            (Address::Tcp { host, port }, None) => format!("{host} {port}"),
        };
        let of = xxh3_64(format!("export {server} {name}").as_bytes());
        let mut layers = vec![Layer { of, range: EVERYTHING, exact: true }];
        layers.extend(told(description));
        Self(layers)
    }

    /// Returns the identity of both disks together.
    pub(super) fn and(&self, other: &Self) -> Self {
        Self(self.0.iter().chain(&other.0).cloned().collect())
    }

    /// Returns whether both disks share bytes.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|layer| other.0.iter().any(|theirs| layer.overlaps(theirs)))
    }
}

/// The form in which an identity appears in the description of an export.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        let exact = self.0.iter().filter(|layer| layer.exact).take(MAXIMUM_LAYERS);
        for (number, Layer { of, range, .. }) in exact.enumerate() {
            let separator = if number == 0 { "" } else { "," };
            write!(f, "{separator}{of:016x}")?;
            if *range != EVERYTHING {
                write!(f, "@{}-{}", range.start, range.end)?;
            }
        }
        Ok(())
    }
}

/// Parses the identity in the description of an export.
fn told(description: &str) -> Vec<Layer> {
    let Some((_, told)) = description.rsplit_once(PREFIX) else { return Vec::new() };
    let layer = |text: &str| {
        let (of, range) = text.split_once('@').map_or((text, None), |(of, range)| (of, Some(range)));
        let range = match range {
            None => EVERYTHING,
            Some(range) => {
                let (start, end) = range.split_once('-')?;
                start.parse().ok()?..end.parse().ok()?
            }
        };
        Some(Layer { of: u64::from_str_radix(of, 16).ok()?, range, exact: true })
    };
    told.split(',').take(2 * MAXIMUM_LAYERS).filter_map(layer).collect()
}

fn file(metadata: &Metadata) -> u64 {
    this_machine(&format!("file {} {}", metadata.dev(), metadata.ino()))
}

/// Returns a hash that identifies something on this machine, until the machine is rebooted.
fn this_machine(name: &str) -> u64 {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    xxh3_64(format!("{} {name}", boot.trim()).as_bytes())
}

/// Adds a range of a device, and everything that the range lies on.
fn add_device(
    devices: &Path,
    number: u64,
    range: Range<u64>,
    exact: bool,
    depth: usize,
    layers: &mut Vec<Layer>,
) {
    let of = this_machine(&format!("device {number}"));
    layers.push(Layer { of, range: range.clone(), exact });
    if depth == 0 || layers.len() >= MAXIMUM_LAYERS {
        return;
    }
    let directory = devices.join(format!("{}:{}", major(number), minor(number)));
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).ok();
    let bytes = |name: &str, unit: u64| {
        read(name).and_then(|text| text.trim().parse::<u64>().ok()).and_then(|found| found.checked_mul(unit))
    };
    let part_of = |start: u64, length: Option<u64>| {
        let end = length.and_then(|length| start.checked_add(length)).unwrap_or(u64::MAX);
        start.saturating_add(range.start)..range.end.saturating_add(start).min(end)
    };
    if let (Some(_), Some(start)) = (read("partition"), bytes("start", SECTOR_BYTES)) {
        let whole = directory.canonicalize().ok().and_then(|at| device_number(at.parent()?));
        if let Some(whole) = whole {
            let part = part_of(start, bytes("size", SECTOR_BYTES));
            add_device(devices, whole, part, exact, depth - 1, layers);
        }
    }
    if let Some(path) = read("loop/backing_file")
        && let Ok(backing) = std::fs::metadata(path.trim_end_matches('\n'))
    {
        let length = bytes("loop/sizelimit", 1).filter(|limit| *limit != 0);
        let part = part_of(bytes("loop/offset", 1).unwrap_or(0), length);
        if backing.file_type().is_block_device() {
            add_device(devices, backing.rdev(), part, exact, depth - 1, layers);
        } else {
            layers.push(Layer { of: file(&backing), range: part, exact });
        }
    }
    let slaves = std::fs::read_dir(directory.join("slaves")).into_iter().flatten().flatten();
    for slave in slaves.filter_map(|slave| device_number(&slave.path())) {
        // The system does not report which part of the slave is used.
        add_device(devices, slave, EVERYTHING, false, depth - 1, layers);
    }
}

/// Returns the number of the device that a directory of `/sys` describes.
fn device_number(directory: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(directory.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates files like those in `/sys`.
    fn write(root: &Path, files: &[(&str, &str)]) {
        for (path, content) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
    }

    /// A disk (8:0) with two partitions (8:1, 8:2). Two mapped devices (253:0, 253:1) lie on the second
    /// partition.
    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                ("sda/dev", "8:0\n"),
                ("sda/sda1/dev", "8:1\n"),
                ("sda/sda1/partition", "1\n"),
                ("sda/sda1/start", "2048\n"),
                ("sda/sda1/size", "4096\n"),
                ("sda/sda2/dev", "8:2\n"),
                ("sda/sda2/partition", "2\n"),
                ("sda/sda2/start", "6144\n"),
                ("sda/sda2/size", "8192\n"),
                ("dm-0/dev", "253:0\n"),
                ("dm-1/dev", "253:1\n"),
            ],
        );
        let link = |to: &str, at: &str| {
            let at = root.path().join(at);
            std::fs::create_dir_all(at.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(root.path().join(to), at).unwrap();
        };
        for mapped in ["dm-0", "dm-1"] {
            link("sda/sda2", &format!("{mapped}/slaves/sda2"));
        }
        for (to, number) in
            [("sda", "8:0"), ("sda/sda1", "8:1"), ("sda/sda2", "8:2"), ("dm-0", "253:0"), ("dm-1", "253:1")]
        {
            link(to, &format!("block/{number}"));
        }
        root
    }

    fn device(root: &Path, major: u32, minor: u32) -> Identity {
        let mut layers = Vec::new();
        let number = makedev(major, minor);
        add_device(&root.join("block"), number, EVERYTHING, true, MAXIMUM_DEPTH, &mut layers);
        Identity(layers)
    }

    #[test]
    fn a_partition_overlaps_its_disk_and_no_other_partition() {
        let root = machine();
        let [disk, one, two] = [0, 1, 2].map(|minor| device(root.path(), 8, minor));
        for (this, that, expected) in
            [(&disk, &disk, true), (&disk, &one, true), (&two, &disk, true), (&one, &two, false)]
        {
            assert_eq!(this.overlaps(that), expected, "{this:?} {that:?}");
            assert_eq!(that.overlaps(this), expected, "{that:?} {this:?}");
        }
    }

    #[test]
    fn a_mapped_device_overlaps_its_slaves_and_no_other_mapped_device() {
        let root = machine();
        let [disk, one, two] = [0, 1, 2].map(|minor| device(root.path(), 8, minor));
        let [first, second] = [0, 1].map(|minor| device(root.path(), 253, minor));
        assert!(first.overlaps(&two) && two.overlaps(&first) && first.overlaps(&disk));
        assert!(!first.overlaps(&second) && !first.overlaps(&one));
        assert!(first.overlaps(&first));
    }

    #[test]
    fn the_file_of_a_server_is_recognised_by_its_description() {
        let root = machine();
        let [disk, one, two] = [0, 1, 2].map(|minor| device(root.path(), 8, minor));
        let address = Address::Tcp { host: "host".to_owned(), port: 1 };
        let served = |description: &str| {
            Identity::of_export(&address, None, "disk", &format!("scratch, {description}"))
        };
        let serves_one = served(&one.to_string());
        assert!(serves_one.overlaps(&one) && serves_one.overlaps(&disk));
        assert!(!serves_one.overlaps(&two));
        for nonsense in ["", "cairn nbd serve ", "cairn nbd serve x,@,1@2,3@4-z", "nbdkit"] {
            assert_eq!(served(nonsense).0.len(), 1, "{nonsense:?}");
        }
    }

    #[test]
    fn the_same_export_is_recognised_by_address_and_name() {
        let at = |host: &str, peer: &str, name: &str| {
            let address = Address::Tcp { host: host.to_owned(), port: 10809 };
            Identity::of_export(&address, Some(peer.parse().unwrap()), name, "")
        };
        let one = at("localhost", "127.0.0.1:10809", "disk");
        assert!(one.overlaps(&at("127.0.0.1", "[::ffff:127.0.0.1]:10809", "disk")));
        assert!(one.overlaps(&at("::1", "[::1]:10809", "disk")));
        assert!(!one.overlaps(&at("localhost", "127.0.0.1:10809", "other")));
        assert!(!one.overlaps(&at("localhost", "127.0.0.1:10810", "disk")));
    }
}
