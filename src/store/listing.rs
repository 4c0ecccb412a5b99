//! Listings: page by page, in whatever order the store has its keys.
//!
//! Knows nothing of what is listed. Invariant: no order of keys is assumed, and an empty page ends nothing:
//! only a page without a token does. S3 directory buckets list in no order; other stores send empty pages.

use std::sync::Arc;

use super::error::cause;
use super::{Error, Store};
use crate::mutant::{self, Mutant};

/// Keys in a page of a listing, where the store itself decides: as many as S3 gives.
pub(super) const PAGE_ENTRIES: usize = 1000;

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Key relative to the store's root.
    pub key: String,
    /// Size of the object in bytes.
    pub size_bytes: u64,
}

/// Where the next page of a listing begins, in the store's own words: never read, only given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageToken(pub Arc<str>);

/// Where a page of a listing begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListFrom {
    /// At the beginning.
    #[default]
    Start,
    /// Behind this key, in the order of bytes. A store whose listings have no order begins at the beginning:
    /// keys up to this one may be listed all the same.
    After(String),
    /// Where an earlier page of the same listing ended.
    Page(PageToken),
}

/// One page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Entries in no particular order; possibly none although more follow.
    pub entries: Vec<Entry>,
    /// Where the next page begins; `None` on the last one.
    pub next: Option<PageToken>,
}

/// The pages of a listing, one after another.
#[derive(Debug)]
pub struct Pages<'a> {
    store: &'a dyn Store,
    prefix: &'a str,
    /// Only keys behind this one are wanted.
    after: Option<&'a str>,
    /// Where the next page begins; `None` behind the last one.
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

    /// The entries of the next page, possibly none; `None` behind the last page.
    ///
    /// # Errors
    /// Those of [`Store::list`]; [`Error::Rejected`] where the listing does not move on.
    pub async fn next(&mut self) -> Result<Option<Vec<Entry>>, Error> {
        let Some(from) = &self.next else { return Ok(None) };
        let Listing { mut entries, next } = self.store.list(self.prefix, from).await?;
        let next = next.map(ListFrom::Page);
        if next.is_some() && next == self.next {
            let source = cause("a page of the listing says that the next page is the same page");
            return Err(Error::Rejected { key: self.prefix.to_owned(), source });
        }
        self.next = next.filter(|_| !(entries.is_empty() && mutant::is(Mutant::EmptyPageEnds)));
        if let Some(after) = self.after {
            entries.retain(|entry| entry.key.as_str() > after);
        }
        Ok(Some(entries))
    }

    /// Whether no page has an entry.
    ///
    /// # Errors
    /// As [`Pages::next`].
    pub async fn are_empty(mut self) -> Result<bool, Error> {
        while let Some(entries) = self.next().await? {
            if !entries.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
