//! Listings, page by page, in whatever order the store returns its keys.
//!
//! Owns how the pages of a listing follow one another, and must not know what is listed. S3 directory buckets
//! list keys in no order, and some stores send empty pages. Invariant: this code assumes no order of keys,
//! and only a page without a token ends a listing, not an empty page.

use std::sync::Arc;

use super::error::cause;
use super::{Error, Store};
use crate::mutant::{self, Mutant};

/// Number of keys in a page if the store itself decides: as many as S3 returns.
pub(super) const PAGE_ENTRIES: usize = 1000;

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key, relative to the root of the store.
    pub key: String,
    /// Size of the object in bytes.
    pub size_bytes: u64,
}

/// Where the next page of a listing begins, as the store says. Opaque: it is only passed back to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageToken(pub Arc<str>);

/// Where a page of a listing begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListFrom {
    /// At the first key.
    #[default]
    Start,
    /// After this key, in the order of bytes. A store whose listings have no order starts at its first key,
    /// so such a listing may also contain keys up to this one.
    After(String),
    /// Where an earlier page of the same listing ended.
    Page(PageToken),
}

/// One page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The entries, in no particular order. May be empty although more pages follow.
    pub entries: Vec<Entry>,
    /// Where the next page begins; `None` on the last page.
    pub next: Option<PageToken>,
}

/// The pages of a listing, one after another.
#[derive(Debug)]
pub struct Pages<'a> {
    store: &'a dyn Store,
    prefix: &'a str,
    /// Keys up to and including this one are skipped.
    after: Option<&'a str>,
    /// Where the next page begins; `None` after the last page.
    next: Option<ListFrom>,
}

impl<'a> Pages<'a> {
    /// Lists all keys that begin with `prefix`.
    #[must_use]
    pub fn new(store: &'a dyn Store, prefix: &'a str) -> Self {
        Self { store, prefix, after: None, next: Some(ListFrom::Start) }
    }

    /// Lists the keys that begin with `prefix` and follow `after` in the order of bytes.
    #[must_use]
    pub fn after(store: &'a dyn Store, prefix: &'a str, after: &'a str) -> Self {
        let next = Some(ListFrom::After(after.to_owned()));
        Self { store, prefix, after: Some(after), next }
    }

    /// Returns the entries of the next page, which may be empty, or `None` after the last page.
    ///
    /// # Errors
    /// Those of [`Store::list`]; [`Error::Rejected`] if a page refers to itself as the next page.
    pub async fn next(&mut self) -> Result<Option<Vec<Entry>>, Error> {
        let Some(from) = &self.next else { return Ok(None) };
        let Listing { mut entries, next } = self.store.list(self.prefix, from).await?;
        let next = next.map(ListFrom::Page);
        if next.is_some() && next == self.next {
            let source = cause("a page of the listing refers to itself as the next page");
            return Err(Error::Rejected { key: self.prefix.to_owned(), source });
        }
        self.next = next.filter(|_| !(entries.is_empty() && mutant::is(Mutant::EmptyPageEnds)));
        if let Some(after) = self.after {
            entries.retain(|entry| entry.key.as_str() > after);
        }
        Ok(Some(entries))
    }

    /// Returns whether no page has an entry.
    ///
    /// # Errors
    /// Those of [`Pages::next`].
    pub async fn are_empty(mut self) -> Result<bool, Error> {
        while let Some(entries) = self.next().await? {
            if !entries.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
