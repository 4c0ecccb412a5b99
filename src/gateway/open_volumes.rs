//! The open volumes: each is open once, however many clients use it.
//!
//! Owns when volumes are opened and closed, and must not know exports. Configured volumes are opened at the
//! start and stay open. Others are opened for their first client, and closed after nobody has used them for a
//! while. Invariants: a volume is never open twice. A volume in use is closed only by
//! [`OpenVolumes::close_all`], and nothing is opened after that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::failure::chain;
use super::surface::OpenVolume;
use super::unopened::Unopened;
use crate::metrics::{Metrics, VolumeMetrics};
use crate::server;
use crate::task::Tasks;
use crate::volume::{self, Environment, Flattened, OpenError, Status, Volume, catalog};

/// Time between two log lines about volumes that are still being closed.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// How volumes are opened and closed.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) volume: volume::Options,
    pub(crate) idle_timeout: Duration,
    pub(crate) maximum_open: usize,
}

/// Who opens a volume after it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another gateway waits for it, and so do its clients.
    Waits,
    /// Nobody is known to wait for it.
    Unknown,
}

/// An open volume.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) volume: Arc<Volume>,
    pub(crate) metrics: VolumeMetrics,
    stay: watch::Sender<Stay>,
    users: watch::Sender<usize>,
}

/// The right to use an open volume. It ends on drop.
#[derive(Debug)]
pub(crate) struct Use(Arc<Served>);

impl Use {
    fn of(served: &Arc<Served>) -> Self {
        served.users.send_modify(|users| *users += 1);
        served.metrics.clients.inc();
        Self(Arc::clone(served))
    }
}

impl std::ops::Deref for Use {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.0
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.0.users.send_modify(|users| *users -= 1);
        self.0.metrics.clients.dec();
    }
}

/// Counts as an open volume until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _counted: Arc<()>,
}

/// Whether a volume stays open while nobody uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stay {
    /// The volume is configured.
    Always,
    /// The volume was opened for a client.
    WhileUsed,
}

/// The life cycle of a volume in this gateway.
#[derive(Clone, Debug)]
enum Phase {
    Opening,
    Open(Arc<Served>),
    /// Being closed. Nobody may use it any more.
    Closing(Arc<Served>),
    /// It is closed, or could not be opened. Its slot is no longer in the map.
    Gone(Option<Arc<OpenError>>),
}

type Slot = watch::Sender<Phase>;

#[derive(Debug, Default)]
struct Slots {
    by_name: BTreeMap<String, Arc<Slot>>,
    /// One reference more than there are [`Place`]s.
    places: Arc<()>,
    draining: bool,
}

impl Slots {
    /// Fails if nothing more may be opened.
    fn check_room(&self, maximum: usize) -> Result<(), Unopened> {
        let taken = self.by_name.len() + Arc::strong_count(&self.places) - 1;
        match (self.draining, taken >= maximum) {
            (true, _) => Err(Unopened::Draining),
            (false, true) => Err(Unopened::Full(maximum)),
            (false, false) => Ok(()),
        }
    }
}

/// The open volumes of a gateway.
#[derive(Debug)]
pub(crate) struct OpenVolumes {
    env: Environment,
    options: Options,
    metrics: Metrics,
    slots: Mutex<Slots>,
    configured: watch::Sender<Configured>,
    /// Names of the configured volumes, whoever opened them.
    wanted: Mutex<Vec<String>>,
    tasks: Tasks,
}

/// Counts of the configured volumes that were opened.
#[derive(Clone, Copy, Debug, Default)]
struct Configured {
    opened: usize,
    /// How many of them have stopped.
    lost: usize,
    /// Whether another gateway took one of them over.
    fenced: bool,
}

