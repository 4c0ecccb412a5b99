//! Converts the text format 0.0.4, which the `prometheus` crate writes, to OpenMetrics 1.0.
//!
//! Must not know any metric. Invariant: only two things change. The name of a counter family loses its suffix
//! `_total`, and the text ends with `# EOF`. Neither the older format nor the crate has exemplars.

use std::borrow::Cow;

/// Returns the text in the newer format.
pub(super) fn of(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 64);
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        // The line after the help is the type, which decides the name of the family in both lines.
        let is_counter = |line: &str| line.starts_with("# TYPE ") && line.ends_with(" counter");
        let counter = is_counter(line)
            || line.starts_with("# HELP ") && lines.peek().is_some_and(|next| is_counter(next));
        let line = if counter { without_total(line) } else { Cow::Borrowed(line) };
        out.push_str(&line);
        out.push('\n');
    }
    out.push_str("# EOF\n");
    out
}

fn without_total(line: &str) -> Cow<'_, str> {
    match line.split_once("_total ") {
        Some((before, after)) => Cow::Owned(format!("{before} {after}")),
        None => Cow::Borrowed(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of the specification, sections 1.2 (overall structure) and 3.3 (counter).
    #[test]
    fn counters_are_families_without_total_and_the_text_ends() {
        let text = "# HELP a_total Some total words.\n# TYPE a_total counter\na_total{x=\"_total \"} 1\n\
            # HELP b Nothing.\n# TYPE b gauge\nb 2\n";
        let expected = "# HELP a Some total words.\n# TYPE a counter\na_total{x=\"_total \"} 1\n\
            # HELP b Nothing.\n# TYPE b gauge\nb 2\n# EOF\n";
        assert_eq!(of(text), expected);
        assert_eq!(of(""), "# EOF\n");
    }
}
