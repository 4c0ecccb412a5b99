//! The ways in which a round of a gateway ends.

use rustix::process::Signal;

use crate::support::cairn::{Gateway, Setup, Store};
use crate::support::load::{Ledger, Load};
use crate::support::proxy::Proxy;

/// What ends a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    /// The gateway is killed.
    Kill,
    /// The gateway and the store are killed together, and the store comes back.
    KillWithStore,
    /// The store is killed and comes back. The gateway is killed later, after it has answered more commands.
    KillStoreFirst,
    /// Every connection to the store breaks. The gateway is killed later, after it has answered more
    /// commands.
    CutFirst,
    /// SIGTERM: the gateway closes its volume cleanly.
    Terminate,
    /// Another gateway takes over while this one serves.
    Takeover,
    /// Another gateway takes over while this one is stopped; then this one resumes.
    TakeoverOfSleeper,
}

/// Ends that involve one gateway at a time.
pub(super) const CRASHES: [End; 7] =
    [End::Kill, End::Kill, End::Kill, End::KillWithStore, End::KillStoreFirst, End::CutFirst, End::Terminate];

/// Ends that another gateway causes.
pub(super) const TAKEOVERS: [End; 3] = [End::Takeover, End::TakeoverOfSleeper, End::Kill];

/// A gateway under load.
pub(super) struct Serving {
    pub(super) gateway: Gateway,
    pub(super) load: Load,
    pub(super) epoch: u32,
}

/// Ends a round. Returns the gateway that serves next, which also opened under disturbances.
pub(super) async fn end(
    end: End,
    serving: Serving,
    next: Setup,
    store: &mut Store,
    proxy: &Proxy,
    ledger: &Ledger,
) -> Gateway {
    let Serving { mut gateway, load, epoch } = serving;
    match end {
        End::Takeover | End::TakeoverOfSleeper => {
            if end == End::TakeoverOfSleeper {
                gateway.process.signal(Signal::STOP);
            }
            let next = next.takeover().start().await;
            gateway.process.signal(Signal::CONT);
            load.end().await;
            let status = gateway.process.exit().await;
            assert!(!status.success(), "a gateway that lost its volume says so");
            return next;
        }
        End::Terminate => {
            gateway.process.signal(Signal::TERM);
            // Requests held by the trap would also delay the closing.
            proxy.pass();
            load.end().await;
            let status = gateway.process.exit().await;
            assert!(status.success(), "{}", gateway.process.output());
            ledger.history.lock().close_answered(epoch);
            return next.start().await;
        }
        End::Kill => {}
        End::KillWithStore => {
            gateway.process.kill().await;
            minio(store).kill().await;
            minio(store).restart().await;
        }
        End::KillStoreFirst => {
            minio(store).kill().await;
            proxy.pass();
            minio(store).restart().await;
            further_answers(ledger).await;
        }
        End::CutFirst => {
            proxy.pass();
            proxy.cut();
            proxy.resume();
            further_answers(ledger).await;
        }
    }
    if end != End::KillWithStore {
        gateway.process.kill().await;
    }
    load.end().await;
    next.takeover().start().await
}

fn minio(store: &mut Store) -> &mut crate::support::minio::Minio {
    match store {
        Store::Minio(minio) => minio,
        Store::Directory(_) => unreachable!("the rounds run on MinIO"),
    }
}

/// Waits until the gateway has answered a number of further commands.
async fn further_answers(ledger: &Ledger) {
    let before = *ledger.answers.borrow();
    let mut answers = ledger.answers.subscribe();
    let waited = answers.wait_for(|count| *count > before + 200);
    crate::support::process::within("the gateway goes on", waited).await.expect("the ledger lives");
}
