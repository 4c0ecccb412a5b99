//! Where a volume begins: its name, identity, head, root and root table.
//!
//! Must not know what a root references. Invariant: a volume that is being created or deleted is not reported
//! as damaged. Its name refers to it only while all of these objects exist.

use super::context::{Context, Stop};
use super::report::{Depth, ObjectKind, Report};
use super::suspects::{Loss, Part, Suspects};
use crate::store;
use crate::volume::catalog;
use crate::volume::environment::Environment;
use crate::volume::error::OpenError;
use crate::volume::format::head::Head;
use crate::volume::format::identity::Identity;
use crate::volume::format::keys::{self, Keys, Parsed};
use crate::volume::format::root::{Root, RootTable};
use crate::volume::objects::{fetch, read_head};

/// Finds the volume and reads its head. Returns `None` if either is damaged or missing, which is noted.
pub(super) async fn find<'a>(
    env: &'a Environment,
    name: &str,
    depth: Depth,
    report: &mut Report,
    suspects: &mut Suspects,
) -> Result<Option<Context<'a>>, Stop> {
    let volume = match catalog::resolve(env, name).await {
        Ok(volume) => volume,
        Err(OpenError::Damaged { source, .. }) => {
            suspects.note(keys::name(name), ObjectKind::Name, Loss::damaged(source), Part::Opening);
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    report.volume = Some(volume);
    let keys = Keys::new(volume);
    let loss = match read_head(env, keys).await {
        Ok((head, _)) if !head.state.is_live() => return Err(OpenError::Deleting.into()),
        Ok((head, _)) => {
            report.epoch = Some(head.epoch);
            return Ok(Some(Context { env, keys, head, depth }));
        }
        Err(OpenError::Store(store::Error::NotFound { .. })) => Loss::missing(),
        Err(OpenError::Damaged { source, .. }) => Loss::damaged(source),
        Err(error) => return Err(error.into()),
    };
    // A deletion takes the name from the volume before it deletes the head.
    if catalog::resolve(env, name).await? != volume {
        return Err(Stop::Moved);
    }
    suspects.note(keys.head(), ObjectKind::Head, loss, Part::Opening);
    Ok(None)
}

/// The root and the root table, as far as they can be read.
#[derive(Debug)]
pub(super) struct Basis {
    pub(super) root: Option<Root>,
    pub(super) table: Option<RootTable>,
}

/// Checks the identity, the root and the root table.
pub(super) async fn check(context: &Context<'_>, suspects: &mut Suspects) -> Result<Basis, Stop> {
    let identity = check_identity(context, suspects).await?;
    let (sealing, Head { root, root_table, checkpoint, .. }) = (context.keys.sealing(), &context.head);
    let object = Parsed::Root(*root);
    let decode = |bytes: &[u8]| Root::decode(sealing, *root, bytes);
    let read = context.fetch(object, decode).await?;
    let root = read.map_err(|loss| context.note(suspects, object, loss, Part::Opening)).ok();
    if let Some(root) = &root {
        let wrong = if identity.as_ref().is_some_and(|identity| identity.geometry != root.geometry) {
            Some("its chunk size is not that of the identity".to_owned())
        } else if root.commit > checkpoint.slot {
            Some(format!("it contains {:?}, beyond the checkpoint of the head", root.commit))
        } else {
            None
        };
        if let Some(why) = wrong {
            context.note(suspects, object, Loss::damaged(why), Part::Opening);
        }
    }
    let object = Parsed::Root(*root_table);
    let decode = |bytes: &[u8]| RootTable::decode(sealing, *root_table, bytes);
    let read = context.fetch(object, decode).await?;
    let table = read.map_err(|loss| context.note(suspects, object, loss, Part::Opening)).ok();
    if let Some(table) = &table
        && table.roots.last().is_none_or(|last| last.root != context.head.root)
    {
        let why = "its last root is not the one that the head references";
        context.note(suspects, object, Loss::damaged(why), Part::Unread);
    }
    Ok(Basis { root, table })
}

async fn check_identity(context: &Context<'_>, suspects: &mut Suspects) -> Result<Option<Identity>, Stop> {
    let (volume, key) = (context.volume(), context.keys.identity());
    let loss = match fetch(context.env, &key, |bytes| Identity::decode(volume, bytes)).await {
        Ok((identity, _)) => return Ok(Some(identity)),
        Err(OpenError::Store(store::Error::NotFound { .. })) => Loss::missing(),
        Err(OpenError::Damaged { source, .. }) => Loss::damaged(source),
        Err(error) => return Err(error.into()),
    };
    // The identity is deleted after the head.
    context.head_now().await?;
    suspects.note(key, ObjectKind::Identity, loss, Part::Opening);
    Ok(None)
}
