//! A client of a gateway: issues commands as a virtual machine would, and checks the answers.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn::client::{Broken, Error as WireError};
use cairn::effect::{Durability, Zeroing};
use cairn::protocol::Error as Value;
use cairn::volume::signal::Signal;
use cairn::volume::{Environment, Error};
use rand::Rng;
use rand::rngs::SmallRng;

use super::cells::{CELL, CELL_LEN, Id, identify};
use super::history::Moment;
use super::plan::Plan;
use super::snapshots;
use super::wire::{Failure, Way};
use super::world::{Inner, Order, Process, World};

/// A client and the way by which its commands reach the volume.
pub(super) struct Client {
    pub(super) world: World,
    pub(super) process: Process,
    pub(super) epoch: u32,
    /// How the gateway reaches the store, to read snapshots.
    pub(super) env: Environment,
    pub(super) way: Way,
    pub(super) orders: Arc<Signal<Order>>,
    pub(super) random: SmallRng,
}

/// A command.
#[derive(Clone, Debug)]
enum Command {
    Read(Range<u64>),
    Write(Range<u64>, Durability),
    Zero { range: Range<u64>, zeroing: Zeroing, durability: Durability },
    Flush,
    Allocation(Range<u64>),
    Prefetch(Range<u64>),
    Checkpoint,
    Snapshots(snapshots::Command),
}

