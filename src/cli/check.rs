//! `cairn check`: verifies a volume in the store.
//!
//! Owns the exit status of the command, and must not know what is verified. Invariant: the command exits
//! with 1 only for damage; whatever kept it from looking exits with 2.

use super::args::Check;
use super::check_view;
use super::environment::for_reading;
use super::error::Error;
use super::{log, process, settings};
use crate::metrics::Metrics;
use crate::volume::check::{self, Depth, Report};

/// Checks a volume and prints the result.
pub(super) fn checked(args: &Check, metrics: &Metrics) -> Result<(), Error> {
    let config = args.config()?;
    let options = settings::Options::of(&config)?;
    log::start_quiet(&config, metrics.log())?;
    process::raise_descriptor_limit();
    process::block_on(run(args, options, metrics))
}

async fn run(args: &Check, options: settings::Options, metrics: &Metrics) -> Result<(), Error> {
    let store = options.location.to_string();
    let env = for_reading(options, metrics).await?;
    let depth = if args.data { Depth::Data } else { Depth::Structure };
    let report = check::check(&env, &args.name, depth).await;
    let report = report.map_err(|source| Error::Volume { name: args.name.clone(), source })?;
    check_view::print_report(&report, &store, args.json)?;
    if report.is_damaged() {
        return Err(damaged(&report));
    }
    match report.incomplete {
        Some(why) => Err(Error::Unsteady { name: report.name, why }),
        None => Ok(()),
    }
}

/// The error for a damaged volume.
pub(super) fn damaged(report: &Report) -> Error {
    Error::Damaged {
        name: report.name.clone(),
        objects: report.findings.len() as u64 + report.omitted_findings,
        bytes: report.ranges.bytes().saturating_add(report.ranges.omitted_bytes()),
    }
}