impl OpenVolumes {
    /// Creates the set without any open volume.
    pub(crate) fn new(env: Environment, options: Options, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            env,
            options,
            metrics,
            slots: Mutex::default(),
            configured: watch::Sender::default(),
            wanted: Mutex::default(),
            tasks: Tasks::new(),
        })
    }

    /// Opens a configured volume to stay open. If a client has already opened it, it stays open from now on.
    pub(crate) async fn open_configured(
        self: &Arc<Self>,
        name: &str,
        takeover: bool,
    ) -> Result<(), Arc<OpenError>> {
        loop {
            let slot = {
                let mut slots = self.slots.lock();
                match slots.by_name.get(name) {
                    // Checked under the lock, as the idle check is.
                    Some(slot) => match &*slot.borrow() {
                        Phase::Open(served) => {
                            self.pin(served);
                            return Ok(());
                        }
                        Phase::Opening | Phase::Closing(_) | Phase::Gone(_) => Arc::clone(slot),
                    },
                    None => self.start(&mut slots, name, Stay::Always, takeover),
                }
            };
            let mut phase = slot.subscribe();
            let settled = phase.wait_for(|phase| matches!(phase, Phase::Open(_) | Phase::Gone(_))).await;
            if let Phase::Gone(Some(error)) = &*settled.expect("we hold the sender") {
                return Err(Arc::clone(error));
            }
        }
    }

    /// Marks a volume as no longer configured. It is closed when nobody uses it.
    pub(crate) fn unpin(&self, name: &str) {
        let slots = self.slots.lock();
        let Some(slot) = slots.by_name.get(name) else { return };
        if let Phase::Open(served) = &*slot.borrow()
            && served.stay.send_replace(Stay::WhileUsed) == Stay::Always
        {
            let lost = usize::from(matches!(served.volume.status(), Status::Stopped(_)));
            self.configured.send_modify(|now| {
                now.opened -= 1;
                now.lost -= lost.min(now.lost);
            });
        }
    }

    fn pin(&self, served: &Served) {
        if served.stay.send_replace(Stay::Always) == Stay::WhileUsed {
            self.configured.send_modify(|now| now.opened += 1);
        }
    }

    /// Opens a volume for a client, or joins its other users.
    pub(crate) async fn open(self: &Arc<Self>, name: &str) -> Result<Use, server::OpenError> {
        self.join(name).await.map_err(|unopened| unopened.for_client(name))
    }

    /// Opens a volume as for a client, or joins its other users.
    pub(crate) async fn join(self: &Arc<Self>, name: &str) -> Result<Use, Unopened> {
        loop {
            let slot = {
                let mut slots = self.slots.lock();
                if slots.draining {
                    return Err(Unopened::Draining);
                }
                match slots.by_name.get(name) {
                    // Counted under the lock, as the idle check is.
                    Some(slot) => match &*slot.borrow() {
                        Phase::Open(served) => return admit(served),
                        Phase::Opening | Phase::Closing(_) | Phase::Gone(_) => Arc::clone(slot),
                    },
                    None => {
                        slots.check_room(self.options.maximum_open)?;
                        self.start(&mut slots, name, Stay::WhileUsed, false)
                    }
                }
            };
            let mut phase = slot.subscribe();
            let settled = phase.wait_for(|phase| matches!(phase, Phase::Open(_) | Phase::Gone(_))).await;
            if let Phase::Gone(Some(error)) = &*settled.expect("we hold the sender") {
                return Err(Unopened::Failed(Arc::clone(error)));
            }
        }
    }

    /// Flattens an open volume. It stays in use until that has ended, even if the caller gives up.
    pub(crate) async fn flatten(&self, of: Use) -> Result<Flattened, volume::Error> {
        let flattening = self.tasks.spawn_until_cancelled(async move { of.volume.flatten().await });
        match flattening.await {
            Ok(Some(flattened)) => flattened,
            Ok(None) | Err(_) => Err(volume::Error::Stopped("the gateway is shutting down".to_owned())),
        }
    }

    /// Takes a place among the open volumes for something else that is open.
    pub(crate) fn place(&self) -> Result<Place, Unopened> {
        let slots = self.slots.lock();
        slots.check_room(self.options.maximum_open)?;
        Ok(Place { _counted: Arc::clone(&slots.places) })
    }

    /// Returns whether a volume of this name is open, being opened or being closed.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.slots.lock().by_name.contains_key(name)
    }

    /// Returns the size of an open volume, for a description without a request to the store.
    pub(crate) fn size_bytes(&self, name: &str) -> Option<u64> {
        let slots = self.slots.lock();
        match &*slots.by_name.get(name)?.borrow() {
            Phase::Open(served) => Some(served.volume.size_bytes()),
            Phase::Opening | Phase::Closing(_) | Phase::Gone(_) => None,
        }
    }

    /// Returns a volume if it is open here and has not stopped.
    pub(crate) fn serving(&self, name: &str) -> Option<Arc<Volume>> {
        let slots = self.slots.lock();
        match &*slots.by_name.get(name)?.borrow() {
            Phase::Open(served) if !matches!(served.volume.status(), Status::Stopped(_)) => {
                Some(Arc::clone(&served.volume))
            }
            Phase::Open(_) | Phase::Opening | Phase::Closing(_) | Phase::Gone(_) => None,
        }
    }

    /// Waits until no configured volume is served any more. Waits forever if none is configured.
    pub(crate) async fn nothing_left(&self) {
        let mut configured = self.configured.subscribe();
        let lost = configured.wait_for(|now| now.opened > 0 && now.lost >= now.opened).await;
        lost.map(drop).expect("we hold the sender");
    }

    /// Returns whether another gateway took over a configured volume.
    pub(crate) fn is_fenced(&self) -> bool {
        self.configured.borrow().fenced
    }

    /// Waits until no client uses any of the volumes that are open now.
    pub(crate) async fn unused(&self) {
        for served in self.open_now() {
            served.users.subscribe().wait_for(|users| *users == 0).await.expect("we hold the sender");
        }
    }

    /// Sets the names of the configured volumes.
    pub(crate) fn configure(&self, names: &[String]) {
        *self.wanted.lock() = names.to_vec();
    }

    /// Returns whether a volume of this name is configured, even if it is not open.
    pub(crate) fn is_configured(&self, name: &str) -> bool {
        self.wanted.lock().iter().any(|wanted| wanted == name)
    }

    /// Returns a message for each configured volume that is not served.
    pub(crate) fn lost(&self) -> Vec<String> {
        let open = self.open_now();
        let wanted = self.wanted.lock();
        let lost = wanted.iter().filter_map(|name| match open.iter().find(|served| served.name == *name) {
            None => Some(format!("volume {name:?} is not open")),
            Some(served) => match served.volume.status() {
                Status::Stopped(why) => Some(format!("volume {name:?} stopped: {why}")),
                Status::Serving | Status::Draining => None,
            },
        });
        lost.collect()
    }

    /// Returns the open volumes, in order of name.
    pub(crate) fn reports(&self) -> Vec<OpenVolume> {
        let report = |served: Arc<Served>| OpenVolume {
            name: served.name.clone(),
            volume: Arc::clone(&served.volume),
            metrics: served.metrics.clone(),
            clients: *served.users.borrow(),
            is_configured: *served.stay.borrow() == Stay::Always,
        };
        self.open_now().into_iter().map(report).collect()
    }

    fn open_now(&self) -> Vec<Arc<Served>> {
        let slots = self.slots.lock();
        let mut open = Vec::new();
        for slot in slots.by_name.values() {
            if let Phase::Open(served) | Phase::Closing(served) = &*slot.borrow() {
                open.push(Arc::clone(served));
            }
        }
        open
    }

    /// Makes a checkpoint of every open volume while clients use it, so that little remains to be done when
    /// it is closed.
    pub(crate) async fn checkpoint_all(&self) {
        let open = self.open_now();
        futures::future::join_all(open.iter().map(|served| async move {
            if let Err(error) = served.volume.checkpoint().await {
                tracing::warn!(
                    volume = served.name,
                    "the checkpoint before the shutdown failed: {}",
                    chain(&error)
                );
            }
        }))
        .await;
    }

    /// Closes every volume: commits, makes a checkpoint unless a successor waits and the journal is short,
    /// and releases the lease. Returns the names of the volumes that were not closed cleanly within
    /// `patience`. Nothing can be opened any more.
    pub(crate) async fn close_all(&self, patience: Duration, next: Next) -> Vec<String> {
        self.slots.lock().draining = true;
        // This stops watching each volume. It also drops volumes being opened, which have taken a lease at
        // most, and volumes being closed, which are closed again below.
        self.tasks.shutdown().await;
        let open = self.open_now();
        let closing: Mutex<Vec<&str>> = Mutex::new(open.iter().map(|served| served.name.as_str()).collect());
        let failed = Mutex::new(Vec::new());
        let close_each = futures::future::join_all(open.iter().map(|served| {
            let (closing, failed) = (&closing, &failed);
            async move {
                if !close(served, next).await {
                    failed.lock().push(served.name.clone());
                }
                closing.lock().retain(|name| *name != served.name);
            }
        }));
        let progress = async {
            loop {
                tokio::time::sleep(PROGRESS_INTERVAL).await;
                tracing::info!("still closing {}", closing.lock().join(", "));
            }
        };
        tokio::select! {
            _ = close_each => {}
            () = progress => {}
            () = tokio::time::sleep(patience) => {
                let left: Vec<String> = closing.lock().iter().map(|name| (*name).to_owned()).collect();
                tracing::error!("not closed within {patience:?}: {}", left.join(", "));
                failed.lock().extend(left);
            }
        }
        failed.into_inner()
    }

    /// Creates a slot, and the task that opens the volume and later closes it.
    fn start(self: &Arc<Self>, slots: &mut Slots, name: &str, stay: Stay, takeover: bool) -> Arc<Slot> {
        let slot = Arc::new(Slot::new(Phase::Opening));
        slots.by_name.insert(name.to_owned(), Arc::clone(&slot));
        let (this, of_task, name) = (Arc::clone(self), Arc::clone(&slot), name.to_owned());
        drop(
            self.tasks.spawn_until_cancelled(async move { this.run(&name, &of_task, stay, takeover).await }),
        );
        slot
    }

    async fn run(&self, name: &str, slot: &Slot, pinned: Stay, takeover: bool) {
        let (volume, metrics) = match self.open_volume(name, takeover).await {
            Ok(opened) => opened,
            Err(error) => {
                tracing::warn!(volume = name, "cannot open the volume: {}", chain(&error));
                return self.leave(name, slot, Some(Arc::new(error)));
            }
        };
        tracing::info!(volume = name, id = %volume.id(), epoch = volume.epoch(), "open");
        let users = watch::Sender::new(0);
        let stay = watch::Sender::new(Stay::WhileUsed);
        let served = Arc::new(Served { name: name.to_owned(), volume, metrics, stay, users });
        if pinned == Stay::Always {
            self.pin(&served);
        }
        slot.send_replace(Phase::Open(Arc::clone(&served)));
        tokio::select! {
            why = served.volume.stopped() => {
                tracing::error!(volume = name, "the volume is no longer served: {why}");
                served.volume.abandon().await;
                if *served.stay.borrow() == Stay::Always {
                    let fenced = served.volume.is_fenced();
                    self.configured.send_modify(|now| {
                        now.lost += 1;
                        now.fenced |= fenced;
                    });
                    // The slot stays while the volume is configured, so that clients learn the reason.
                    released(&served).await;
                }
            }
            () = self.idle(&served, slot) => {
                if close(&served, Next::Unknown).await {
                    tracing::info!(volume = name, "closed the volume because no client used it");
                }
            }
        }
        self.leave(name, slot, None);
    }

    async fn open_volume(
        &self,
        name: &str,
        takeover: bool,
    ) -> Result<(Arc<Volume>, VolumeMetrics), OpenError> {
        let mut metrics = None;
        let options = || {
            // Only a name that exists gets time series.
            metrics = Some(self.metrics.volume(name));
            volume::Options { metrics: metrics.clone(), ..self.options.volume.clone() }
        };
        let volume = catalog::open(&self.env, options, name, takeover).await?;
        Ok((volume, metrics.expect("no volume is opened without options")))
    }

    /// Waits until the volume is not configured and nobody has used it for the idle timeout. From then on
    /// nobody can use it.
    async fn idle(&self, served: &Arc<Served>, slot: &Slot) {
        let mut users = served.users.subscribe();
        loop {
            released(served).await;
            users.wait_for(|users| *users == 0).await.expect("we hold the sender");
            let used_again = users.wait_for(|users| *users > 0);
            if tokio::time::timeout(self.options.idle_timeout, used_again).await.is_ok() {
                continue;
            }
            let slots = self.slots.lock();
            let wanted = *served.users.borrow() > 0 || *served.stay.borrow() == Stay::Always;
            if !wanted && !slots.draining {
                slot.send_replace(Phase::Closing(Arc::clone(served)));
                return;
            }
        }
    }

    /// Removes the slot, and wakes everybody who waits for it.
    fn leave(&self, name: &str, slot: &Slot, error: Option<Arc<OpenError>>) {
        self.slots.lock().by_name.remove(name);
        slot.send_replace(Phase::Gone(error));
    }
}

