//! The steps between two states, as a violation prints them.

use std::fmt;

use super::gateway::{Deletion, Lease};
use super::map::{Change, Number, Object, Plan};

/// A step between two states.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Flushes(Change),
    Opens { gateway: usize },
    Begins { gateway: usize, number: Number, changes: Vec<Change>, plan: Plan },
    Puts { gateway: usize, object: Object },
    Fails { gateway: usize, object: Object },
    GoesOn { gateway: usize, object: Object },
    Lands { object: Object },
    Publishes { gateway: usize, number: Number },
    IsRefused { gateway: usize, number: Number },
    HasAnswer { gateway: usize, number: Number },
    GivesUp { gateway: usize, number: Number },
    ReadsHead { gateway: usize, is_ours: bool },
    Lists { gateway: usize, deletion: Deletion },
    FindsMissing { gateway: usize, root: Number },
    Deletes { gateway: usize, object: Object },
    Closes { gateway: usize, lease: Lease },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flushes(Change { block, value: 0 }) => write!(f, "a client zeroes block {block}"),
            Self::Flushes(Change { block, value }) => write!(f, "a client writes {value} to block {block}"),
            Self::Opens { gateway } => write!(f, "G{gateway} opens the volume"),
            Self::Begins { gateway, number, changes, plan } => {
                write!(f, "G{gateway} begins checkpoint {number} of {changes:?}: {plan:?}")
            }
            Self::Puts { gateway, object } => write!(f, "G{gateway} puts {object:?}"),
            Self::Fails { gateway, object } => write!(f, "G{gateway} puts {object:?} in vain, gives up"),
            Self::GoesOn { gateway, object } => write!(f, "G{gateway} puts {object:?}, goes on at once"),
            Self::Lands { object } => write!(f, "  {object:?} lands late"),
            Self::Publishes { gateway, number } => write!(f, "G{gateway} publishes checkpoint {number}"),
            Self::IsRefused { gateway, number } => write!(f, "G{gateway} is refused checkpoint {number}"),
            Self::HasAnswer { gateway, number } => {
                write!(f, "G{gateway} knows checkpoint {number} published")
            }
            Self::GivesUp { gateway, number } => write!(f, "G{gateway} believes checkpoint {number} refused"),
            Self::ReadsHead { gateway, is_ours } => {
                write!(f, "G{gateway} reads the head, its own: {is_ours}")
            }
            Self::Lists { gateway, deletion: Deletion { reason, list, .. } } => {
                write!(f, "G{gateway} will delete {list:?}: {reason:?}")
            }
            Self::FindsMissing { gateway, root } => write!(f, "G{gateway} finds root {root} deleted"),
            Self::Deletes { gateway, object } => write!(f, "G{gateway} deletes {object:?}"),
            Self::Closes { gateway, lease } => write!(f, "G{gateway} closes the volume: {lease:?}"),
        }
    }
}
