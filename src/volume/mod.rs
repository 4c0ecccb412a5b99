//! What a disk is.

pub mod chunk;
pub mod codec;
pub mod frame;
pub mod geometry;
pub mod head;
pub mod identity;
pub mod keys;
pub mod map;
pub mod page_set;
pub mod record;
pub mod root;
