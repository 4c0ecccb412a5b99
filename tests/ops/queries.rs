//! What the dashboard, the alerts and the operators' guide say of metrics, held against the metrics that there are.

use std::collections::BTreeSet;

use cairn::metrics::labels::{
    Command, Errno, FoldResult, HandshakeFailure, Label, LogLoss, ObjectKind, ReadAhead, ReadSource,
    StoreClass, StoreOperation, StoreOutcome, Tier, Transport,
};
use cairn::metrics::{Definition, Kind, Metrics};
use serde_json::Value;

const DASHBOARD: &str = include_str!("../../deploy/grafana/cairn.json");
const ALERTS: &str = include_str!("../../deploy/prometheus/alerts.yml");
const GUIDE: &str = include_str!("../../docs/monitoring.md");

/// Labels that Prometheus adds.
const ADDED: [&str; 3] = ["job", "instance", "le"];

fn values<L: Label>() -> BTreeSet<&'static str> {
    L::ALL.iter().map(|label| label.as_str()).collect()
}

/// The values that a label of closed values takes.
fn closed(label: &str, metric: &str) -> Option<BTreeSet<&'static str>> {
    Some(match (label, metric) {
        ("command", _) => values::<Command>(),
        ("errno", _) => values::<Errno>(),
        ("source", _) => values::<ReadSource>(),
        ("kind", _) => values::<ObjectKind>(),
        ("tier", _) => values::<Tier>(),
        ("transport", _) => values::<Transport>(),
        ("reason", "cairn_log_lines_lost_total") => values::<LogLoss>(),
        ("class", _) => values::<StoreClass>(),
        ("reason", _) => values::<HandshakeFailure>(),
        ("operation", _) => values::<StoreOperation>(),
        ("outcome", _) => values::<StoreOutcome>(),
        ("result", "cairn_folds_total") => values::<FoldResult>(),
        ("result", _) => values::<ReadAhead>(),
        _ => return None,
    })
}

/// Every metric that a text names, with what follows the name.
fn named(text: &str) -> Vec<(&str, &str)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(is_name) {
        let word = &rest[start..];
        let end = word.find(|c| !is_name(c)).unwrap_or(word.len());
        let (name, after) = word.split_at(end);
        if name.starts_with("cairn_") || name.starts_with("process_") {
            found.push((name, after));
        }
        rest = after;
    }
    found
}

/// The metric of that name in a query: of a histogram only its buckets, sum and count can be asked for.
fn definition(name: &str) -> Result<Definition, String> {
    let find = |name: &str| Metrics::table().iter().find(|definition| definition.name == name).copied();
    let suffixed = ["_bucket", "_sum", "_count"].iter().filter_map(|suffix| name.strip_suffix(suffix));
    let histogram = suffixed.filter_map(find).find(|definition| definition.kind == Kind::Histogram);
    let plain = find(name).filter(|definition| definition.kind != Kind::Histogram);
    plain.or(histogram).ok_or_else(|| format!("there is no metric {name}"))
}

/// What is wrong with the selector that follows a metric, if one does.
fn check_selector(name: &str, after: &str) -> Result<(), String> {
    let definition = definition(name)?;
    let Some(inside) = after.strip_prefix('{').and_then(|rest| rest.split_once('}')) else { return Ok(()) };
    for matcher in inside.0.split(',') {
        let (label, value) =
            matcher.split_once('=').ok_or_else(|| format!("{name}: no matcher: {matcher}"))?;
        let label = label.trim_end_matches('!');
        if !definition.labels.contains(&label) && !ADDED.contains(&label) {
            return Err(format!("{name} has no label {label}"));
        }
        let value = value.trim_start_matches('~').trim_matches('"');
        if label == "le" && !definition.buckets.iter().any(|bound| bound.to_string() == value) {
            return Err(format!("{name} has no bucket {value}"));
        }
        if let Some(known) = closed(label, definition.name)
            && let Some(odd) = value.split('|').find(|value| !known.contains(value))
        {
            return Err(format!("{name}: {label} is never {odd}"));
        }
    }
    Ok(())
}

