//! A small fsx: random operations on one file, against a model of it, with a sync now and then.
//!
//! The operations are a function of the seed, so that the file of before a power cut is known from the number of the last
//! sync that was answered. What came after that sync may be there or not, each byte by itself; what was before it, is.
//! This test is also the program that the workload's scripts run: `FSX_DIRECTORY` is where, `FSX_SEED` which operations,
//! and with `FSX_ANSWERED` the file is checked, not written.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use rustix::fs::FallocateFlags;

/// Most bytes of the file.
const SIZE: usize = 256 << 10;
/// Most bytes of one operation.
const LENGTH: usize = 32 << 10;
/// Syncs that may have begun since the last that was heard of.
const UNHEARD: usize = 3;

#[derive(Debug)]
enum Operation {
    Write(usize, Vec<u8>),
    Truncate(usize),
    Punch(Range<usize>),
    Read(Range<usize>),
    Sync { data_only: bool },
}

/// The file as it should be, after some operations.
struct Model {
    random: SmallRng,
    bytes: Vec<u8>,
    operations: u64,
}

impl Model {
    fn new(seed: u64) -> Self {
        Self { random: SmallRng::seed_from_u64(seed), bytes: Vec::new(), operations: 0 }
    }

    fn range(&mut self, end: usize) -> Range<usize> {
        let start = self.random.random_range(0..end);
        start..(start + self.random.random_range(1..=LENGTH)).min(end)
    }

    /// Draws the next operation and does it.
    fn step(&mut self) -> Operation {
        let size = self.bytes.len();
        self.operations += 1;
        let operation = match self.random.random_range(0..100) {
            0..50 => {
                let range = self.range(SIZE);
                let mut data = vec![0; range.len()];
                self.random.fill_bytes(&mut data);
                Operation::Write(range.start, data)
            }
            50..60 => Operation::Truncate(self.random.random_range(0..SIZE)),
            60..68 if size > 0 => Operation::Punch(self.range(size)),
            68..85 if size > 0 => Operation::Read(self.range(size)),
            _ => Operation::Sync { data_only: self.random.random() },
        };
        match &operation {
            Operation::Write(offset, data) => {
                let end = offset + data.len();
                self.bytes.resize(size.max(end), 0);
                self.bytes[*offset..end].copy_from_slice(data);
            }
            Operation::Truncate(size) => self.bytes.resize(*size, 0),
            Operation::Punch(range) => self.bytes[range.clone()].fill(0),
            Operation::Read(_) | Operation::Sync { .. } => {}
        }
        operation
    }

    /// Does an operation to the file; `true` for a sync.
    fn perform(&self, file: &File, operation: &Operation) -> bool {
        match operation {
            Operation::Write(offset, data) => file.write_all_at(data, *offset as u64).unwrap(),
            Operation::Truncate(size) => file.set_len(*size as u64).unwrap(),
            Operation::Punch(range) => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(file, flags, range.start as u64, range.len() as u64).unwrap();
            }
            Operation::Read(range) => {
                let mut found = vec![0; range.len()];
                file.read_exact_at(&mut found, range.start as u64).unwrap();
                assert!(
                    found == self.bytes[range.clone()],
                    "operation {}: {range:?} differs",
                    self.operations
                );
            }
            Operation::Sync { data_only: true } => file.sync_data().unwrap(),
            Operation::Sync { data_only: false } => file.sync_all().unwrap(),
        }
        matches!(operation, Operation::Sync { .. })
    }
}

/// Does so many operations; gives the number of the last sync.
fn exercise(directory: &Path, seed: u64, count: u64) -> u64 {
    let (mut model, mut synced) = (Model::new(seed), 0);
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).open(directory.join("file")).unwrap();
    File::open(directory).unwrap().sync_all().unwrap();
    while model.operations < count {
        let operation = model.step();
        if model.perform(&file, &operation) {
            synced = model.operations;
            println!("vm: answered {synced}.");
        }
    }
    synced
}

/// Whether the file may be what a power cut left after a sync was answered.
fn check(found: &[u8], seed: u64, answered: u64) -> Result<(), String> {
    let (mut model, mut syncs) = (Model::new(seed), 0);
    while model.operations < answered {
        model.step();
    }
    let mut states = vec![model.bytes.clone()];
    while syncs < UNHEARD {
        syncs += usize::from(matches!(model.step(), Operation::Sync { .. }));
        states.push(model.bytes.clone());
    }
    let sizes = states.iter().map(Vec::len);
    let sizes = sizes.clone().min().unwrap_or(0)..=sizes.max().unwrap_or(0);
    if !sizes.contains(&found.len()) {
        return Err(format!("after operation {answered} there are {} bytes, not {sizes:?}", found.len()));
    }
    for (at, byte) in found.iter().enumerate() {
        // Whatever is not in the file at some time is zeros when it comes into it.
        let fits = |state: &Vec<u8>| state.get(at).unwrap_or(&0) == byte;
        if !states.iter().any(fits) {
            return Err(format!("after operation {answered} of seed {seed} byte {at} is {byte}"));
        }
    }
    Ok(())
}

#[test]
fn a_file_does_as_its_model() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let seed = number("FSX_SEED").unwrap_or(1);
    match (std::env::var_os("FSX_DIRECTORY"), number("FSX_ANSWERED")) {
        (Some(directory), None) => drop(exercise(directory.as_ref(), seed, u64::MAX)),
        (Some(directory), Some(answered)) => {
            let found = std::fs::read(Path::new(&directory).join("file")).unwrap();
            check(&found, seed, answered).unwrap();
        }
        (None, _) => {
            let directory = tempfile::tempdir().unwrap();
            let synced = exercise(directory.path(), seed, 2000);
            let mut found = std::fs::read(directory.path().join("file")).unwrap();
            check(&found, seed, synced).unwrap();
            assert!(found.iter().any(|byte| *byte != 0), "there is something in the file");
            found.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
            check(&found, seed, synced).expect_err("nothing of it is right");
            found.truncate(1);
            check(&found, seed, synced).expect_err("nothing of it is there");
        }
    }
}
