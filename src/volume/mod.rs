//! What a disk is.