/// Checks every metric that a query names, and that it names one.
fn check(query: &str) -> Result<(), String> {
    let named = named(query);
    if named.is_empty() {
        return Err("it names no metric of Cairn".to_owned());
    }
    named.into_iter().try_for_each(|(name, after)| check_selector(name, after))
}

/// Every string under the key `expr`, and every query of a variable.
fn queries(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                match field {
                    Value::String(text) if key == "expr" => found.push(text.clone()),
                    Value::String(text) if key == "query" && text.starts_with("label_values") => {
                        found.push(text.clone());
                    }
                    field => queries(field, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| queries(item, found)),
        _ => {}
    }
}

#[test]
fn every_query_of_the_dashboard_asks_for_what_there_is() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut found = Vec::new();
    queries(&dashboard, &mut found);
    assert!(found.len() > 40, "{} queries", found.len());
    for query in &found {
        check(query).unwrap_or_else(|wrong| panic!("{wrong}, in {query}"));
    }
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "ids of panels are distinct");
}

/// The selector of each metric in a query, without the braces.
fn selectors(query: &str) -> Vec<&str> {
    named(query)
        .into_iter()
        .map(|(_, after)| {
            after.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(is, _)| is)
        })
        .collect()
}

/// Grafana fills in what was chosen at the top. A variable of gateways depends on the chosen jobs alone.
#[test]
fn every_query_of_the_dashboard_asks_for_the_chosen_jobs_and_gateways_alone() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut found = Vec::new();
    queries(&dashboard, &mut found);
    for query in found.iter().filter(|query| query.as_str() != "label_values(cairn_build_info, job)") {
        for selector in selectors(query) {
            assert!(selector.contains("job=~\"$job\""), "{query}");
            let is_variable = query.starts_with("label_values");
            assert!(is_variable || selector.contains("instance=~\"$instance\""), "{query}");
        }
    }
    for name in ["job", "instance", "volume"] {
        let all = dashboard["templating"]["list"].as_array().unwrap();
        let variable = all.iter().find(|variable| variable["name"] == name).unwrap();
        let is_all = variable["multi"] == true && variable["includeAll"] == true;
        assert!(is_all && variable["current"]["value"] == "$__all", "{name} begins with all of them");
    }
    assert_eq!(selectors("rate(cairn_requests_total{job=\"x\"}[5m]) / process_open_fds"), ["job=\"x\"", ""]);
}

/// Whoever is woken looks at it for the first time.
#[test]
fn every_panel_says_what_it_shows() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    for panel in dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row") {
        let description = panel["description"].as_str().unwrap_or_default();
        assert!(description.len() > 20, "{} has the description {description:?}", panel["title"]);
    }
    let drawn: BTreeSet<&str> = named(DASHBOARD).into_iter().map(|(name, _)| name).collect();
    for bound in ["dirty_bytes", "clean_cache_bytes", "connections", "journal_bytes", "lease_seconds"] {
        assert!(drawn.contains(&*format!("cairn_limit_{bound}")), "the bound {bound} is drawn");
    }
}

/// Metrics that no panel shows: others that are drawn say the same, or they are for a closer look.
const NOT_DRAWN: [&str; 23] = [
    "cairn_cache_evictions_total",
    "cairn_commit_bytes_total",
    "cairn_connections_stalled_total",
    "cairn_connections_total",
    "cairn_flatten_remaining_bytes",
    "cairn_fold_duration_seconds",
    "cairn_journal_records",
    "cairn_lease_ttl_seconds",
    "cairn_limit_commit_age_seconds",
    "cairn_limit_journal_records",
    "cairn_limit_open_volumes",
    "cairn_limit_store_requests",
    "cairn_packs",
    "cairn_reload_timestamp_seconds",
    "cairn_server_bytes_in_flight",
    "cairn_snapshot_failures_total",
    "cairn_snapshot_interval_seconds",
    "cairn_snapshot_timestamp_seconds",
    "cairn_snapshots",
    "cairn_store_hedges_total",
    "cairn_store_requests_in_flight",
    "cairn_warm_requests_total",
    "cairn_warmed_bytes_total",
];