/// Lets a client use an open volume, unless the volume has stopped.
fn admit(served: &Arc<Served>) -> Result<Use, Unopened> {
    match served.volume.status() {
        Status::Stopped(why) => Err(Unopened::Stopped(format!("{} stopped: {why}", served.name))),
        Status::Serving | Status::Draining => Ok(Use::of(served)),
    }
}

/// Waits until the volume may be closed when nobody uses it.
async fn released(served: &Served) {
    let mut stay = served.stay.subscribe();
    stay.wait_for(|stay| *stay == Stay::WhileUsed).await.map(drop).expect("we hold the sender");
}

/// Closes a volume. Returns whether it was closed cleanly.
async fn close(served: &Served, next: Next) -> bool {
    if let Status::Stopped(why) = served.volume.status() {
        tracing::info!(volume = served.name, "the volume needs no closing: {why}");
        return true;
    }
    let closed = match next {
        Next::Waits => served.volume.hand_on().await,
        Next::Unknown => served.volume.close().await,
    };
    match closed {
        Ok(()) => {
            tracing::info!(volume = served.name, "closed the volume and released its lease");
            true
        }
        Err(error) => {
            tracing::error!(volume = served.name, "the volume was not closed cleanly: {}", chain(&error));
            served.volume.abandon().await;
            false
        }
    }
}

#[cfg(test)]
mod tests;
