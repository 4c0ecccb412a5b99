//! Volumes that are created, deleted, listed and opened concurrently under a few names, on MinIO, which
//! ignores conditions on DELETE.

use std::sync::Arc;

use cairn::metrics::Metrics;
use cairn::store::{self, Location};

use crate::support::minio::Minio;
use crate::volume::crowd::{Manners, crowd};

/// Opens a store as a gateway does, with all its decorators.
async fn opened(minio: &Minio, number: u64) -> Arc<dyn store::Store> {
    let location: Location = "s3://disks/names".parse().expect("a bucket and a prefix");
    let options = store::Options { s3: minio.options(), probe: None, ..store::Options::default() };
    let metrics = Metrics::new();
    let drawn = store::open::Drawn { seed: number, nonce: "names".to_owned(), now_seconds: 0 };
    store::open(&location, &options, metrics.store(), &drawn).await.expect("MinIO serves").store.reads
}

async fn on_minio(manners: Manners) {
    let minio = Minio::start().await;
    let mut stores = Vec::new();
    for number in 0..16 {
        stores.push(opened(&minio, number).await);
    }
    let of = |number: u64| Arc::clone(&stores[usize::try_from(number).expect("one of sixteen")]);
    crowd(of, opened(&minio, 16).await, manners).await;
}

#[tokio::test]
#[ignore = "needs MinIO"]
async fn sixteen_clients_on_four_names_leave_every_volume_with_its_name() {
    on_minio(Manners { seed: 1, rounds: 20, dies_once_in: 0 }).await;
}

#[tokio::test]
#[ignore = "needs MinIO"]
async fn every_volume_keeps_its_name_when_every_fifth_action_is_cut_short() {
    on_minio(Manners { seed: 2, rounds: 20, dies_once_in: 5 }).await;
}
