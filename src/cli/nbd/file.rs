//! A regular file or a block device as an export.
//!
//! Owns the system calls on the file, and must not know who uses the export. The file system reports holes,
//! and holes are created by punching them. A block device only punches whole blocks, so parts of blocks are
//! written. Invariant: FLUSH is fdatasync. What the file system does not support is done by writing zeros, or
//! refused; success is never pretended.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, ioctl_blkpbszget, ioctl_blksszget, seek};
use rustix::io::Errno;

use super::identity::Identity;
use crate::cli::error::NbdError;
use crate::effect::{Durability, ZeroSpeed, Zeroing};
use crate::protocol::{Error, TransmissionFlags};
use crate::server::{Alignment, Allocation, Export, ExportDescription, ExportError, Segment};
use crate::task::Tasks;

/// Number of zero bytes that are written at a time.
const ZEROS_BYTES: u64 = 1 << 20;
/// Maximum payload in bytes.
const MAXIMUM_BLOCK_BYTES: u32 = 32 << 20;
/// Largest minimum block size that the protocol allows, in bytes.
const LARGEST_MINIMUM_BYTES: u32 = 1 << 16;

/// An open file or block device.
#[derive(Debug)]
pub(in crate::cli) struct FileExport {
    file: Arc<File>,
    name: String,
    size_bytes: u64,
    read_only: bool,
    block: BlockBytes,
    identity: Identity,
    tasks: Tasks,
}

/// Block sizes in bytes. Both are powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BlockBytes {
    /// The unit in which the system frees and zeroes.
    minimum: u32,
    preferred: u32,
}

impl BlockBytes {
    /// A file system accepts any range.
    const FILE: Self = Self { minimum: 1, preferred: 4096 };

    fn of_device(device: &File, size_bytes: u64) -> io::Result<Self> {
        let (logical, physical) = (ioctl_blksszget(device)?, ioctl_blkpbszget(device)?);
        Ok(Self::of_sectors(logical, physical, size_bytes))
    }

    /// Derives the block sizes from the sectors. The minimum is the logical sector. "The advertised export
    /// size SHOULD be an integer multiple of that block size."
    fn of_sectors(logical: u32, physical: u32, size_bytes: u64) -> Self {
        let mut minimum = if logical.is_power_of_two() { logical.min(LARGEST_MINIMUM_BYTES) } else { 1 };
        while !size_bytes.is_multiple_of(u64::from(minimum)) {
            minimum /= 2;
        }
        let physical = if physical.is_power_of_two() { physical.min(MAXIMUM_BLOCK_BYTES) } else { 1 };
        Self { minimum, preferred: Self::FILE.preferred.max(minimum).max(physical) }
    }
}

impl FileExport {
    /// Opens an existing file. It is read-only if it may not be written, or if `read_only` says so.
    pub(super) fn open(path: &Path, name: &str, read_only: bool) -> io::Result<Self> {
        check_kind(&std::fs::metadata(path)?)?;
        let for_writing = || OpenOptions::new().read(true).write(true).open(path);
        let (file, read_only) = match if read_only { File::open(path) } else { for_writing() } {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                (File::open(path)?, true)
            }
            opened => (opened?, read_only),
        };
        Self::of(file, name, read_only)
    }

    /// Creates a file, or sets its size; existing content up to that size stays. A block device is used as it
    /// is.
    pub(in crate::cli) fn create(path: &Path, size_bytes: u64) -> io::Result<Self> {
        match std::fs::metadata(path) {
            Ok(found) => check_kind(&found)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        if file.metadata()?.is_file() {
            file.set_len(size_bytes)?;
        }
        Self::of(file, "", false)
    }

    fn of(file: File, name: &str, read_only: bool) -> io::Result<Self> {
        let metadata = file.metadata()?;
        check_kind(&metadata)?;
        let size_bytes = seek(&file, SeekFrom::End(0))?;
        let block = match metadata.file_type().is_block_device() {
            true => BlockBytes::of_device(&file, size_bytes)?,
            false => BlockBytes::FILE,
        };
        Ok(Self {
            file: Arc::new(file),
            name: name.to_owned(),
            size_bytes,
            read_only,
            block,
            identity: Identity::of_file(&metadata),
            tasks: Tasks::new(),
        })
    }

    /// Returns which bytes the file consists of.
    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
    ) -> Result<T, ExportError> {
        let file = Arc::clone(&self.file);
        match self.tasks.spawn_blocking(move || work(&file)).await {
            Ok(done) => done.map_err(|error| failed(&error)),
            Err(_) => Err(failed(&io::Error::other("the file was truncated"))),
        }
    }
}

