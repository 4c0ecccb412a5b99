//! Names and queries of metadata contexts (NBD `doc/proto.md`, "Metadata querying").
//!
//! Knows the names that the specification, QEMU and Cairn define, and how queries choose from a list of
//! names; must not know exports. Invariant: a query that is not understood matches nothing.

use std::collections::BTreeSet;

use super::codec::{DecodeError, WireString};

/// The context that reports holes and zeros.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// The query of LIST_META_CONTEXT that matches all contexts in the namespace `base`.
pub const BASE_WILDCARD: &str = "base:";

/// Start of the name of a context that reports what has changed since a snapshot: the snapshot's name
/// follows. Its status is [`STATE_DIRTY`] or 0.
pub const CHANGED_SINCE_PREFIX: &str = "cairn:changed-since=";

/// Start of the name of a context that reports what a dirty bitmap has, as QEMU's `docs/interop/nbd.rst`
/// defines it: the bitmap's name follows. Its status is [`STATE_DIRTY`] or 0.
pub const DIRTY_BITMAP_PREFIX: &str = "qemu:dirty-bitmap:";

/// `NBD_STATE_DIRTY`: the extent is dirty, which means that it may have changed.
pub const STATE_DIRTY: u32 = 1;

/// Maximum number of contexts of an export in the answer to one LIST_META_CONTEXT, without wildcards.
pub const MAXIMUM_LISTED: usize = 1024;

/// Maximum number of contexts that a client may select. A SET_META_CONTEXT that asks for more is refused with
/// `NBD_REP_ERR_TOO_BIG`.
pub const MAXIMUM_SELECTED: usize = 16;

/// Checks that every query has a namespace and a colon. The syntax after the colon is defined by each
/// namespace.
pub fn check_queries(queries: &[WireString]) -> Result<(), DecodeError> {
    let well_formed = |query: &WireString| {
        let namespace = query.as_str().split_once(':').map(|(namespace, _)| namespace);
        namespace.is_some_and(|namespace| !namespace.is_empty())
    };
    if queries.iter().all(well_formed) {
        Ok(())
    } else {
        Err(DecodeError::Invalid("query without a namespace and a colon"))
    }
}

/// Returns the contexts that match the queries of a LIST_META_CONTEXT, in the order of `offered`. Without a
/// query, all of them match. A query that ends with a colon matches every context that begins with it, and
/// any other query the context of this name. If more than [`MAXIMUM_LISTED`] match, the first ones are
/// returned, followed by the namespaces of the others as wildcards.
#[must_use]
pub fn listed(queries: &[WireString], offered: Vec<WireString>) -> Vec<WireString> {
    let asked: BTreeSet<&str> = queries.iter().map(WireString::as_str).collect();
    let matches = |context: &WireString| {
        let name = context.as_str();
        let wildcards = || name.match_indices(':').map(|(colon, _)| &name[..=colon]);
        //= Option types: If zero queries are sent, then the server MUST return all the metadata contexts that
        //# are available to the client to select on the given export.
        //= The `base:` metadata namespace: MUST support this as a wildcard during `NBD_OPT_LIST_META_CONTEXT`
        //= Option types: If one or more queries are sent, then the server MUST return those metadata contexts
        //# that are available to the client to select on the given export with `NBD_OPT_SET_META_CONTEXT`,
        //# and which match one or more of the queries given.
        queries.is_empty() || asked.contains(name) || wildcards().any(|wildcard| asked.contains(wildcard))
    };
    let mut matching = offered.into_iter().filter(matches);
    // Who asks for a wildcard gets all that it stands for.
    let most = if queries.is_empty() { MAXIMUM_LISTED } else { usize::MAX };
    let mut listed: Vec<WireString> = matching.by_ref().take(most).collect();
    // "The server MAY, instead of exhaustively listing every matching context available to select, send
    // sufficient context records back to allow a client with knowledge of the namespace to select any
    // context."
    let left_out: BTreeSet<WireString> = matching.filter_map(|context| wildcard_of(&context)).collect();
    listed.extend(left_out);
    listed
}

/// Returns the wildcard that matches the whole namespace of a context.
fn wildcard_of(context: &WireString) -> Option<WireString> {
    let (namespace, _) = context.as_str().split_once(':')?;
    Some(WireString::truncated(&format!("{namespace}:")))
}

