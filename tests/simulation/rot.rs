//! Objects damaged or lost at rest: every read is right or fails.
//!
//! Damages one referenced object after the last gateway has ended. It leaves out damage that no reader can
//! detect: the last records of a journal can be lost without a trace, as can any object that the head does
//! not reference.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cairn::effect::Durability::Volatile;
use cairn::store::Error as StoreError;
use cairn::volume::format::keys::{Keys, Parsed};
use cairn::volume::read::concat;
use cairn::volume::{Error, OpenError, Volume};
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use super::bucket;
use super::gateway::Parts;
use super::world::{Inner, World};

/// Bytes of a read: small ones, so that what is good is seen beside what is not.
const READ: u64 = 8 << 10;
/// How long anything may take: a checkpoint of what cannot be read is tried for ever.
const PATIENCE: Duration = Duration::from_secs(120);
/// Number of times that the volume is opened.
const OPENINGS: u32 = 8;

impl Inner {
    /// Damages an object. Returns `false` if there is none to damage.
    pub(super) fn rot(&mut self) -> bool {
        let objects = self.objects();
        let recovered = bucket::recover(&objects, self.volume, &self.plan.layout, &mut self.known);
        let found = match recovered {
            Ok(found) => found,
            Err(why) => {
                self.broken(format!("the volume cannot be recovered: {why}"));
                return false;
            }
        };
        let keys = Keys::new(self.volume);
        let epoch_of = |key: &String| match keys.parse(key) {
            Some(Parsed::Record(slot)) => Some(slot.epoch),
            _ => None,
        };
        let newest = found.named.iter().filter_map(epoch_of).max();
        let is_older = |key: &&String| epoch_of(key).is_some_and(|epoch| Some(epoch) < newest);
        let named: Vec<&String> = found.named.iter().collect();
        // Few objects are records of logs that ended, and only the chain tells that the last of one is gone.
        let older: Vec<&String> = named.iter().copied().filter(is_older).collect();
        let from = if !older.is_empty() && self.random.random() { &older } else { &named };
        let Some(&key) = from.choose(&mut self.random) else { return false };
        let loses = std::ptr::eq(from, &older);
        let body = objects[key].clone();
        let same_kind = |other: &&&String| {
            let (a, b) = (keys.parse(key), keys.parse(other));
            **other != key && std::mem::discriminant(&a) == std::mem::discriminant(&b)
        };
        let others: Vec<&&String> = named.iter().filter(same_kind).collect();
        let what = if loses { 0 } else { self.random.random_range(0..5) };
        match (what, others.choose(&mut self.random)) {
            (0, _) if epoch_of(key).is_none_or(|epoch| Some(epoch) < newest) => {
                drop(self.memory.remove(key));
            }
            (1, _) if body.len() > 1 => {
                let length = self.random.random_range(0..body.len());
                self.memory.insert(key, body.slice(..length));
            }
            (4, _) if matches!(keys.parse(key), Some(Parsed::Chunk(..) | Parsed::Pack(_))) => {
                self.memory.insert(key, swapped(&body, &mut self.random));
            }
            (2, Some(other)) => self.memory.insert(key, objects[**other].clone()),
            _ => {
                let mut damaged = BytesMut::from(&body[..]);
                let at = self.random.random_range(0..damaged.len());
                damaged[at] ^= 1 << self.random.random_range(0..8_u8);
                self.memory.insert(key, damaged.freeze());
            }
        }
        self.say(format_args!("{key} rots ({what})"));
        self.rotten = true;
        self.rotten_chunk = matches!(
            keys.parse(key),
            Some(Parsed::Chunk(..) | Parsed::Pack(_) | Parsed::Overlay(..) | Parsed::MapPage(..))
        );
        self.image = Some(Arc::new(found.image));
        true
    }

    /// Whether what is read of a volume that is not whole may fail so.
    fn may_fail(&mut self, what: &str, error: &Error) -> bool {
        // What ends early is asked for again until the deadline; what cannot be folded is kept.
        let explained = match error {
            Error::Damaged { .. } | Error::Lost { .. } | Error::Deadline { .. } => true,
            Error::Store(error) => matches!(error, StoreError::Timeout { .. } | StoreError::Truncated { .. }),
            Error::Stopped(_)
            | Error::OutOfRange { .. }
            | Error::TableFull { .. }
            | Error::NameTaken { .. } => false,
        };
        if !explained {
            self.broken(format!("{what} failed, of a volume that is not whole: {error}"));
        }
        explained
    }
}

