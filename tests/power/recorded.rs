//! What a workload asks of a disk, and in which order it may be sure that it was done.
//!
//! A disk in memory puts down every command, when it came and when it was answered, and what of that the workload had
//! seen by each of its own answers. It takes its time, so that commands which do not wait for each other overlap.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use cairn::effect::{Durability, ZeroSpeed, Zeroing};
use cairn::metrics::Metrics;
use cairn::protocol::TransmissionFlags;
use cairn::server::{
    Allocation, Export, ExportDescription, ExportError, Greeting, Listener, Options, Segment, Server,
};
use tokio::sync::Mutex;

use super::recovered::make;
use super::running::{Round, Running};
use crate::support::memory_export::{MemoryExport, MemoryExports};

/// How long the disk takes to answer.
const LATENCY: Duration = Duration::from_millis(1);

/// What a disk is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// From an offset; what was read.
    Read(u64, Bytes),
    Write {
        offset: u64,
        data: Bytes,
        durability: Durability,
    },
    Zero {
        offset: u64,
        length: u64,
        zeroing: Zeroing,
        durability: Durability,
    },
    Flush,
}

impl Command {
    /// The bytes that it is about.
    fn range(&self) -> std::ops::Range<u64> {
        match self {
            Self::Read(offset, data) | Self::Write { offset, data, .. } => {
                *offset..*offset + data.len() as u64
            }
            Self::Zero { offset, length, .. } => *offset..*offset + length,
            Self::Flush => 0..0,
        }
    }

    fn changes(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Zero { .. })
    }
}

/// What happens to a command, which goes by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It reaches the disk.
    Asked(usize),
    /// Its answer leaves the disk.
    Answered(usize),
}

/// What was recorded.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    pub(crate) commands: Vec<Command>,
    pub(crate) events: Vec<Event>,
    /// What the workload was told of, and after how many events that was heard.
    pub(crate) answers: Vec<(usize, String)>,
}

impl Recording {
    fn ask(&mut self, command: Command) -> usize {
        let number = self.commands.len();
        self.commands.push(command);
        self.events.push(Event::Asked(number));
        number
    }

    /// For each command, whether a change of the same bytes was under way at the same time: what a READ gives is then
    /// one or the other.
    pub(crate) fn overlaps(&self) -> Vec<bool> {
        let mut overlaps = vec![false; self.commands.len()];
        let mut under_way: Vec<usize> = Vec::new();
        for event in &self.events {
            match *event {
                Event::Asked(number) => {
                    let range = self.commands[number].range();
                    for &other in &under_way {
                        let theirs = self.commands[other].range();
                        let is_met = theirs.start < range.end && range.start < theirs.end;
                        let changes = self.commands[number].changes() || self.commands[other].changes();
                        if is_met && changes {
                            (overlaps[number], overlaps[other]) = (true, true);
                        }
                    }
                    under_way.push(number);
                }
                Event::Answered(number) => under_way.retain(|other| *other != number),
            }
        }
        overlaps
    }
}

/// A disk in memory that remembers what it was asked, in the order in which it did it.
struct Recorder {
    inner: MemoryExport,
    recording: Mutex<Recording>,
}

impl Recorder {
    /// Answers a command.
    async fn answer(&self, number: usize) {
        tokio::time::sleep(LATENCY).await;
        self.recording.lock().await.events.push(Event::Answered(number));
    }
}