/// Returns the contexts that the queries of a SET_META_CONTEXT select, in the order of `offered`: those whose
/// names they are. A wildcard selects nothing.
#[must_use]
pub fn selected(queries: &[WireString], offered: Vec<WireString>) -> Vec<WireString> {
    //= Option types: the server MUST ignore query strings belonging to an unknown namespace
    //= The `base:` metadata namespace: If a `[leaf-name]` requested by the client is not recognized, the
    //# server MUST ignore it rather than report an error.
    //= Option types: If zero queries are sent, the server MUST select no metadata contexts.
    //= The `base:` metadata namespace: the server MUST ignore this form during `NBD_OPT_SET_META_CONTEXT`
    let asked: BTreeSet<&str> = queries.iter().map(WireString::as_str).collect();
    offered.into_iter().filter(|context| asked.contains(context.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<WireString> {
        texts.iter().map(|text| WireString::try_from(*text).unwrap()).collect()
    }

    /// What an export of the snapshot `c` offers that has the siblings `a` and `b`.
    fn offered() -> Vec<WireString> {
        strings(&[
            "base:allocation",
            "cairn:changed-since=b",
            "cairn:changed-since=a",
            "qemu:dirty-bitmap:b",
            "qemu:dirty-bitmap:a",
        ])
    }

    #[track_caller]
    fn lists(queries: &[&str], expected: &[&str]) {
        assert_eq!(listed(&strings(queries), offered()), strings(expected), "{queries:?}");
    }

    #[track_caller]
    fn selects(queries: &[&str], expected: &[&str]) {
        assert_eq!(selected(&strings(queries), offered()), strings(expected), "{queries:?}");
    }

    #[test]
    fn a_wildcard_lists_what_begins_with_it_and_does_not_select() {
        let bitmaps = ["qemu:dirty-bitmap:b", "qemu:dirty-bitmap:a"];
        lists(&["base:"], &["base:allocation"]);
        lists(&["qemu:"], &bitmaps);
        lists(&["qemu:dirty-bitmap:"], &bitmaps);
        lists(
            &["cairn:", "qemu:dirty-bitmap:a"],
            &["cairn:changed-since=b", "cairn:changed-since=a", "qemu:dirty-bitmap:a"],
        );
        lists(&["qemu:dirty-bitmap", "qemu:dirty", "q:", "cairn:changed-since="], &[]);
        selects(&["base:", "qemu:", "qemu:dirty-bitmap:", "cairn:"], &[]);
    }

    #[test]
    fn no_query_lists_all_and_selects_none() {
        assert_eq!(listed(&[], offered()), offered());
        selects(&[], &[]);
    }

    #[test]
    fn exact_names_select_in_the_order_of_the_export_and_once() {
        let both = ["base:allocation", "qemu:dirty-bitmap:a"];
        selects(&["qemu:dirty-bitmap:a", "base:allocation", "qemu:dirty-bitmap:a"], &both);
        lists(&["qemu:dirty-bitmap:a", "base:allocation"], &both);
    }

    #[test]
    fn unknown_namespaces_and_leaves_are_ignored() {
        let unknown = ["qemu:dirty-bitmap:z", "qemu:allocation-depth", "base:nonsense", "x-a:"];
        assert_eq!(check_queries(&strings(&unknown)), Ok(()));
        lists(&unknown, &[]);
        selects(&["x-a:", "base:allocation", "qemu:dirty-bitmap:z"], &["base:allocation"]);
    }

    #[test]
    fn a_long_list_ends_with_the_wildcards_of_what_it_leaves_out() {
        let name = |n: usize| WireString::try_from(format!("qemu:dirty-bitmap:{n}")).unwrap();
        let many: Vec<WireString> = (0..MAXIMUM_LISTED + 2).map(name).collect();
        let all = listed(&[], many.clone());
        assert_eq!(all[..MAXIMUM_LISTED], many[..MAXIMUM_LISTED]);
        assert_eq!(all[MAXIMUM_LISTED..], strings(&["qemu:"]));
        assert_eq!(listed(&[], many[..MAXIMUM_LISTED].to_vec()), many[..MAXIMUM_LISTED]);
        let last = [name(MAXIMUM_LISTED + 1)];
        assert_eq!(selected(&last, many.clone()), last, "it is selected though it is not listed");
        assert_eq!(listed(&last, many), last);
    }

    #[test]
    fn a_query_has_a_namespace_and_a_colon() {
        assert!(check_queries(&strings(&["base"])).is_err());
        assert!(check_queries(&strings(&[":allocation"])).is_err());
    }
}