/// Checked before the file is opened, because opening a pipe may wait forever for its other end.
fn check_kind(metadata: &Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a file nor a block device"))
}

/// Converts an error of the system into one for clients.
fn failed(error: &io::Error) -> ExportError {
    let value = match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => Error::NoSpc,
        Some(Errno::PERM | Errno::ACCESS | Errno::ROFS) => Error::Perm,
        Some(Errno::NOMEM) => Error::NoMem,
        Some(Errno::OPNOTSUPP) => Error::NotSup,
        _ => Error::Io,
    };
    ExportError::new(value, error.to_string())
}

/// Returns the whole blocks in a range, or `None` if there are none.
fn whole_blocks(range: &Range<u64>, block_bytes: u32) -> Option<Range<u64>> {
    let unit = u64::from(block_bytes);
    let blocks = range.start.checked_next_multiple_of(unit)?..range.end - range.end % unit;
    (blocks.start < blocks.end).then_some(blocks)
}

/// Makes what was written durable, if the command asks for it.
fn settle(file: &File, durability: Durability) -> io::Result<()> {
    match durability {
        Durability::Durable => file.sync_data(),
        Durability::Volatile => Ok(()),
    }
}

/// Zeroes a range of whole blocks.
fn zero_blocks(file: &File, range: &Range<u64>, zeroing: Zeroing) -> Result<(), Errno> {
    let flags = match zeroing {
        Zeroing::Deallocate => FallocateFlags::PUNCH_HOLE,
        Zeroing::Allocate => FallocateFlags::ZERO_RANGE,
    };
    fallocate(file, flags | FallocateFlags::KEEP_SIZE, range.start, range.end - range.start)
}

/// Zeroes a range. At any speed, writes the zeros if the system has no other way. Parts of blocks are always
/// written; the system reads and writes the block around them.
fn zero(
    file: &File,
    range: Range<u64>,
    block_bytes: u32,
    zeroing: Zeroing,
    speed: ZeroSpeed,
) -> io::Result<()> {
    let Some(blocks) = whole_blocks(&range, block_bytes) else { return write_zeros(file, range) };
    match zero_blocks(file, &blocks, zeroing) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) if speed == ZeroSpeed::Any => return write_zeros(file, range),
        done => done?,
    }
    write_zeros(file, range.start..blocks.start)?;
    write_zeros(file, blocks.end..range.end)
}

fn write_zeros(file: &File, range: Range<u64>) -> io::Result<()> {
    let (offset, length) = (range.start, range.end - range.start);
    let zeros = vec![0; usize::try_from(length.min(ZEROS_BYTES)).expect("at most a MiB")];
    let mut at = offset;
    while at < offset + length {
        let piece = usize::try_from((offset + length - at).min(ZEROS_BYTES)).expect("at most a MiB");
        file.write_all_at(&zeros[..piece], at)?;
        at += u64::try_from(piece).expect("a usize fits 64 bits");
    }
    Ok(())
}

