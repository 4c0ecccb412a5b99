//! Names and queries of metadata contexts (NBD `doc/proto.md`, "Metadata querying").
//!
//! Knows the one context that the specification defines, `base:allocation`.

use super::codec::{DecodeError, WireString};

/// The context that tells holes and zeros.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// The query of LIST_META_CONTEXT for all of the namespace `base`.
pub const BASE_WILDCARD: &str = "base:";

/// Whether every query has a namespace and a colon; the rest of its syntax is the namespace's matter.
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

/// Whether LIST_META_CONTEXT with these queries finds `base:allocation`. No query at all asks for everything.
#[must_use]
pub fn lists_base_allocation(queries: &[WireString]) -> bool {
    queries.is_empty()
        || queries.iter().any(|query| matches!(query.as_str(), BASE_ALLOCATION | BASE_WILDCARD))
}

/// Whether SET_META_CONTEXT with these queries selects `base:allocation`. A wildcard selects nothing.
#[must_use]
pub fn selects_base_allocation(queries: &[WireString]) -> bool {
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
