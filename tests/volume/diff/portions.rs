//! What BLOCK_STATUS says of a range is what the list of all changes says, at a bounded cost.

use std::ops::Range;

use cairn::effect::Durability::Volatile;
use cairn::effect::Zeroing;
use cairn::store::Operation;
use cairn::volume::diff::portions;
use cairn::volume::{Change, DiffError, Error, Portion, Shrink};

use super::super::bench::{Bench, MIB};
use super::{BLOCK, CHUNK, KIB, MAP_PAGE, disk_of, listed, trim, write};

/// Appends a part, merged with the last one if they are alike.
fn push(to: &mut Vec<Portion>, length: u64, may_differ: bool) {
    match to.last_mut() {
        _ if length == 0 => {}
        Some(last) if last.may_differ == may_differ => last.length += length,
        _ => to.push(Portion { length, may_differ }),
    }
}

/// The parts of a range, by the list of all changes.
fn by_list(changes: &[Change], range: &Range<u64>) -> Vec<Portion> {
    let (mut parts, mut at) = (Vec::new(), range.start);
    for Change { range: change, .. } in changes {
        let (start, end) = (change.start.clamp(at, range.end), change.end.clamp(at, range.end));
        push(&mut parts, start - at, false);
        push(&mut parts, end - start, true);
        at = end;
    }
    push(&mut parts, range.end - at, false);
    parts
}

#[tokio::test(start_paused = true)]
async fn the_parts_of_any_range_are_those_of_the_whole_list() {
    let size = 2 * MAP_PAGE + 100 * KIB + 512;
    let mut bench = Bench::with_chunks(size, CHUNK).await;
    let volume = bench.open().await;
    write(&volume, 20 * CHUNK, 50, 2 * CHUNK).await;
    volume.snapshot("monday").await.unwrap();
    for n in 0..5 {
        write(&volume, n * 10 * CHUNK + 3 * BLOCK, n + 1, 2 * BLOCK).await;
    }
    // What is written and what is zeros now is one part, because both have changed.
    trim(&volume, 20 * CHUNK + 5 * BLOCK..20 * CHUNK + 7 * BLOCK).await;
    write(&volume, MAP_PAGE - BLOCK, 9, 2 * BLOCK).await;
    write(&volume, size - 512, 10, 512).await;
    volume.snapshot("tuesday").await.unwrap();
    let whole = listed(&bench, "monday", "tuesday").await;
    let (monday, tuesday) =
        (disk_of(&bench, "disk", "monday").await, disk_of(&bench, "disk", "tuesday").await);
    let in_change = 10 * CHUNK + 4 * BLOCK + 7;
    for range in [
        0..size,
        0..BLOCK,
        in_change..in_change + 1,
        in_change..in_change + 9000,
        20 * CHUNK + 1..20 * CHUNK + 8 * BLOCK,
        MAP_PAGE - 1..MAP_PAGE + 1,
        size - 1..size,
    ] {
        let expected = by_list(&whole, &range);
        for most in [1, 2, 3, 4096] {
            let (mut found, mut at) = (Vec::new(), range.start);
            while at < range.end {
                let told = portions((&monday, &tuesday), at, range.end - at, most).await.unwrap();
                assert!((1..=most).contains(&told.len()), "{range:?} by {most}: {told:?}");
                assert!(told.windows(2).all(|two| two[0].may_differ != two[1].may_differ), "{told:?}");
                at += told.iter().map(|part| part.length).sum::<u64>();
                told.iter().for_each(|part| push(&mut found, part.length, part.may_differ));
            }
            assert_eq!((at, &found), (range.end, &expected), "{range:?} by {most}");
        }
    }
    let beyond = portions((&monday, &tuesday), size - 512, 513, 1).await;
    assert!(matches!(beyond, Err(DiffError::Volume(Error::OutOfRange { .. }))), "{beyond:?}");
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_cost_of_one_answer_does_not_depend_on_the_range() {
    let mut bench = Bench::with_chunks(16 * MAP_PAGE, CHUNK).await;
    let volume = bench.open().await;
    volume.snapshot("monday").await.unwrap();
    for page in 0..16 {
        write(&volume, page * MAP_PAGE + 5 * BLOCK, page + 1, BLOCK).await;
    }
    volume.zero(3 * MAP_PAGE, MAP_PAGE, Zeroing::Deallocate, Volatile).await.unwrap();
    volume.snapshot("tuesday").await.unwrap();
    let (monday, tuesday) =
        (disk_of(&bench, "disk", "monday").await, disk_of(&bench, "disk", "tuesday").await);
    bench.memory.reset_tallies();
    let mut at = 0;
    for round in 1.. {
        let told = portions((&monday, &tuesday), at, 16 * MAP_PAGE - at, 4096).await.unwrap();
        at += told.iter().map(|part| part.length).sum::<u64>();
        let gets = bench.gets("/map/").requests;
        assert!(gets <= 4 * round, "{gets} map pages in {round} answers");
        if at == 16 * MAP_PAGE {
            assert!((2..=16).contains(&round), "{round} answers");
            break;
        }
    }
    let is_data = |key: &str| ["/chunk/", "/pack/", "/journal/"].iter().any(|part| key.contains(part));
    assert_eq!(bench.memory.tally(Operation::Get, is_data).requests, 0);
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn beyond_the_end_of_the_first_one_only_zeros_are_the_same() {
    let mut bench = Bench::with_chunks(MIB, CHUNK).await;
    let volume = bench.open().await;
    write(&volume, 0, 1, MIB).await;
    volume.snapshot("small").await.unwrap();
    volume.resize(2 * MIB, Shrink::Refuse).await.unwrap();
    write(&volume, MIB + CHUNK, 2, BLOCK).await;
    volume.snapshot("grown").await.unwrap();
    let (small, grown) = (disk_of(&bench, "disk", "small").await, disk_of(&bench, "disk", "grown").await);
    let part = |length: u64, may_differ: bool| Portion { length, may_differ };
    let told = portions((&small, &grown), 0, 2 * MIB, 9).await.unwrap();
    let rest = MIB - CHUNK - BLOCK;
    assert_eq!(told, [part(MIB + CHUNK, false), part(BLOCK, true), part(rest, false)]);
    assert_eq!(portions((&grown, &small), 0, MIB, 9).await.unwrap(), [part(MIB, false)]);
    volume.close().await.unwrap();
}
