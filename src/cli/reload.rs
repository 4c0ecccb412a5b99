//! SIGHUP: reloads the settings. Settings that can change in a running gateway take effect, and the log names
//! the others.
//!
//! Owns what can change at run time, and must not know how a layer applies it. Invariant: wrong settings
//! change nothing. The credentials of the store are not settings of Cairn; every reload resolves them again.

use std::sync::Arc;

use super::admin::AdminServers;
use super::args;
use super::configured::{only, open_configured};
use super::error::Error;
use super::limits;
use super::listeners::Oldstyle;
use super::log::SetLevel;
use super::settings::Options;
use crate::config::Config;
use crate::gateway::{OpenVolumes, Scheduler, VolumeExports, chain};
use crate::metrics::{Metrics, Reload};
use crate::server::Server;
use crate::store;
use crate::volume::Environment;

/// Keys that take effect at once.
const TAKEN: [&str; 13] = [
    "admin.read_without_token",
    "admin.token_file",
    "cache.clean",
    "cache.dirty",
    "log.level",
    "tls.certificate",
    "tls.client_authorities",
    "tls.key",
    "tls.mode",
    "tls.subjects",
    "volumes.create",
    "volumes.open",
    "volumes.snapshots",
];

/// The settings as they were last read, and how to read them again.
pub(super) struct Settings {
    args: args::Serve,
    config: Config,
    set_level: SetLevel,
    give_memory_back: fn(),
}

/// The parts of a running gateway that settings can change.
pub(super) struct Running<'a> {
    pub(super) env: &'a Environment,
    pub(super) metrics: &'a Metrics,
    pub(super) store: &'a store::Control,
    pub(super) volumes: &'a Arc<OpenVolumes>,
    pub(super) exports: &'a VolumeExports,
    pub(super) scheduler: &'a Scheduler,
    pub(super) server: &'a Server,
    pub(super) admin: Option<&'a AdminServers>,
    /// The addresses for clients that cannot use TLS. They stay, even if the settings have changed.
    pub(super) oldstyle: &'a [Oldstyle],
}

impl Settings {
    pub(super) fn new(
        args: args::Serve,
        config: Config,
        set_level: SetLevel,
        give_memory_back: fn(),
    ) -> Self {
        Self { args, config, set_level, give_memory_back }
    }

    /// Reloads the settings, and exports whether that succeeded.
    pub(super) async fn reload(&mut self, running: &Running<'_>) {
        let result = if self.read_again(running).await { Reload::Applied } else { Reload::Failed };
        running.metrics.gateway().reloaded(result, (running.env.wall_clock)());
    }

    async fn read_again(&mut self, running: &Running<'_>) -> bool {
        // This comes first, because opening a volume needs the credentials.
        running.store.renew_credentials().await;
        let (options, taken) = match self.apply(running) {
            Ok(applied) => applied,
            Err(error) => {
                tracing::error!("the settings were not changed: {}", chain(&error));
                return false;
            }
        };
        if taken.contains(&"cache.clean") {
            running.env.cache.resize(options.clean_bytes).await;
            (self.give_memory_back)();
        }
        let opened = open_configured(running.env, &options, running.volumes).await;
        if taken.is_empty() {
            tracing::info!("settings reloaded: no setting that can change at run time has changed");
        } else {
            tracing::info!("settings reloaded: {} changed", taken.join(", "));
        }
        if let Err(error) = &opened {
            tracing::error!(
                "not every configured volume is open; send SIGHUP to try again: {}",
                chain(error)
            );
        }
        opened.is_ok()
    }

    /// Applies the settings, except for the size of the cache and the volumes to open. Returns the options
    /// and the changed keys.
    fn apply(&mut self, running: &Running<'_>) -> Result<(Options, Vec<&'static str>), Error> {
        let config = self.args.config()?;
        let options = Options::of(&config)?;
        Oldstyle::check(running.oldstyle, options.tls.as_ref())?;
        let changed = config.changed(&self.config);
        (self.set_level)(&config)?;
        let (taken, left): (Vec<_>, Vec<_>) = changed.into_iter().partition(|key| TAKEN.contains(key));
        if !left.is_empty() {
            tracing::warn!("{} changed; restart the gateway to apply this", left.join(", "));
        }
        if let Some(admin) = running.admin {
            admin.set_access(&options);
        }
        running.env.budget.resize(options.dirty_bytes);
        if options.tls.is_some() {
            tracing::info!("certificates reloaded for new connections");
        }
        running.server.set_tls(options.tls.clone());
        limits::export_reloaded(running.metrics, &options);
        let before = Options::of(&self.config)?.configured();
        let now = options.configured();
        for gone in before.iter().filter(|name| !now.contains(name)) {
            running.volumes.unpin(gone);
        }
        running.exports.set_default(only(&now));
        running.scheduler.set(options.snapshots.clone());
        self.config = config;
        Ok((options, taken))
    }
}