#[test]
fn every_metric_is_on_the_dashboard_or_is_left_out_by_name() {
    let drawn: BTreeSet<&str> = named(DASHBOARD)
        .into_iter()
        .filter_map(|(name, _)| definition(name).ok())
        .map(|definition| definition.name)
        .collect();
    let own = Metrics::table().iter().map(|definition| definition.name);
    let left: Vec<&str> = own.filter(|name| name.starts_with("cairn_") && !drawn.contains(name)).collect();
    let listed: BTreeSet<&str> = NOT_DRAWN.into_iter().collect();
    assert_eq!(left.into_iter().collect::<BTreeSet<_>>(), listed, "metrics of Cairn without a panel");
}

#[test]
fn every_alert_asks_for_what_there_is() {
    assert!(named(ALERTS).len() > 10);
    for (name, after) in named(ALERTS) {
        check_selector(name, after).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
}

#[test]
fn every_metric_in_the_guide_exists() {
    for (file, text) in crate::guide::documents() {
        let is_whole = |name: &str| Metrics::table().iter().any(|definition| definition.name == name);
        for (name, after) in
            named(&text).into_iter().filter(|(name, after)| after.starts_with('{') || !is_whole(name))
        {
            check_selector(name, after).unwrap_or_else(|wrong| panic!("{file}: {wrong}"));
        }
    }
}

#[test]
fn a_query_for_what_there_is_not_is_seen() {
    for bad in [
        "cairn_request_total",
        "up",
        "rate(cairn_flush_duration_seconds[5m])",
        "cairn_commits_total_bucket",
        "cairn_commits_total{command=\"read\"}",
        "cairn_requests_total{command=\"reed\"}",
        "cairn_folds_total{result=\"used\"}",
        "cairn_store_requests_total{outcome=~\"ok|good\"}",
        "cairn_flush_duration_seconds_bucket{le=\"1.25\"}",
    ] {
        assert!(check(bad).is_err(), "{bad}");
    }
    for good in [
        "rate(cairn_requests_total{job=\"x\",command=~\"read|write\"}[5m]) / process_open_fds",
        "cairn_flush_duration_seconds_bucket{le=\"1.28\"}",
        "cairn_read_ahead_bytes_total{result=\"wasted\"}",
    ] {
        assert_eq!(check(good), Ok(()), "{good}");
    }
}

/// Rows of a table of metrics: the name of each, and the other cells. A metric may have several rows here.
fn documented(guide: &str) -> Vec<(&str, Vec<String>)> {
    let rows = guide.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows = rows
        .filter_map(|row| row.split_once("` |"))
        .filter(|(name, _)| name.starts_with("cairn_") || name.starts_with("process_"));
    let mut rows: Vec<_> = rows
        .map(|(name, rest)| {
            (name, rest.trim_end_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        })
        .collect();
    rows.sort();
    rows
}

#[test]
fn the_guide_has_every_metric_as_it_is_and_once() {
    let mut expected: Vec<(&str, Vec<String>)> = Metrics::table()
        .iter()
        .map(|definition| {
            let labels = definition.labels.join(", ");
            let cells = [definition.kind.as_str(), definition.unit, &labels, definition.help];
            (definition.name, cells.map(str::to_owned).to_vec())
        })
        .collect();
    expected.sort();
    assert_eq!(documented(GUIDE), expected);
    let row = "| `cairn_x` | gauge | x | | X. |\n";
    assert_eq!(documented(&row.repeat(2)).len(), 2, "a row that is there twice is seen twice");
}
