//! A volume that is filled before it is complete and gets its name: an import.
//!
//! Owns the identity, the head, the root and the name of such a volume. It must not know what the volume
//! contains. The head exists from the beginning, and its version is the one that the name will get. So
//! another process that continues the import knows which version of the name it may replace. The root that
//! the head references is made last, so that nobody can open the volume before. Invariant: as for every
//! volume, the name is bound last, and only if it is unchanged since before the first object was made.

use uuid::Uuid;

use super::name::{self, Found, Swapped};
use super::volumes::{check_name, claim, empty_root, first_head, first_table, new_identity, unnamed};
use crate::store;
use crate::volume::environment::Environment;
use crate::volume::error::{ImportError, OpenError};
use crate::volume::format::geometry::{ChunkBytes, Geometry};
use crate::volume::format::head::{Head, VolumeState};
use crate::volume::format::identity::Identity;
use crate::volume::format::keys::Keys;
use crate::volume::format::root::Root;
use crate::volume::info::Info;
use crate::volume::objects::{create, fetch, read_head};
use crate::volume::options::Options;

/// A volume without a root and without a name.
#[derive(Debug)]
pub(in crate::volume) struct Draft {
    identity: Identity,
    /// What was read under the name before the first object was made.
    before: Found,
}

impl Draft {
    /// Makes a volume for a name that is not bound.
    pub(in crate::volume) async fn begin(
        env: &Environment,
        options: &Options,
        name: &str,
        chunk: ChunkBytes,
    ) -> Result<Self, OpenError> {
        check_name(name)?;
        let geometry = Geometry::new(chunk.0)?;
        let before = claim(env, name).await?;
        let volume = env.entropy.uuid();
        let identity = new_identity(name, volume, geometry, (env.wall_clock)());
        let head = Head { version: before.next_version(env), ..first_head(env, options, volume) };
        let keys = Keys::new(volume);
        create(env, &keys.identity(), identity.encode()).await?;
        create(env, &keys.head(), head.encode()).await?;
        Ok(Self { identity, before })
    }

    /// Finds the volume that was made last for a name and did not get it.
    pub(in crate::volume) async fn find(env: &Environment, name: &str) -> Result<Self, ImportError> {
        check_name(name)?;
        let before = claim(env, name).await?;
        let mut made: Vec<(u64, Uuid)> = unnamed(env)
            .await?
            .into_iter()
            .filter(|other| other.made_for.as_deref() == Some(name))
            .filter_map(|other| Some((other.created_at_seconds?, other.volume)))
            .collect();
        made.sort_unstable();
        for (_, volume) in made.into_iter().rev() {
            let keys = Keys::new(volume);
            match read_head(env, keys).await {
                // A volume of a later epoch was opened, so it is no import.
                Ok((head, _)) if head.state == VolumeState::Live && head.epoch == 0 => {
                    if head.version != before.next_version(env) {
                        return Err(ImportError::NameChanged(name.to_owned()));
                    }
                    let decode = |bytes: &[u8]| Identity::decode(volume, bytes);
                    let (identity, _) = fetch(env, &keys.identity(), decode).await?;
                    return Ok(Self { identity, before });
                }
                Ok(_) | Err(OpenError::Store(store::Error::NotFound { .. })) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(ImportError::NothingToResume(name.to_owned()))
    }

    /// The keys of the objects of the volume.
    pub(in crate::volume) fn keys(&self) -> Keys {
        Keys::new(self.identity.volume)
    }

    /// How the volume is divided into chunks.
    pub(in crate::volume) fn geometry(&self) -> Geometry {
        self.identity.geometry
    }

    /// Returns the root of the volume, still without map pages.
    pub(in crate::volume) fn root(&self, size_bytes: u64) -> Root {
        empty_root(self.identity.geometry, size_bytes)
    }

    /// Completes the volume with its root, whose map pages are durable, and binds the name to it.
    pub(in crate::volume) async fn publish(self, env: &Environment, root: Root) -> Result<Info, ImportError> {
        let (keys, volume) = (self.keys(), self.identity.volume);
        let (sealing, table) = (keys.sealing(), first_table(&root));
        for (id, bytes) in [(root.id, root.encode(sealing)), (table.id, table.encode(sealing))] {
            let key = keys.root(id);
            if !create(env, &key, bytes).await? {
                return Err(ImportError::SourceChanged { key });
            }
        }
        let name = self.identity.name;
        match name::bind(env, &name, &self.before, volume).await? {
            Swapped::Lost => {
                claim(env, &name).await?;
                Err(ImportError::NameChanged(name))
            }
            Swapped::Done => Ok(Info {
                name,
                volume,
                size_bytes: root.size_bytes,
                chunk_bytes: root.geometry.chunk_bytes(),
                created_at_seconds: self.identity.created_at_seconds,
                clone_of: None,
                epoch: 0,
                holder: None,
            }),
        }
    }
}