impl Client {
    /// Issues commands until there are no more to issue, or the volume stops.
    pub(super) async fn run(mut self) {
        loop {
            let think = self.world.lock().plan.think;
            let pause = self.random.random_range(0..=think);
            if self.random.random_bool(0.8) {
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            for _ in 0..self.random.random_range(0..3) {
                tokio::task::yield_now().await;
            }
            if *self.orders.borrow() != Order::Serve || !self.world.lock().take_command() {
                return;
            }
            let about_snapshots = snapshots::Command::draw(&mut self.world.lock(), &mut self.random, range);
            let command = match about_snapshots {
                Some(command) => Command::Snapshots(command),
                None => draw(&self.world.lock().plan, &mut self.random),
            };
            // Sometimes a client goes away before the answer.
            let patience = self.random.random_range(0..400_u64);
            let needs_volume = !matches!(&command, Command::Snapshots(command) if !command.needs_volume());
            let was_stopped = needs_volume && self.way.is_stopped();
            let number = self.world.lock().begin(self.process, &command);
            let outcome = if patience < 10 {
                let patience = Duration::from_millis(patience * patience);
                tokio::time::timeout(patience, self.execute(&command)).await.ok()
            } else {
                Some(self.execute(&command).await)
            };
            let mut inner = self.world.lock();
            match outcome {
                None => inner.end(self.process, number, "given up"),
                Some(Ok(())) => {
                    inner.end(self.process, number, "done");
                    inner.quiet = 0;
                    if was_stopped {
                        inner.broken(format!("{command:?} succeeded after the volume had stopped"));
                    }
                }
                Some(Err(Failure::Volume(error))) => {
                    inner.end(self.process, number, &error.to_string());
                    inner.failed(self.process, self.epoch, &error);
                    if matches!(error, Error::Stopped(_)) {
                        return;
                    }
                }
                Some(Err(Failure::Wire(error))) => {
                    inner.end(self.process, number, &error.to_string());
                    if inner.failed_on_the_wire(&error) {
                        return;
                    }
                }
            }
        }
    }

    async fn execute(&self, command: &Command) -> Result<(), Failure> {
        let way = &self.way;
        match command.clone() {
            Command::Read(range) => {
                let (issued, issued_at) = {
                    let mut inner = self.world.lock();
                    (inner.history.tick(), inner.now)
                };
                let bytes = way.read(range.start, range.end - range.start).await?;
                let mut inner = self.world.lock();
                inner.check_read(self.epoch, &range, issued, &bytes);
                inner.check_lease(self.process, issued_at);
            }
            Command::Write(range, durability) => {
                let (id, data) = self.world.lock().issue_write(self.epoch, &range);
                way.write(range.start, data, durability).await?;
                self.world.lock().answered(self.epoch, id, durability);
            }
            Command::Zero { range, zeroing, durability } => {
                let id = self.world.lock().issue_zero(self.epoch, &range);
                way.zero(range.start, range.end - range.start, zeroing, durability).await?;
                self.world.lock().answered(self.epoch, id, durability);
            }
            Command::Flush => {
                let issued = self.world.lock().history.tick();
                way.flush().await?;
                self.world.lock().flushed(self.epoch, issued);
            }
            Command::Checkpoint => {
                let issued = self.world.lock().history.tick();
                way.volume().checkpoint().await.map_err(Failure::Volume)?;
                self.world.lock().flushed(self.epoch, issued);
            }
            Command::Snapshots(command) => {
                command.execute(&self.world, &self.env, way.volume()).await.map_err(Failure::Volume)?;
            }
            Command::Prefetch(range) => way.prefetch(range.start, range.end - range.start).await?,
            Command::Allocation(range) => {
                let issued = self.world.lock().history.tick();
                let extents = way.allocation(range.start, range.end - range.start).await?;
                let mut inner = self.world.lock();
                let mut at = range.start;
                for extent in extents {
                    let part = at..range.end.min(at + extent.length);
                    at = part.end;
                    if extent.zero {
                        inner.check_zeros(self.epoch, &part, issued);
                    }
                }
                if at == range.start || at > range.end {
                    inner.broken(format!("the allocation of {range:?} ends at {at}"));
                }
            }
        }
        Ok(())
    }
}

/// Draws a command.
fn draw(plan: &Plan, random: &mut SmallRng) -> Command {
    let durability = if random.random_bool(0.15) { Durability::Durable } else { Durability::Volatile };
    let wide = |often: f64, random: &mut SmallRng| {
        let often = if plan.busy { often / 10.0 } else { often };
        if random.random_bool(often) { wide(plan, random) } else { range(plan, random) }
    };
    match random.random_range(0..100) {
        0..42 => Command::Write(range(plan, random), durability),
        42..66 => Command::Read(range(plan, random)),
        66..76 => Command::Flush,
        76..90 => {
            let range = wide(0.1, random);
            let zeroing = if random.random() { Zeroing::Deallocate } else { Zeroing::Allocate };
            Command::Zero { range, zeroing, durability }
        }
        90..95 => {
            let range = wide(0.3, random);
            Command::Allocation(range)
        }
        95..97 => Command::Prefetch(wide(0.3, random)),
        _ => Command::Checkpoint,
    }
}

/// Draws a range within a window: partial sectors, sectors, blocks, pages, chunks, or a mixture.
fn range(plan: &Plan, random: &mut SmallRng) -> Range<u64> {
    let all = plan.layout.bytes();
    let hot = (all * plan.hot_percent / 100).max(8192).min(all);
    let within = if random.random_bool(0.8) { hot } else { all };
    let position = random.random_range(0..within);
    let chunk = plan.layout.chunk;
    if plan.fills && random.random_bool(0.4) {
        let (offset, room) = plan.layout.place(position / chunk * chunk);
        return offset..offset + chunk.min(room);
    }
    let (unit, most) = match random.random_range(0..if plan.busy { 72 } else { 100 }) {
        0..25 => (CELL, 20),
        25..50 => (512, 16),
        50..70 => (4096, 4),
        70..80 => (65_536, 1),
        80..92 => (chunk, 1),
        _ => (CELL, chunk * 3 / 2 / CELL),
    };
    let (offset, room) = plan.layout.place(position / unit * unit);
    let length = (unit * random.random_range(1..=most)).min(room);
    offset..offset + length
}

/// Draws a range that may span windows, or the whole volume.
fn wide(plan: &Plan, random: &mut SmallRng) -> Range<u64> {
    if random.random_bool(0.3) {
        return 0..plan.layout.size;
    }
    let mut ends = [random.random_range(0..=plan.layout.size), random.random_range(0..=plan.layout.size)];
    ends.sort_unstable();
    let start = (ends[0] / CELL * CELL).min(plan.layout.size - CELL);
    start..(ends[1] / CELL * CELL).max(start + CELL)
}

impl Inner {
    /// Returns whether one more command may be issued, and counts it.
    pub(super) fn take_command(&mut self) -> bool {
        if self.commands_left == 0 {
            return false;
        }
        self.commands_left -= 1;
        self.commands += 1;
        true
    }

    /// Records that a command is issued.
    pub(super) fn begin(&mut self, process: Process, what: &dyn std::fmt::Debug) -> u64 {
        let number = self.history.tick();
        self.say(format_args!("P{process} !{number} {what:?}"));
        let state = self.processes.get_mut(&process).expect("its gateway was born");
        state.commands.insert(number, format!("{what:?}"));
        number
    }

