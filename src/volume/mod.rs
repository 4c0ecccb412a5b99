//! What a disk is.

pub mod base;
pub mod cache;
mod change;
pub mod chunk;
pub mod codec;
mod commit;
pub mod error;
mod fence;
pub mod frame;
pub mod geometry;
pub mod head;
pub mod identity;
pub mod interval;
pub mod keys;
pub mod layer;
pub mod map;
pub mod options;
pub mod pack;
pub mod page_set;
pub mod piece;
pub mod read;
pub mod record;
pub mod root;
pub mod shared;
pub mod state;
mod store_exact;
mod upload;
