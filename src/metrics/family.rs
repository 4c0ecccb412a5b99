//! Families: a family is one metric with its labels. It is registered once, and has one child per combination
//! of label values.
//!
//! This is the only file that turns a [`Definition`] into a metric of the `prometheus` crate. It must not
//! know what the metrics mean. Invariant: the children that were created for an owner are removed together
//! with it, so a closed volume leaves no time series behind.

use std::marker::PhantomData;

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry};

use super::definitions::{Definition, Kind};
use super::labels::Label;

/// The children of a family, one for each value of a label.
#[derive(Clone, Debug)]
pub struct By<L: Label, M> {
    all: Vec<M>,
    label: PhantomData<L>,
}

impl<L: Label, M> By<L, M> {
    /// Creates a child for each value of the label.
    pub(super) fn new(make: impl FnMut(L) -> M) -> Self {
        Self { all: L::ALL.iter().copied().map(make).collect(), label: PhantomData }
    }

    /// Returns the child for a value of the label.
    pub fn of(&self, value: L) -> &M {
        &self.all[value.index()]
    }
}

fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    definition: &Definition,
    kind: Kind,
    made: prometheus::Result<C>,
) -> C {
    assert_eq!(definition.kind, kind, "{} is used as what it is defined as", definition.name);
    let family = made.expect("definitions are valid metrics");
    registry.register(Box::new(family.clone())).expect("definitions have distinct names");
    family
}

/// Registers a family of integer counters.
pub(super) fn counters(registry: &Registry, definition: &Definition) -> IntCounterVec {
    let made = IntCounterVec::new(Opts::new(definition.name, definition.help), definition.labels);
    register(registry, definition, Kind::Counter, made)
}

/// Registers a family of floating-point counters.
pub(super) fn float_counters(registry: &Registry, definition: &Definition) -> prometheus::CounterVec {
    let made = prometheus::CounterVec::new(Opts::new(definition.name, definition.help), definition.labels);
    register(registry, definition, Kind::Counter, made)
}

/// Registers a family of integer gauges.
pub(super) fn gauges(registry: &Registry, definition: &Definition) -> IntGaugeVec {
    let made = IntGaugeVec::new(Opts::new(definition.name, definition.help), definition.labels);
    register(registry, definition, Kind::Gauge, made)
}

/// Registers a family of floating-point gauges.
pub(super) fn float_gauges(registry: &Registry, definition: &Definition) -> prometheus::GaugeVec {
    let made = prometheus::GaugeVec::new(Opts::new(definition.name, definition.help), definition.labels);
    register(registry, definition, Kind::Gauge, made)
}

/// Registers a family of histograms.
pub(super) fn histograms(registry: &Registry, definition: &Definition) -> HistogramVec {
    let options = HistogramOpts::new(definition.name, definition.help).buckets(definition.buckets.to_vec());
    register(registry, definition, Kind::Histogram, HistogramVec::new(options, definition.labels))
}

/// The children that were created for one owner and are removed with it.
#[derive(Default)]
pub(super) struct Owned {
    removals: Vec<Box<dyn Fn() + Send + Sync>>,
}

impl Owned {
    /// Returns a child of a family. [`Owned::remove`] removes it.
    pub(super) fn child<B>(&mut self, family: &MetricVec<B>, labels: &[&str]) -> B::M
    where
        B: MetricVecBuilder + 'static,
    {
        self.remove_later(family, labels);
        family.with_label_values(labels)
    }

    /// Arranges for [`Owned::remove`] to remove a child that may be created later.
    pub(super) fn remove_later<B>(&mut self, family: &MetricVec<B>, labels: &[&str])
    where
        B: MetricVecBuilder + 'static,
    {
        let family = family.clone();
        let labels: Vec<String> = labels.iter().map(ToString::to_string).collect();
        self.removals.push(Box::new(move || {
            // An error means that the child does not exist, which is the desired result.
            drop(family.remove_label_values(&labels));
        }));
    }

    /// Removes every child from its family. Existing handles keep counting, but are no longer exported.
    pub(super) fn remove(&self) {
        for removal in &self.removals {
            removal();
        }
    }
}

impl std::fmt::Debug for Owned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owned").field("children", &self.removals.len()).finish()
    }
}