    /// Records that a command is answered or given up.
    pub(super) fn end(&mut self, process: Process, number: u64, how: &str) {
        self.say(format_args!("P{process} !{number} {how}"));
        let state = self.processes.get_mut(&process).expect("its gateway was born");
        drop(state.commands.remove(&number));
    }

    pub(super) fn issue_write(&mut self, epoch: u32, range: &Range<u64>) -> (Id, Bytes) {
        let cells = self.plan.layout.cells_of(range).into_iter().map(|(_, cells)| cells).collect();
        let id = self.history.issue(epoch, false, |_| cells);
        self.say(format_args!("change {id}"));
        (id, Bytes::from(self.plan.layout.payload(range, id)))
    }

    fn issue_zero(&mut self, epoch: u32, range: &Range<u64>) -> Id {
        let cells = self.plan.layout.cells_of(range).into_iter().map(|(_, cells)| cells).collect();
        let id = self.history.issue(epoch, true, |_| cells);
        self.say(format_args!("change {id}"));
        id
    }

    pub(super) fn answered(&mut self, epoch: u32, id: Id, durability: Durability) {
        let is_durable = durability == Durability::Durable;
        self.history.answer(epoch, id, is_durable);
        if is_durable {
            self.look_after_flush(epoch);
        }
    }

    fn flushed(&mut self, epoch: u32, issued: Moment) {
        self.history.flush_answered(epoch, issued);
        self.look_after_flush(epoch);
    }

    /// Sometimes checks what a crash right after the answer would leave.
    fn look_after_flush(&mut self, epoch: u32) {
        let often = if self.plan.busy { 0.02 } else { 0.2 };
        if epoch == self.history.newest() && self.random.random_bool(often) {
            drop(self.check_now());
        }
    }

    /// Checks the bytes that a read returned.
    pub(super) fn check_read(&mut self, epoch: u32, range: &Range<u64>, issued: Moment, bytes: &[u8]) {
        if bytes.len() as u64 != range.end - range.start {
            return self.broken(format!("a read of {range:?} gave {} bytes", bytes.len()));
        }
        for (start, cells) in self.plan.layout.cells_of(range) {
            let at = usize::try_from(start - range.start).expect("within the read");
            let parts = cells.clone().zip(bytes[at..].chunks_exact(CELL_LEN));
            let found: Vec<Id> = parts.map(|(cell, part)| identify(part, cell)).collect();
            if let Err(why) = self.history.epochs[&epoch].check_reads(cells.start, &found, issued) {
                return self.broken(format!("epoch {epoch}, read of {range:?}: {why}"));
            }
        }
    }

    /// Checks that a range reported as zeros may be zeros.
    fn check_zeros(&mut self, epoch: u32, range: &Range<u64>, issued: Moment) {
        for (_, cells) in self.plan.layout.cells_of(range) {
            let zeros = vec![0; cells.len()];
            if let Err(why) = self.history.epochs[&epoch].check_reads(cells.start, &zeros, issued) {
                return self.broken(format!("epoch {epoch}, allocation of {range:?} says zeros: {why}"));
            }
        }
    }

    /// A command failed on the wire: is that explained? Says whether the connection is of no more use.
    fn failed_on_the_wire(&mut self, error: &WireError) -> bool {
        match error {
            // The volume's errors are judged where the server receives them.
            WireError::Command { error: Value::Io, .. } => false,
            WireError::Command { error: Value::Shutdown, .. } => true,
            WireError::Broken(Broken::Closed | Broken::ByServer | Broken::Io(_)) => true,
            other => {
                self.broken(format!("a command failed on the wire: {other}"));
                true
            }
        }
    }

    /// A command failed: is that explained?
    pub(super) fn failed(&mut self, process: Process, epoch: u32, error: &Error) {
        let is_explained = match error {
            Error::Stopped(why) => {
                if *self.processes[&process].order.borrow() != Order::Close {
                    self.check_superseded(process, epoch, why);
                }
                true
            }
            Error::Deadline { .. } => self.plan.options.store_deadline.is_some(),
            Error::Store(_) => !self.is_fair(),
            // A successor has folded it away.
            Error::Lost { .. } => self.is_superseded(epoch),
            // Nothing is damaged at rest, and damage in transit must not be mistaken for that.
            Error::Damaged { .. }
            | Error::OutOfRange { .. }
            | Error::TableFull { .. }
            | Error::NameTaken { .. } => false,
        };
        if !is_explained {
            self.broken(format!("P{process} of epoch {epoch}: a command failed: {error}"));
        }
    }
}
