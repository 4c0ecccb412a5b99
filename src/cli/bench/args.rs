//! The grammar of `cairn bench`.
//!
//! Owns the arguments and their limits, and must not know what a command does. Invariant: a [`Plan`] is
//! bounded in time, in the bytes that it stores, and in memory.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::load::Plan;
use crate::cli::error::Error;
use crate::config::{self, Config, Flag, FlagValue, Size};

/// Limit on the bytes in flight, which are all in memory.
const MAX_IN_FLIGHT_BYTES: u64 = 1 << 30;

#[derive(Clone, Debug, Subcommand)]
pub(in crate::cli) enum Action {
    /// Measure PUT, GET and GET of 4 KiB in a store, through the gateway's own client and its settings;
    /// deletes what it wrote, also when it is interrupted
    Store(Store),
}

impl Action {
    /// Loads the settings, with the store of the command line taking precedence.
    pub(in crate::cli) fn config(&self) -> Result<Config, config::Errors> {
        let Self::Store(args) = self;
        let url = FlagValue::One(args.url.clone());
        let flag = Flag { key: "store.url", flag: "URL", value: url };
        config::load(args.config.as_deref(), std::env::vars_os(), vec![flag])
    }
}

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Store {
    /// The store to measure, which must exist: file:///path, file://./path or s3://bucket/prefix
    url: String,
    /// Configuration file (TOML); environment variables (CAIRN_<SECTION>__<KEY>) override it
    #[allow(rustdoc::invalid_html_tags, reason = "clap prints this text as it is")]
    #[arg(long, value_name = "FILE", env = config::CONFIG_FILE)]
    config: Option<PathBuf>,
    /// Size of the objects; the default is the size of a chunk
    #[arg(long, default_value = "4MiB")]
    size: Size,
    /// Number of requests at a time, at most store.concurrency
    #[arg(long, value_name = "REQUESTS", default_value_t = 16)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: u32,
    /// Time limit of each of the three measurements
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Limit on the bytes that each measurement transfers; the first one needs as much space in the store
    #[arg(long, default_value = "1GiB")]
    bytes: Size,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl Store {
    /// Checks the arguments against each other. `limit` is the maximum number of requests of a class.
    pub(super) fn plan(&self, limit: usize) -> Result<Plan, Error> {
        let Self { size: Size(size_bytes), bytes: Size(bytes), concurrency, .. } = *self;
        let concurrency = usize::try_from(concurrency).expect("32 bits fit a usize");
        let in_flight = size_bytes.saturating_mul(u64::from(self.concurrency));
        let mistake = if size_bytes == 0 {
            "--size must not be 0".to_owned()
        } else if bytes < size_bytes {
            format!("--bytes {} is less than one object of --size {}", self.bytes, self.size)
        } else if concurrency > limit {
            format!("--concurrency {concurrency} exceeds store.concurrency, which is {limit}")
        } else if in_flight > MAX_IN_FLIGHT_BYTES {
            let limit = Size(MAX_IN_FLIGHT_BYTES);
            format!("--concurrency times --size is {}, more than {limit}", Size(in_flight))
        } else {
            let seconds = Duration::from_secs(u64::from(self.seconds));
            return Ok(Plan { size_bytes, concurrency, time_limit: seconds, bytes });
        };
        Err(Error::Mistake(mistake))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Store,
    }

    fn plan(line: &str, limit: usize) -> Result<Plan, String> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        let Line { args } = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        args.plan(limit).map_err(|error| error.to_string())
    }

    #[test]
    fn a_plan_is_bounded() {
        let time_limit = Duration::from_secs(10);
        let default = Plan { size_bytes: 4 << 20, concurrency: 16, time_limit, bytes: 1 << 30 };
        assert_eq!(plan("s3://b", 64), Ok(default));
        let most = "file:///x --size 32MiB --concurrency 32 --seconds 3600 --bytes 10GiB";
        assert!(plan(most, 32).is_ok());
        for (line, why) in [
            ("", "URL"),
            ("s3://b --size 0", "--size must not be 0"),
            ("s3://b --size 2MiB --bytes 1MiB", "--bytes 1MiB is less than one object of --size 2MiB"),
            ("s3://b --concurrency 65", "store.concurrency, which is 64"),
            ("s3://b --concurrency 33 --size 32MiB", "more than 1GiB"),
            ("s3://b --size 16EiB", "16 EiB"),
            ("s3://b --size 15EiB --bytes 15EiB", "more than 1GiB"),
            ("s3://b --concurrency 0", "--concurrency"),
            ("s3://b --seconds 0", "--seconds"),
            ("s3://b --seconds 3601", "--seconds"),
        ] {
            let error = plan(line, 64).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
    }
}
