//! The rows of the table: what each measures, its goal, and which results of the phases are its figures.
//!
//! Must not know how a figure is measured. Invariant: a figure that was not measured is absent, never 0.

use serde::Serialize;
use serde_json::Value;

use crate::Results;

/// A row of the table.
pub(crate) struct Row {
    pub(crate) id: &'static str,
    pub(crate) work: &'static str,
    pub(crate) goal: &'static str,
    figures: fn(&Results) -> Vec<Option<Figure>>,
}

/// A number, and the bound that it has to keep, if any.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) bound: Option<Bound>,
}

/// The goal of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

use Bound::{AtLeast, AtMost};

/// All rows, in the order of the table.
pub(crate) const ROWS: &[Row] = &[
    Row {
        id: "1",
        work: "full disk of 8 GiB, 2 GiB of uniform random writes: bytes uploaded for each byte written",
        goal: "≤ 4.0",
        figures: |results| {
            let of = |key| number(results, "uniform/overwrite", key);
            vec![
                figure("uploaded", of("/amplification"), "", Some(AtMost(4.0))),
                figure("before the drain", of("/amplification_before_drain"), "", None),
            ]
        },
    },
    Row {
        id: "1b",
        work: "the same, 16 GiB of writes; and the last GiB of them against the mean",
        goal: "≤ 4.5; ≤ 1.2",
        figures: |results| {
            let of = |key| number(results, "steady/overwrite", key);
            let mean = of("/amplification");
            let last = of("/amplification_of_last_gib").zip(mean).map(|(last, mean)| last / mean);
            vec![
                figure("uploaded", mean, "", Some(AtMost(4.5))),
                figure("last GiB", last, "of the mean", Some(AtMost(1.2))),
            ]
        },
    },
    Row {
        id: "2",
        work: "disk of 64 GiB, 1 page of each chunk allocated, 8 GiB of uniform random writes: as row 1",
        goal: "≤ 4.0",
        figures: |results| amplification(results, "wide/overwrite", 4.0),
    },
    Row {
        id: "3",
        work: "the same, 90% of the writes to a tenth of the disk",
        goal: "≤ 3.5",
        figures: |results| amplification(results, "skewed/overwrite", 3.5),
    },
    Row {
        id: "4",
        work: "1 GiB written in order to an empty disk, with one flush at the end: as row 1",
        goal: "≤ 1.02",
        figures: |results| amplification(results, "sequential/overwrite", 1.02),
    },
    Row {
        id: "5",
        work: "bytes stored for each live byte during rows 1 to 3, at the fullest moment; no grace period",
        goal: "≤ 2.0",
        figures: |results| {
            let fullest = |row: &str, phase| {
                figure(row, number(results, phase, "/fullest_ratio"), "", Some(AtMost(2.0)))
            };
            vec![
                fullest("row 1", "uniform/overwrite"),
                fullest("row 1b", "steady/overwrite"),
                fullest("row 2", "wide/overwrite"),
                fullest("row 3", "skewed/overwrite"),
            ]
        },
    },
    Row {
        id: "6",
        work: "PUT requests besides those of the journal, for each GiB written in row 1",
        goal: "≤ 450",
        figures: |results| {
            let of = |key| number(results, "uniform/overwrite", key);
            let puts = of("/puts_besides_journal").zip(of("/written_bytes"));
            let per_gib = puts.map(|(puts, written)| puts / (written / GIB));
            vec![figure("requests", per_gib, "", Some(AtMost(450.0)))]
        },
    },
    Row {
        id: "7",
        work: "50,000 random reads after row 1 with an empty cache: GET requests and bytes for each of them",
        goal: "≤ 1.05; ≤ 8,192",
        figures: |results| {
            let of = |key| number(results, "uniform/cold", key);
            vec![
                figure("requests", of("/gets_per_read"), "", Some(AtMost(1.05))),
                figure("bytes", of("/bytes_per_read"), "", Some(AtMost(8192.0))),
            ]
        },
    },
    Row {
        id: "8",
        work: "50,000 random blocks of a disk of 64 GiB, read twice with `cache.clean = 256MiB`: hits of the second pass",
        goal: "≥ 95%",
        figures: |results| {
            let hits = number(results, "hot/hot", "/hits").map(|hits| hits * 100.0);
            vec![figure("hits", hits, "%", Some(AtLeast(95.0)))]
        },
    },
    Row {
        id: "9",
        work: "opening after row 1, and on 1 TiB after random writes to 100,000 blocks in each of 4 map pages, with a \
               store 20 ms away: time; memory above idle, once all of these map pages were used",
        goal: "≤ 1 s; ≤ 64 MiB",
        figures: |results| {
            [("after row 1", "uniform/open"), ("on 1 TiB", "terabyte/open")]
                .into_iter()
                .flat_map(|(name, phase)| {
                    let memory = number(results, phase, "/above_idle_after_reads_bytes");
                    [
                        figure(name, number(results, phase, "/seconds"), "s", Some(AtMost(1.0))),
                        figure(name, memory.map(|bytes| bytes / MIB), "MiB", Some(AtMost(64.0))),
                    ]
                })
                .collect()
        },
    },
    Row {
        id: "10",
        work: "peak of resident memory in all of these, in the phase that comes closest to the bound",
        goal: "≤ clean + dirty + 96 MiB",
        figures: |results| vec![peak(results)],
    },
    Row {
        id: "11",
        work: "rate of reading the disk of row 1 in order with an empty cache, against the freshly written disk; the same \
               after consolidation",
        goal: "≥ 0.5; ≥ 0.95",
        figures: |results| {
            let rate = |phase| number(results, phase, "/mib_per_second");
            let fresh = rate("uniform/read-fresh");
            let against = |phase| rate(phase).zip(fresh).map(|(rate, fresh)| rate / fresh);
            let fetched = |name: &str, phase| {
                let fetched = number(results, phase, "/fetched_for_each_byte");
                figure(format!("fetched for each byte, {name}"), fetched, "", None)
            };
            vec![
                figure("overwritten", against("uniform/read-overwritten"), "", Some(AtLeast(0.5))),
                figure("consolidated", against("uniform/read-consolidated"), "", Some(AtLeast(0.95))),
                fetched("fresh", "uniform/read-fresh"),
                fetched("overwritten", "uniform/read-overwritten"),
            ]
        },
    },
];

