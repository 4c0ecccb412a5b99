//! Names and queries of metadata contexts (NBD `doc/proto.md`, "Metadata querying").
//!
//! Knows only `base:allocation`, the one context that the specification defines; must not know exports.
//! Invariant: a query that is not understood matches nothing.

use super::codec::{DecodeError, WireString};

/// The context that reports holes and zeros.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// The query of LIST_META_CONTEXT that matches all contexts in the namespace `base`.
pub const BASE_WILDCARD: &str = "base:";

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

/// Whether `base:allocation` matches the queries of a LIST_META_CONTEXT. An empty list matches everything.
#[must_use]
pub fn lists_base_allocation(queries: &[WireString]) -> bool {
    //= Option types: If zero queries are sent, then the server MUST return all the metadata contexts that
    //# are available to the client to select on the given export.
    //= The `base:` metadata namespace: MUST support this as a wildcard during `NBD_OPT_LIST_META_CONTEXT`
    queries.is_empty()
        || queries.iter().any(|query| matches!(query.as_str(), BASE_ALLOCATION | BASE_WILDCARD))
}

/// Whether the queries of a SET_META_CONTEXT select `base:allocation`. A wildcard selects nothing.
#[must_use]
pub fn selects_base_allocation(queries: &[WireString]) -> bool {
    //= Option types: the server MUST ignore query strings belonging to an unknown namespace
    //= The `base:` metadata namespace: If a `[leaf-name]` requested by the client is not recognized, the
    //# server MUST ignore it rather than report an error.
    //= Option types: If zero queries are sent, the server MUST select no metadata contexts.
    //= The `base:` metadata namespace: the server MUST ignore this form during `NBD_OPT_SET_META_CONTEXT`
    queries.iter().any(|query| query.as_str() == BASE_ALLOCATION)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queries(texts: &[&str]) -> Vec<WireString> {
        texts.iter().map(|text| WireString::try_from(*text).unwrap()).collect()
    }

    #[test]
    fn the_wildcard_lists_and_does_not_select() {
        assert!(lists_base_allocation(&queries(&["base:"])));
        assert!(!selects_base_allocation(&queries(&["base:"])));
    }

    #[test]
    fn no_query_lists_all_and_selects_none() {
        assert!(lists_base_allocation(&[]));
        assert!(!selects_base_allocation(&[]));
    }

    #[test]
    fn unknown_namespaces_and_leaves_are_ignored() {
        let unknown = queries(&["qemu:dirty-bitmap:a", "base:nonsense"]);
        assert_eq!(check_queries(&unknown), Ok(()));
        assert!(!lists_base_allocation(&unknown));
        assert!(selects_base_allocation(&queries(&["x-a:", "base:allocation"])));
    }

    #[test]
    fn a_query_has_a_namespace_and_a_colon() {
        assert!(check_queries(&queries(&["base"])).is_err());
        assert!(check_queries(&queries(&[":allocation"])).is_err());
    }
}
