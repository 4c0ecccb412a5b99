//! Tests of the grammar: what it accepts, and what it refuses.

use clap::CommandFactory;

use super::super::snapshot_args::SnapshotAction;
use super::*;

#[test]
fn the_grammar_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn a_full_command_line() {
    let line =
        "cairn serve --store s3://b/p --listen 127.0.0.1:0 --listen unix:/s --create a=1GiB --takeover";
    let cli = Cli::try_parse_from(line.split(' ')).unwrap();
    let Command::Serve(serve) = cli.command else { panic!("not serve") };
    assert_eq!(serve.listen, ["127.0.0.1:0", "unix:/s"]);
    assert_eq!(serve.create, ["a=1GiB"]);
    assert!(serve.takeover);
}

#[test]
fn a_gateway_is_found_at_the_given_or_default_socket() {
    let gateway = |line: &str| {
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Command::Volume(volume) = cli.command else { panic!("not volume") };
        volume.gateway().cloned()
    };
    assert_eq!(gateway("cairn volume list"), None);
    assert_eq!(gateway("cairn volume delete --gateway disk"), Some(None));
    assert_eq!(gateway("cairn volume info disk --gateway=/s"), Some(Some("/s".into())));
}

#[test]
fn a_snapshot_is_named_after_its_volume() {
    let cli = Cli::try_parse_from(["cairn", "snapshot", "delete", "--gateway", "disk@monday.1"]).unwrap();
    let Command::Snapshot(snapshot) = cli.command else { panic!("not snapshot") };
    assert_eq!(snapshot.gateway(), Some(&None));
    let SnapshotAction::Delete(delete) = snapshot.action else { panic!("not delete") };
    assert_eq!((&*delete.of.volume, &*delete.of.name), ("disk", "monday.1"));
    assert_eq!(delete.of.to_string(), "disk@monday.1");
}

#[test]
fn mistakes_are_refused() {
    for line in [
        "cairn",
        "cairn sevre",
        "cairn serve extra",
        "cairn serve --listen",
        "cairn volume",
        "cairn volume create disk",
        "cairn volume create disk 1G",
        "cairn volume create disk -1",
        "cairn volume info",
        "cairn volume list name",
        "cairn volume usage",
        "cairn volume usage disk --gateway",
        "cairn snapshot",
        "cairn snapshot create disk",
        "cairn snapshot create @monday",
        "cairn snapshot create disk@",
        "cairn snapshot create disk@a@b",
        "cairn snapshot create a/b@monday",
        "cairn snapshot create disk@.hidden",
        "cairn snapshot list",
        "cairn snapshot list --gateway=/s --store file:///x disk",
        "cairn snapshot delete disk monday",
        "cairn import disk.img",
        "cairn import disk.img disk extra",
        "cairn import disk.img disk --resume --chunk-size 1MiB",
        "cairn import disk.img disk --format vmdk",
        "cairn export disk",
        "cairn export disk@ disk.img",
        "cairn export disk@a@b disk.img",
        "cairn export disk disk.img --gateway",
        "cairn check",
        "cairn check disk --gateway",
        "cairn check a b",
        "cairn volume list --gateway=/s --store file:///x",
        "cairn volume resize disk",
        "cairn volume resize disk 1G",
        "cairn volume resize disk 1GiB 2GiB",
        "cairn volume rename disk",
        "cairn volume delete",
        "cairn volume delete disk --id 00000000-0000-4000-8000-000000000001",
        "cairn volume delete --id disk",
        "cairn bench",
        "cairn bench store",
        "cairn bench store s3://b --store s3://c",
        "cairn bench store s3://b --size 4M",
        "cairn health 127.0.0.1:9180",
        "cairn nbd",
        "cairn nbd serve disk.img",
        "cairn nbd serve disk.img --certfile c.pem --no-tls",
        "cairn nbd serve --no-tls",
        "cairn nbd size host 70000",
        "cairn nbd copy - b",
        "cairn nbd copy a -",
        "cairn nbd copy http://host/a b",
        "cairn nbd copy a b --timeout 0s",
        "cairn nbd serve a --no-tls --stdio --socket s",
        "cairn nbd serve a --no-tls --stdio --port 0",
        "cairn nbd serve a --no-tls --stdio --address ::1",
        "cairn nbd serve a --no-tls --socket s --port 0",
        "cairn nbd mirror a b --no-tls --stdio --socket s",
        "cairn nbd mirror a - --no-tls",
        "cairn nbd copy a b c",
        "cairn nbd copy a b --connections 0",
        "cairn nbd mirror a --no-tls",
    ] {
        assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
    }
}

