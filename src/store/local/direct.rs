//! Writes large new files past the page cache.
//!
//! Owns direct I/O, and must not know what a file is for. The callers cache what they still need. A second
//! copy in the page cache would take time to make and would evict the data of others. Invariant: if the file
//! system does not accept direct writes, or not with this alignment, the same bytes are written through the
//! page cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::OFlags;

use crate::buffers::Buffers;

/// Minimum size in bytes of an object that is written this way.
pub(super) const LEAST_BYTES: usize = 1 << 20;
/// Required alignment of memory, offset and length in bytes. No file system in use requires more.
const ALIGNMENT: usize = 4096;
/// Size of one write in bytes.
const SLICE_BYTES: usize = 1 << 20;

/// Writes the whole content of a file that is still empty.
pub(super) fn write_all(file: &File, body: &[u8], buffers: &Arc<Buffers>) -> io::Result<()> {
    let written = if body.len() >= LEAST_BYTES { write_direct(file, body, buffers)? } else { 0 };
    file.write_all_at(&body[written..], written as u64)
}

/// Writes as many whole blocks as possible, and returns how many bytes these were.
fn write_direct(file: &File, body: &[u8], buffers: &Arc<Buffers>) -> io::Result<usize> {
    let mut memory = buffers.take_filled(SLICE_BYTES + ALIGNMENT);
    let written = write_slices(file, body, &mut memory);
    drop(buffers.lend(memory));
    written
}

/// Writes whole blocks by way of `memory`, which has room for a slice and its alignment.
fn write_slices(file: &File, body: &[u8], memory: &mut [u8]) -> io::Result<usize> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    if rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT).is_err() {
        return Ok(0);
    }
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    let slice = &mut memory[start..start + SLICE_BYTES];
    let (blocks, _) = body.split_at(body.len() / ALIGNMENT * ALIGNMENT);
    let mut written = 0;
    for part in blocks.chunks(SLICE_BYTES) {
        let slice = &mut slice[..part.len()];
        slice.copy_from_slice(part);
        match file.write_at(slice, written as u64) {
            // After a short write, the offset is not aligned for another direct write.
            Ok(length) if length == part.len() => written += length,
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
            Err(error) => return Err(error),
        }
    }
    rustix::fs::fcntl_setfl(file, flags)?;
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_any_length_has_the_written_content() {
        let directory = tempfile::tempdir().unwrap();
        let buffers = Buffers::new(4 << 20);
        let lengths =
            [0, 1, LEAST_BYTES - 1, LEAST_BYTES, LEAST_BYTES + 1, (3 << 20) + 4096, (5 << 20) + 777];
        for length in lengths {
            let body: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let path = directory.path().join(length.to_string());
            write_all(&File::create(&path).unwrap(), &body, &buffers).unwrap();
            assert!(std::fs::read(&path).unwrap() == body, "{length} bytes");
        }
    }
}
