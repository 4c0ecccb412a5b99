//! Clients of one gateway, with many concurrent commands over several connections. Every answer is recorded
//! in the history.
//!
//! Invariant: an answer is recorded before its client issues anything else, so the history never claims that
//! one of two overlapping commands was answered before the other was issued.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use cairn::client::{Client, Error, Options};
use cairn::effect::Durability::{Durable, Volatile};
use cairn::effect::{ZeroSpeed, Zeroing};
use cairn::protocol::Error as CommandError;
use cairn::task::Tasks;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::process::within;
use crate::checker::cells::{CELL, CELL_LEN, Layout, identify};
use crate::checker::history::History;

const CONNECTIONS: u64 = 3;
const COMMANDS_AT_A_TIME: u64 = 4;

/// What all clients of all gateways share.
pub(crate) struct Ledger {
    pub(crate) layout: Layout,
    pub(crate) history: Mutex<History>,
    /// Number of successful answers so far.
    pub(crate) answers: watch::Sender<u64>,
}

/// The clients of one gateway.
pub(crate) struct Load {
    workers: Vec<JoinHandle<()>>,
    client: Arc<Client>,
    epoch: u32,
    settling: Arc<AtomicBool>,
}

impl Load {
    /// Connects, and issues commands until the gateway stops serving.
    pub(crate) async fn start(ledger: &Arc<Ledger>, uri: &str, epoch: u32, seed: u64) -> Self {
        let (tasks, mut workers) = (Tasks::new(), Vec::new());
        let settling = Arc::new(AtomicBool::new(false));
        let uri = uri.parse().expect("a gateway's URI");
        let connect = async || {
            let client = Client::connect(&uri, &Options::default()).await;
            Arc::new(client.expect("the gateway serves"))
        };
        for connection in 0..CONNECTIONS {
            let client = connect().await;
            for number in 0..COMMANDS_AT_A_TIME {
                let random = SmallRng::seed_from_u64(seed ^ (connection << 8 | number) << 32);
                let (ledger, client) = (Arc::clone(ledger), Arc::clone(&client));
                let worker = Worker { ledger, client, epoch, random, settling: Arc::clone(&settling) };
                workers.push(tasks.spawn(worker.run()));
            }
        }
        Self { workers, client: connect().await, epoch, settling }
    }

    /// Lets every client finish its commands without issuing more, then waits for one FLUSH.
    pub(crate) async fn settle(&mut self, ledger: &Ledger) {
        self.settling.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            within("clients are served", worker).await.expect("they are told the truth");
        }
        let issued = ledger.history.lock().tick();
        within("a flush is answered", self.client.flush()).await.expect("the gateway serves");
        ledger.history.lock().flush_answered(self.epoch, issued);
    }

    /// Waits until no client is served any more. Panics if a client got a wrong answer.
    pub(crate) async fn end(self) {
        for worker in self.workers {
            within("clients are served or told that they are not", worker)
                .await
                .expect("they are told the truth");
        }
    }
}

struct Worker {
    ledger: Arc<Ledger>,
    client: Arc<Client>,
    epoch: u32,
    random: SmallRng,
    settling: Arc<AtomicBool>,
}

impl Worker {
    async fn run(mut self) {
        while !self.settling.load(Ordering::Relaxed) {
            match self.command().await {
                Ok(()) => self.ledger.answers.send_modify(|count| *count += 1),
                Err(Error::Broken(_) | Error::Command { error: CommandError::Shutdown, .. }) => return,
                // The store failed a read. A failed change may or may not have been applied.
                Err(Error::Command { error: CommandError::Io, .. }) => {}
                Err(error) => panic!("no such answer was due: {error}"),
            }
        }
    }

    async fn command(&mut self) -> Result<(), Error> {
        let durability = if self.random.random_bool(0.1) { Durable } else { Volatile };
        let range = self.range();
        let (offset, length) = (range.start, range.end - range.start);
        let history = &self.ledger.history;
        match self.random.random_range(0..100) {
            0..45 => {
                let id = self.issue(false, &range);
                let data = Bytes::from(self.ledger.layout.payload(&range, id));
                self.client.write(offset, data, durability).await?;
                history.lock().answer(self.epoch, id, durability == Durable);
            }
            45..60 => {
                let id = self.issue(true, &range);
                match self.random.random_range(0..3) {
                    0 => self.client.trim(offset, length, durability).await?,
                    1 => {
                        self.client
                            .write_zeroes(offset, length, Zeroing::Allocate, ZeroSpeed::Any, durability)
                            .await?
                    }
                    _ => {
                        self.client
                            .write_zeroes(offset, length, Zeroing::Deallocate, ZeroSpeed::Any, durability)
                            .await?
                    }
                }
                history.lock().answer(self.epoch, id, durability == Durable);
            }
            60..75 => {
                let issued = history.lock().tick();
                self.client.flush().await?;
                history.lock().flush_answered(self.epoch, issued);
            }
            _ => {
                let issued = history.lock().tick();
                let length = u32::try_from(length).expect("ranges are short");
                let data = self.client.read(offset, length).await?;
                self.check_read(&range, issued, &data);
            }
        }
        Ok(())
    }

    fn issue(&self, zero: bool, range: &Range<u64>) -> u32 {
        let cells = self.ledger.layout.cells_of(range).into_iter().map(|(_, cells)| cells).collect();
        self.ledger.history.lock().issue(self.epoch, zero, |_| cells)
    }

    fn check_read(&self, range: &Range<u64>, issued: u64, data: &[u8]) {
        let history = self.ledger.history.lock();
        let cells = self.ledger.layout.cells_of(range).into_iter().flat_map(|(_, cells)| cells);
        for (cell, bytes) in cells.zip(data.chunks_exact(CELL_LEN)) {
            let found = identify(bytes, cell);
            if let Err(why) = history.epochs[&self.epoch].check_read(cell, found, issued) {
                panic!("a read of {range:?}: {why}");
            }
        }
    }

    /// Returns a range: parts of sectors, sectors, blocks, pages or whole chunks, mostly near each other.
    fn range(&mut self) -> Range<u64> {
        let Layout { size, chunk, .. } = self.ledger.layout;
        let within = if self.random.random_bool(0.7) { size / 16 } else { size };
        let (unit, most) = match self.random.random_range(0..10) {
            0..2 => (CELL, 20),
            2..4 => (512, 16),
            4..7 => (4096, 8),
            7..9 => (65_536, 2),
            _ => (chunk, 1),
        };
        let start = self.random.random_range(0..within) / unit * unit;
        start..(start + unit * self.random.random_range(1..=most)).min(size)
    }
}