#[test]
fn mistakes_about_deleted_and_warmed_volumes_are_refused() {
    for line in [
        "cairn volume warm",
        "cairn volume warm disk other",
        "cairn volume warm disk --gateway=/s --store file:///x",
        "cairn volume undelete",
        "cairn volume undelete disk new",
        "cairn volume undelete disk --as",
        "cairn volume list --deleted --unnamed",
        "cairn volume delete --deleted",
        "cairn volume delete --deleted disk",
        "cairn volume delete disk --deleted 00000000-0000-4000-8000-000000000001",
        "cairn volume delete --deleted 00000000-0000-4000-8000-000000000001 --takeover",
        "cairn volume delete --deleted 00000000-0000-4000-8000-000000000001 --id \
         00000000-0000-4000-8000-000000000002",
    ] {
        assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
    }
}

#[test]
fn a_backup_has_the_name_of_its_volume_or_another_one() {
    let backup = |line: &str| {
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Command::Backup(backup) = cli.command else { panic!("not backup") };
        backup
    };
    let plain = backup("cairn backup disk@monday s3://copies/here/ --store s3://disks");
    assert_eq!((plain.of.to_string().as_str(), plain.name()), ("disk@monday", "disk"));
    assert_eq!(plain.target.to_string(), "s3://copies/here");
    assert!(!plain.full && !plain.resume && !plain.digest && !plain.quiet && !plain.json);
    let line = "cairn backup disk@monday file://./copies --as web --full --resume --digest --quiet --json";
    let full = backup(line);
    assert_eq!(full.name(), "web");
    assert!(full.full && full.resume && full.digest && full.quiet && full.json);
    assert!(full.target_config().unwrap().is_none());
}

#[test]
fn mistakes_about_backups_are_refused() {
    for line in [
        "cairn backup",
        "cairn backup disk@monday",
        "cairn backup disk file:///copies",
        "cairn backup disk@ file:///copies",
        "cairn backup disk@.monday file:///copies",
        "cairn backup disk@monday /copies",
        "cairn backup disk@monday http://copies",
        "cairn backup disk@monday s3://C",
        "cairn backup disk@monday file:///copies more",
        "cairn backup disk@monday file:///copies --as",
        "cairn backup disk@monday file:///copies --as a/b",
        "cairn backup disk@monday file:///copies --as .web",
        "cairn backup disk@monday file:///copies --as web@monday",
        "cairn backup disk@monday file:///copies --gateway",
        "cairn backup disk@monday file:///copies --target-config",
    ] {
        assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
    }
}

#[test]
fn mistakes_about_differences_are_refused() {
    for line in [
        "cairn snapshot diff disk@a",
        "cairn snapshot diff disk disk@a",
        "cairn snapshot diff disk@a disk@b --gateway",
        "cairn import disk.img disk --onto copy",
        "cairn import disk.img disk --snapshot monday",
        "cairn import disk.inc --onto copy --chunk-size 1MiB",
        "cairn export disk@b disk.inc --since a",
        "cairn export disk@b disk.inc --since disk@a",
        "cairn export disk@b disk.inc --since @a --resume",
        "cairn export disk@b disk.inc --digest",
    ] {
        assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
    }
}
