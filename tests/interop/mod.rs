//! The program with clients that others wrote: libnbd's tools, QEMU, fio, and the kernel's client.
//!
//! Every test body takes a URI and knows nothing about the store. `every_way` runs it over TCP and a Unix
//! socket, on a directory and on MinIO.

mod bench;
mod blocks;
mod clients;
mod counting;
mod huge;
mod lists;
mod log;
mod memory;
mod names;
mod real_input;
mod resize;
mod sigterm;
mod since;
mod snapshots;
mod sparse;
mod stalled;
mod storm;
mod takeover;
mod tls;
mod transfer;
mod trouble;
mod welcome;

use tempfile::TempDir;

use crate::support::cairn::{Gateway, Setup, Store};

/// A gateway with one volume, `disk`, and a directory for the files of the test.
struct Way {
    gateway: Gateway,
    files: TempDir,
    _store: Store,
}

/// How a client reaches the gateway.
#[derive(Clone, Copy)]
enum Transport {
    Tcp,
    Unix,
}

impl Way {
    async fn open(store: Store, transport: Transport, size: &str) -> Self {
        let files = tempfile::tempdir().expect("a directory for the test");
        let setup = Setup::new(&store).create("disk", size);
        let setup = match transport {
            Transport::Tcp => setup.tcp(),
            Transport::Unix => setup.unix(&files.path().join("nbd.sock")),
        };
        Self { gateway: setup.start().await, files, _store: store }
    }

    fn uri(&self) -> String {
        self.gateway.uri("disk")
    }
}

/// Generates a test of each body for each store and transport. Every test has its own gateway.
macro_rules! every_way {
    ($($body:ident($size:literal);)*) => {
        every_way!(@ #[ignore = "needs QEMU, fio, libnbd"]
            directory_tcp, Store::directory(), Transport::Tcp, $($body $size)*);
        every_way!(@ #[ignore = "needs QEMU, fio, libnbd"]
            directory_unix, Store::directory(), Transport::Unix, $($body $size)*);
        every_way!(@ #[ignore = "needs MinIO, QEMU, fio, libnbd"]
            minio_tcp, Store::minio().await, Transport::Tcp, $($body $size)*);
        every_way!(@ #[ignore = "needs MinIO, QEMU, fio, libnbd"]
            minio_unix, Store::minio().await, Transport::Unix, $($body $size)*);
    };
    (@ #[$needs:meta] $way:ident, $store:expr, $transport:expr, $($body:ident $size:literal)*) => {
        mod $way {
            use super::{Store, Transport, Way};
            $(
                #[$needs]
                #[tokio::test]
                async fn $body() {
                    let way = Way::open($store, $transport, $size).await;
                    super::clients::$body(&way.uri(), way.files.path()).await;
                    drop(way);
                }
            )*
        }
    };
}

every_way! {
    nbdinfo_reads_size_flags_and_block_sizes("1GiB");
    nbdcopy_writes_and_qemu_img_reads("64MiB");
    qemu_img_writes_and_nbdcopy_reads("64MiB");
    qemu_io_writes_zeroes_discards_and_forces("64MiB");
    fio_verifies_what_it_wrote("256MiB");
    libnbd_sends_every_command("64MiB");
}