/// Returns where the next hole or data begins, but at most `end`. `None` if the file system does not report
/// it.
fn next(file: &File, from: SeekFrom, end: u64) -> io::Result<Option<u64>> {
    match seek(file, from) {
        Ok(at) => Ok(Some(at.min(end))),
        // There is no more data.
        Err(Errno::NXIO) => Ok(Some(end)),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn extents(file: &File, offset: u64, length: u64, limit: usize) -> io::Result<Vec<Allocation>> {
    let end = offset + length;
    let mut extents = Vec::new();
    let mut at = offset;
    while at < end && extents.len() < limit {
        let data = next(file, SeekFrom::Data(at), end)?.unwrap_or(at);
        let hole = data > at;
        let until = if hole { data } else { next(file, SeekFrom::Hole(at), end)?.unwrap_or(end) };
        // If the file shrank in the meantime, there is no data where it used to be.
        let until = if until > at { until } else { end };
        extents.push(Allocation { length_bytes: until - at, hole, zero: hole });
        at = until;
    }
    Ok(extents)
}

#[async_trait]
impl Export for FileExport {
    fn description(&self) -> ExportDescription {
        use TransmissionFlags as Flags;
        let mut flags = Flags::SEND_FLUSH | Flags::SEND_FUA | Flags::SEND_TRIM | Flags::SEND_WRITE_ZEROES;
        flags |= Flags::SEND_FAST_ZERO | Flags::SEND_CACHE | Flags::CAN_MULTI_CONN;
        flags.set(Flags::READ_ONLY, self.read_only);
        ExportDescription {
            name: self.name.clone(),
            description: self.identity.to_string(),
            size_bytes: self.size_bytes,
            flags,
            minimum_block_bytes: self.block.minimum,
            preferred_block_bytes: self.block.preferred,
            maximum_block_bytes: MAXIMUM_BLOCK_BYTES,
        }
    }

    fn alignment(&self) -> Alignment {
        Alignment::Preferred
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Segment>, ExportError> {
        let read = move |file: &File| {
            let mut data = vec![0; usize::try_from(length).expect("32 bits fit a usize")];
            file.read_exact_at(&mut data, offset)?;
            Ok(vec![Segment::Data(data.into())])
        };
        self.work(read).await
    }

    async fn write(&self, offset: u64, data: Bytes, durability: Durability) -> Result<(), ExportError> {
        let write = move |file: &File| {
            file.write_all_at(&data, offset)?;
            settle(file, durability)
        };
        self.work(write).await
    }

    async fn flush(&self) -> Result<(), ExportError> {
        self.work(File::sync_data).await
    }

    async fn trim(&self, offset: u64, length: u64, durability: Durability) -> Result<(), ExportError> {
        let block_bytes = self.block.minimum;
        let trim = move |file: &File| {
            // Parts of blocks are left as they are: TRIM is only advice.
            if let Some(blocks) = whole_blocks(&(offset..offset + length), block_bytes) {
                match zero_blocks(file, &blocks, Zeroing::Deallocate) {
                    // Some file systems do not support it.
                    Err(Errno::OPNOTSUPP) => return Ok(()),
                    done => done?,
                }
            }
            settle(file, durability)
        };
        self.work(trim).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        zeroing: Zeroing,
        speed: ZeroSpeed,
        durability: Durability,
    ) -> Result<(), ExportError> {
        let block_bytes = self.block.minimum;
        let write_zeroes = move |file: &File| {
            zero(file, offset..offset + length, block_bytes, zeroing, speed)?;
            settle(file, durability)
        };
        self.work(write_zeroes).await
    }

    async fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        let advise = move |file: &File| {
            let length = std::num::NonZeroU64::new(length);
            Ok(rustix::fs::fadvise(file, offset, length, rustix::fs::Advice::WillNeed)?)
        };
        self.work(advise).await
    }

    async fn block_status(
        &self,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> Result<Vec<Allocation>, ExportError> {
        self.work(move |file| extents(file, offset, length, limit)).await
    }
}

/// Adds the path of a file to the error of opening it.
pub(super) fn named<T>(path: &Path, opened: io::Result<T>) -> Result<T, NbdError> {
    opened.map_err(|source| NbdError::File { path: PathBuf::from(path), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn found(extents: &[Allocation]) -> Vec<(u64, bool)> {
        extents.iter().map(|it| (it.length_bytes, it.hole && it.zero)).collect()
    }

    #[tokio::test]
    async fn holes_are_reported_punched_and_filled() {
        let directory = tempfile::tempdir().unwrap();
        let file = FileExport::create(&directory.path().join("image"), 4 * MIB).unwrap();
        assert_eq!(found(&file.block_status(0, 4 * MIB, 9).await.unwrap()), [(4 * MIB, true)]);
        file.write(MIB, vec![7; 1 << 20].into(), Durability::Durable).await.unwrap();
        let whole = [(MIB, true), (MIB, false), (2 * MIB, true)];
        assert_eq!(found(&file.block_status(0, 4 * MIB, 9).await.unwrap()), whole);
        assert_eq!(found(&file.block_status(0, 4 * MIB, 2).await.unwrap()), whole[..2]);
        assert_eq!(found(&file.block_status(MIB + 4096, 8192, 9).await.unwrap()), [(8192, false)]);
        let hole = file.write_zeroes(MIB, MIB, Zeroing::Deallocate, ZeroSpeed::Fast, Durability::Volatile);
        hole.await.unwrap();
        assert_eq!(found(&file.block_status(0, 4 * MIB, 9).await.unwrap()), [(4 * MIB, true)]);
        let zero = file.write_zeroes(0, 1, Zeroing::Allocate, ZeroSpeed::Any, Durability::Durable);
        zero.await.unwrap();
        file.cache(0, MIB).await.unwrap();
        file.flush().await.unwrap();
        assert_eq!(file.read(0, 3).await.unwrap(), [Segment::Data(Bytes::from_static(&[0; 3]))]);
    }

    #[tokio::test]
    async fn a_file_that_may_not_be_written_is_read_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, "0123456789").unwrap();
        let file = FileExport::open(&path, "x", true).unwrap();
        let told = file.description();
        assert_eq!((told.size_bytes, told.name.as_str()), (10, "x"));
        assert!(told.flags.contains(TransmissionFlags::READ_ONLY));
        assert!(file.write(0, Bytes::from_static(b"x"), Durability::Volatile).await.is_err());
        assert!(
            !FileExport::open(&path, "x", false)
                .unwrap()
                .description()
                .flags
                .contains(TransmissionFlags::READ_ONLY)
        );
    }

    #[test]
    fn block_sizes_are_those_of_the_device() {
        let of = |logical, physical, size| {
            let BlockBytes { minimum, preferred } = BlockBytes::of_sectors(logical, physical, size);
            (minimum, preferred)
        };
        assert_eq!(of(512, 512, 1 << 30), (512, 4096));
        assert_eq!(of(512, 4096, 1 << 30), (512, 4096));
        assert_eq!(of(4096, 4096, 1 << 30), (4096, 4096));
        assert_eq!(of(4096, 16_384, 1 << 30), (4096, 16_384));
        // The sector size does not divide this size.
        assert_eq!(of(4096, 4096, (1 << 30) + 512), (512, 4096));
        assert_eq!(of(1 << 17, 1 << 17, 1 << 30), (1 << 16, 1 << 17));
    }

    #[test]
    fn whole_blocks_are_those_within_the_range() {
        assert_eq!(whole_blocks(&(0..8192), 4096), Some(0..8192));
        assert_eq!(whole_blocks(&(1..8191), 4096), None);
        assert_eq!(whole_blocks(&(1..8192), 4096), Some(4096..8192));
        assert_eq!(whole_blocks(&(512..12_800), 4096), Some(4096..12_288));
        assert_eq!(whole_blocks(&(7..9), 1), Some(7..9));
    }

    #[tokio::test]
    async fn the_target_of_a_copy_keeps_its_content_until_it_is_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, "0123456789").unwrap();
        let file = FileExport::create(&path, 4).unwrap();
        assert_eq!(file.read(0, 4).await.unwrap(), [Segment::Data(Bytes::from_static(b"0123"))]);
        assert_eq!(std::fs::read(&path).unwrap(), b"0123");
    }

    #[test]
    fn only_files_and_block_devices_are_disks() {
        assert_eq!(
            FileExport::open(Path::new("/dev/null"), "", false).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        assert_eq!(
            FileExport::open(Path::new("/none"), "", false).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
