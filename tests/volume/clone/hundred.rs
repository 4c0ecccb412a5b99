//! A hundred clones of one image are open and written at once, in one process.

use cairn::volume::SnapshotDisk;
use futures::future::join_all;

use super::super::bench::bytes_of;
use super::*;

/// Number of clones.
const CLONES: u64 = 100;

/// A clone, and what it has.
struct Member {
    number: u64,
    volume: Arc<Volume>,
    model: Model,
}

fn name(number: u64) -> String {
    format!("clone-{number}")
}

impl Member {
    async fn open(env: &Environment, options: &Options, number: u64, model: Model) -> Self {
        Self { number, volume: open(env, options, &name(number)).await, model }
    }

    /// Writes what no other clone has: a whole chunk, some blocks, and a part of a block that every clone writes.
    async fn write(&mut self, round: u64) {
        let Self { number, volume, model } = self;
        let seed = 1_000_000 + 1000 * *number + 10 * round;
        let (chunk, block) = ((*number + 5 * round) % 16, (*number * 7 + round) % 240);
        model.write(volume, chunk * 64 * KIB, seed, 64 << 10).await;
        model.write(volume, block * BLOCK, seed + 1, 3 * 4096).await;
        model.write(volume, 100 * BLOCK + 512, seed + 2, 1024).await;
    }

    async fn check(&self, when: &str) {
        self.model.check(&self.volume, &format!("{} {when}", name(self.number))).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundred_clones_that_are_open_at_once_each_have_their_own_writes() {
    let bench = small_bench().await;
    let (env, options) = (process(&bench, 77), &bench.options);
    let (parent, image) = golden(&bench, &env).await;
    let mut clones = Vec::new();
    for number in 0..CLONES {
        catalog::clone(&parent, "golden", &name(number)).await.unwrap();
        clones.push(Member::open(&env, options, number, image.clone()).await);
    }
    join_all(clones.iter_mut().map(|clone| async move {
        clone.write(0).await;
        clone.volume.flush().await.unwrap();
        // Some have their changes in the journal when they are closed, and some in objects of their own.
        if clone.number.is_multiple_of(2) {
            clone.volume.checkpoint().await.unwrap();
        }
        clone.write(1).await;
    }))
    .await;
    for clone in &clones {
        clone.check("while all are open").await;
    }
    for closed in join_all(clones.iter().map(|clone| clone.volume.close())).await {
        closed.unwrap();
    }
    image.check(&parent, "the image").await;
    parent.close().await.unwrap();
    assert_eq!(bench.keys("/head").len() as u64, CLONES + 1);

    let again = process(&bench, 78);
    let mut opened = Vec::new();
    for Member { number, model, .. } in clones {
        opened.push(Member::open(&again, options, number, model).await);
    }
    for clone in &opened {
        clone.check("after it was opened again").await;
    }
    let parent = open(&again, options, "disk").await;
    image.check(&parent, "the image, opened again").await;
    let golden = SnapshotDisk::open(&again, options, parent.id(), "golden").await.unwrap();
    assert!(bytes_of(&golden.read(0, MIB).await.unwrap()) == image.bytes, "the snapshot");
    for closed in join_all(opened.iter().map(|clone| clone.volume.close())).await {
        closed.unwrap();
    }
    parent.close().await.unwrap();
}