/// Opens the volume, reads, changes and folds it, and opens it again: nothing wrong is ever read.
pub(super) async fn look(parts: Parts) {
    let Parts { world, process, env, mut random, .. } = parts;
    for time in 0..2 {
        let (id, mut options) = {
            let inner = world.lock();
            (inner.volume, inner.plan.options.clone())
        };
        options.holder_name = "who looks at what is left".to_owned();
        options.lease_strict = false;
        options.store_deadline = Some(PATIENCE);
        let mut opened = None;
        for _ in 0..OPENINGS {
            match Volume::open(&env, options.clone(), id, true).await {
                Ok(volume) => {
                    opened = Some(volume);
                    break;
                }
                Err(OpenError::Lost(_)) => {}
                Err(error) => {
                    world.lock().say(format_args!("cannot be opened: {error}"));
                    break;
                }
            }
        }
        let Some(volume) = opened else { break };
        let image = world.lock().image.clone().expect("it was recovered before it was damaged");
        {
            let mut inner = world.lock();
            if time == 0 {
                inner.history.begin(volume.epoch(), image);
                inner.looked(process, volume.epoch());
            }
        }
        let epoch = world.lock().history.newest();
        read_all(&world, &volume, epoch).await;
        if time == 0 {
            change_some(&world, &volume, epoch, &mut random).await;
            if !matches!(tokio::time::timeout(PATIENCE, volume.flush()).await, Ok(Ok(()))) {
                break;
            }
            let folded = tokio::time::timeout(PATIENCE, volume.checkpoint()).await;
            {
                let mut inner = world.lock();
                inner.say(format_args!("folded: {folded:?}"));
                if inner.rotten_chunk && !matches!(folded, Ok(Ok(()))) {
                    inner.broken(format!(
                        "a bad chunk object, pack, overlay or map page stops the checkpoint: {folded:?}"
                    ));
                }
            }
            read_all(&world, &volume, epoch).await;
        }
        volume.abandon().await;
    }
    let mut inner = world.lock();
    inner.processes.get_mut(&process).expect("it was born").ended = true;
}

async fn read_all(world: &World, volume: &Arc<Volume>, epoch: u32) {
    let windows = world.lock().plan.layout.windows.clone();
    for window in windows {
        let mut at = window.start;
        while at < window.end {
            let range = at..window.end.min(at + READ);
            at = range.end;
            let issued = world.lock().history.tick();
            match volume.read(range.start, range.end - range.start).await {
                Ok(segments) => world.lock().check_read(epoch, &range, issued, &concat(&segments)),
                Err(error) => {
                    // One that is cut short is asked for until the deadline: once is enough.
                    if !world.lock().may_fail("a read", &error) || matches!(error, Error::Store(_)) {
                        return;
                    }
                }
            }
            if world.lock().violation.is_some() {
                return;
            }
        }
    }
}

/// Writes here and there: parts of sectors too, whose rest must be read for it.
async fn change_some(world: &World, volume: &Arc<Volume>, epoch: u32, random: &mut SmallRng) {
    for _ in 0..24 {
        let layout = world.lock().plan.layout.clone();
        let unit = if random.random() { 64 } else { 512 };
        let position = random.random_range(0..layout.bytes()) / unit * unit;
        let (offset, room) = layout.place(position);
        let range = offset..offset + unit.min(room);
        let (change, data): (_, Bytes) = world.lock().issue_write(epoch, &range);
        match tokio::time::timeout(PATIENCE, volume.write(range.start, data, Volatile)).await {
            Ok(Ok(())) => world.lock().answered(epoch, change, Volatile),
            Ok(Err(error)) => {
                let goes_on = world.lock().may_fail("a write of a part", &error);
                // At the deadline, the journal is full and cannot be folded: the next would wait as long.
                if !goes_on || matches!(error, Error::Store(_) | Error::Deadline { .. }) {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

/// Returns an object of frames with two neighbouring blocks in each other's place.
fn swapped(body: &Bytes, random: &mut impl Rng) -> Bytes {
    const FRAME: usize = 4096 + 16;
    let mut bytes = BytesMut::from(&body[..]);
    let places = (bytes.len() / FRAME).saturating_sub(2).max(1);
    // Chunk objects of the simulation have a header of 54 bytes, packs one of 44.
    let header = if bytes.starts_with(b"CAIRNPAK") { 44 } else { 54 };
    let at = header + random.random_range(0..places) * FRAME;
    if bytes.len() < at + 2 * FRAME {
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        return bytes.freeze();
    }
    let (first, second) = bytes[at..at + 2 * FRAME].split_at_mut(FRAME);
    first.swap_with_slice(second);
    bytes.freeze()
}