const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1024.0 * MIB;

impl Row {
    /// The figures that were measured.
    pub(crate) fn figures(&self, results: &Results) -> Vec<Figure> {
        (self.figures)(results).into_iter().flatten().collect()
    }

    /// Whether every figure was measured and keeps its bound.
    pub(crate) fn is_met(&self, results: &Results) -> bool {
        (self.figures)(results).iter().all(|figure| figure.as_ref().is_some_and(Figure::is_met))
    }
}

impl Figure {
    fn is_met(&self) -> bool {
        match self.bound {
            None => true,
            Some(AtMost(most)) => self.value <= most,
            Some(AtLeast(least)) => self.value >= least,
        }
    }
}

fn number(results: &Results, phase: &str, pointer: &str) -> Option<f64> {
    results.get(phase)?.pointer(pointer).and_then(Value::as_f64)
}

fn figure(
    name: impl Into<String>,
    value: Option<f64>,
    unit: &'static str,
    bound: Option<Bound>,
) -> Option<Figure> {
    value.map(|value| Figure { name: name.into(), value, unit, bound })
}

fn amplification(results: &Results, phase: &str, most: f64) -> Vec<Option<Figure>> {
    vec![figure("uploaded", number(results, phase, "/amplification"), "", Some(AtMost(most)))]
}

/// The peak that is the largest part of its bound.
fn peak(results: &Results) -> Option<Figure> {
    let peaks = results.keys().filter_map(|phase| {
        let of = |key| number(results, phase, key);
        Some((phase, of("/memory/peak_bytes")?, of("/memory/bound_bytes")?))
    });
    let (phase, peak, bound) = peaks.max_by(|a, b| (a.1 / a.2).total_cmp(&(b.1 / b.2)))?;
    figure(phase.clone(), Some(peak / MIB), "MiB", Some(AtMost(bound / MIB)))
}
