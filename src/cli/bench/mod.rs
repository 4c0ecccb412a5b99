//! `cairn bench`: measures what lies below a disk, through the client that the gateway uses.
//!
//! Owns the course of a measurement: open, measure, delete. It must not know how requests are sent or
//! retried. Invariant: every key that was written is below one prefix of its own, and is deleted at the end,
//! also after an error or a signal.

mod args;
mod load;
mod report;

use std::pin::pin;

pub(super) use args::{Action, Store};

use self::load::{Bench, Done};
use super::environment::environment;
use super::error::Error;
use super::process::{Asked, Signals};
use super::settings::Options;
use crate::metrics::Metrics;
use crate::store::{Setup, probe};

/// Executes a command.
pub(super) async fn run(action: Action, options: Options, metrics: &Metrics) -> Result<(), Error> {
    match action {
        Action::Store(args) => store(args, options, metrics).await,
    }
}

async fn store(args: Store, options: Options, metrics: &Metrics) -> Result<(), Error> {
    let plan = args.plan(options.store.concurrency)?;
    let mut options = options.impatient();
    // A measurement creates nothing that it does not delete: no store, no bucket, no record of a probe.
    options.store.setup = Setup::Existing;
    options.store.s3.create_bucket = false;
    options.store.probe = None;
    // What the store itself needs for each request is measured.
    options.store.hedge.percent = 0;
    let (env, _) = environment(&options, metrics).await?;
    let prefix = format!("{}bench-{}/", probe::PREFIX, env.entropy.uuid().simple());
    let bench = Bench::new(env.store, metrics.store(), prefix, plan, env.entropy.next_u64());
    let results = until_signalled(&bench).await?;
    report::print(&options.location.to_string(), plan, &results, args.json)
}

/// Measures and deletes. The first signal ends the measurement early; the second one also ends the deletion.
async fn until_signalled(bench: &Bench) -> Result<Vec<Done>, Error> {
    let mut signals = Signals::new()?;
    let mut work = pin!(async {
        let measured = bench.measure().await;
        (measured, bench.clean().await)
    });
    let by = tokio::select! {
        (measured, cleaned) = &mut work => {
            let measured = measured?;
            return cleaned.map(|()| measured);
        }
        asked = signals.asked() => name(asked),
    };
    bench.stop();
    tokio::select! {
        (_, cleaned) = &mut work => cleaned.and(Err(Error::Stopped { by })),
        _ = signals.asked() => Err(bench.left_behind("a second signal ended the deletion")),
    }
}

fn name(asked: Asked) -> &'static str {
    match asked {
        Asked::End(name) => name,
        // The terminal was closed.
        Asked::Reload => "SIGHUP",
    }
}
