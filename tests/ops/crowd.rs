//! Clients of the APIs of two gateways that create, delete, list and open volumes under the same few names, on MinIO.

use std::path::PathBuf;

use cairn::server::ListenAddress;
use futures::future::join_all;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

use super::client::Client;
use crate::support::cairn::{Gateway, Setup, Store};
use crate::support::process::{command, finish};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const CLIENTS: u64 = 16;
const ROUNDS: u32 = 20;

/// A gateway that closes at once what nobody uses, and its API.
async fn gateway(store: &Store, socket: PathBuf) -> (Gateway, Client) {
    let setup = Setup::new(store).tcp().env("CAIRN_ADMIN__LISTEN", &format!("unix:{}", socket.display()));
    let gateway = setup.env("CAIRN_VOLUMES__IDLE_TIMEOUT", "100ms").start().await;
    (gateway, Client::of(&ListenAddress::Unix(socket)))
}

async fn ask(
    client: &Client,
    method: &str,
    path: &str,
    body: Option<&Value>,
    allowed: &[u16],
) -> (u16, Value) {
    let answer = client.send(method, path, &[], body).await;
    assert!(allowed.contains(&answer.status), "{method} {path}: {answer:?}");
    (answer.status, answer.json())
}

/// Has a block flushed, if the volume can be opened now; says whether it could.
async fn write(gateway: &Gateway, name: &str) -> bool {
    let script = "h.pwrite(b'x' * 4096, 0); h.flush()";
    let uri = gateway.uri(name);
    let wrote = finish(&mut command(["/usr/bin/python3", "-m", "nbd", "-u", &uri, "-c", script])).await;
    wrote.status.success()
}

/// One action; how many blocks were flushed by it.
async fn act(gateway: &Gateway, client: &Client, random: &mut SmallRng) -> u32 {
    let name = NAMES[random.random_range(0..NAMES.len())];
    let path = format!("/api/v1/volumes/{name}");
    match random.random_range(0..16) {
        0..=4 => {
            let new = json!({ "name": name, "size_bytes": 1 << 20, "chunk_bytes": 1 << 20 });
            ask(client, "POST", "/api/v1/volumes", Some(&new), &[201, 409]).await;
        }
        5..=8 => drop(ask(client, "DELETE", &path, None, &[204, 404, 409]).await),
        9..=11 => {
            let (_, listed) = ask(client, "GET", "/api/v1/volumes", None, &[200]).await;
            for volume in listed.as_array().unwrap() {
                let problem = volume["problem"].as_str().unwrap_or("being deleted");
                assert!(problem.contains("being deleted"), "{volume}");
            }
            ask(client, "GET", "/api/v1/unnamed", None, &[200]).await;
        }
        12..=13 => drop(ask(client, "GET", &path, None, &[200, 404, 409]).await),
        _ => return u32::from(write(gateway, name).await),
    }
    0
}

#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn sixteen_clients_of_two_gateways_leave_every_volume_with_its_name() {
    let store = Store::minio().await;
    let directory = tempfile::tempdir().unwrap();
    let gateways = [
        gateway(&store, directory.path().join("one")).await,
        gateway(&store, directory.path().join("two")).await,
    ];
    let flushed = join_all((0..CLIENTS).map(|number| {
        let (gateway, client) = &gateways[usize::from(number % 2 == 0)];
        async move {
            let mut random = SmallRng::seed_from_u64(number);
            let mut flushed = 0;
            for _ in 0..ROUNDS {
                flushed += act(gateway, client, &mut random).await;
            }
            flushed
        }
    }))
    .await;
    assert!(flushed.iter().sum::<u32>() > 0, "no volume was ever written");
    let (gateway, client) = &gateways[0];
    let (_, unnamed) = ask(client, "GET", "/api/v1/unnamed", None, &[200]).await;
    assert_eq!(unnamed, json!([]), "nobody died");
    for name in NAMES {
        let new = json!({ "name": name, "size_bytes": 1 << 20 });
        ask(client, "POST", "/api/v1/volumes", Some(&new), &[201, 409]).await;
    }
    let (_, listed) = ask(client, "GET", "/api/v1/volumes", None, &[200]).await;
    let whole = listed.as_array().unwrap().iter().filter(|volume| volume["problem"].is_null());
    assert_eq!(whole.map(|volume| volume["name"].as_str().unwrap()).collect::<Vec<_>>(), NAMES, "{listed}");
    let lists = finish(command(["nbdinfo", "--list"]).arg(gateway.uri(""))).await;
    assert!(lists.status.success(), "{}{}", lists.stdout, lists.stderr);
}