#[async_trait]
impl Export for Recorder {
    fn description(&self) -> ExportDescription {
        let inner = self.inner.description();
        ExportDescription { flags: inner.flags - TransmissionFlags::CAN_MULTI_CONN, ..inner }
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Vec<Segment>, ExportError> {
        let mut recording = self.recording.lock().await;
        let segments = self.inner.read(offset, length).await?;
        let mut data = BytesMut::with_capacity(length as usize);
        for segment in &segments {
            match segment {
                Segment::Data(bytes) => data.extend_from_slice(bytes),
                Segment::Zero(length) => data.resize(data.len() + *length as usize, 0),
            }
        }
        let number = recording.ask(Command::Read(offset, data.freeze()));
        drop(recording);
        self.answer(number).await;
        Ok(segments)
    }

    async fn write(&self, offset: u64, data: Bytes, durability: Durability) -> Result<(), ExportError> {
        let mut recording = self.recording.lock().await;
        // A copy: what came off the wire is part of a larger buffer.
        let copy = Bytes::copy_from_slice(&data);
        let number = recording.ask(Command::Write { offset, data: copy, durability });
        self.inner.write(offset, data, durability).await?;
        drop(recording);
        self.answer(number).await;
        Ok(())
    }

    async fn flush(&self) -> Result<(), ExportError> {
        let number = self.recording.lock().await.ask(Command::Flush);
        self.answer(number).await;
        Ok(())
    }

    async fn trim(&self, offset: u64, length: u64, durability: Durability) -> Result<(), ExportError> {
        self.write_zeroes(offset, length, Zeroing::Deallocate, ZeroSpeed::Any, durability).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        zeroing: Zeroing,
        speed: ZeroSpeed,
        durability: Durability,
    ) -> Result<(), ExportError> {
        let mut recording = self.recording.lock().await;
        let number = recording.ask(Command::Zero { offset, length, zeroing, durability });
        self.inner.write_zeroes(offset, length, zeroing, speed, durability).await?;
        drop(recording);
        self.answer(number).await;
        Ok(())
    }

    async fn cache(&self, offset: u64, length: u64) -> Result<(), ExportError> {
        self.inner.cache(offset, length).await
    }

    async fn block_status(
        &self,
        offset: u64,
        length: u64,
        limit: usize,
    ) -> Result<Vec<Allocation>, ExportError> {
        self.inner.block_status(offset, length, limit).await
    }
}

/// Runs a workload on a disk in memory until it has had so many answers.
pub(crate) async fn record(round: &Round, size: u64, count: usize) -> Recording {
    let recorder = Arc::new(Recorder { inner: MemoryExport::new("disk", size), recording: Mutex::default() });
    let exports = MemoryExports::new(vec![Arc::clone(&recorder) as _]);
    let server = Server::new(Arc::new(exports), Options::default(), Metrics::new().server());
    let address = "127.0.0.1:0".parse().expect("an address");
    let listener = Listener::bind(&address).await.expect("loopback has free ports");
    let uri = format!("nbd://{}/disk", server.listen(listener, Greeting::Newstyle));
    make(round.cell, &uri, size).await;
    let mut running = Running::start(round, &uri).await;
    let mut answers = Vec::new();
    while answers.len() < count {
        running.answers(answers.len() + 1).await;
        let events = recorder.recording.lock().await.events.len();
        answers.extend(running.told().drain(answers.len()..).map(|answer| (events, answer)));
    }
    running.cut().await;
    server.hang_up().await;
    let recording = std::mem::take(&mut *recorder.recording.lock().await);
    Recording { answers, ..recording }
}

#[test]
fn what_overlaps_is_found() {
    let write = |offset| Command::Write {
        offset,
        data: Bytes::from_static(&[1; 512]),
        durability: Durability::Volatile,
    };
    let read = |offset| Command::Read(offset, Bytes::from_static(&[0; 512]));
    let mut recording = Recording::default();
    let first = recording.ask(write(0));
    let beside = recording.ask(read(512));
    let same = recording.ask(read(0));
    recording.events.push(Event::Answered(first));
    let after = recording.ask(read(0));
    let late = recording.ask(write(256));
    recording.ask(Command::Flush);
    let overlaps = recording.overlaps();
    let found = [first, beside, same, after, late].map(|number| overlaps[number]);
    assert_eq!(found, [true, true, true, true, true]);
    assert!(!overlaps[5]);
    let mut recording = Recording::default();
    let first = recording.ask(write(0));
    let beside = recording.ask(read(512));
    recording.events.push(Event::Answered(first));
    let after = recording.ask(read(0));
    assert_eq!([first, beside, after].map(|number| recording.overlaps()[number]), [false; 3]);
}
