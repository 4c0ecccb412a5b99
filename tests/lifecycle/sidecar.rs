//! Pods of virtual machines, run as plain processes in the order that Kubernetes ensures: Cairn starts and
//! becomes ready, then the machine starts. The machine stops, then Cairn is told to stop.
//!
//! Arguments, settings, users and the startup probe are those of the chart `helm/vm`, as Helm renders it, and
//! of the manifests under `deploy/kubernetes`. QEMU's block layer with the machine's own options takes the
//! place of the machine.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Command;

use crate::support::cairn::Store;
use crate::support::certificates::Authority;
use crate::support::files::noise;
use crate::support::minio::tools;
use crate::support::process::{Process, command, finish, free_port, run, until};

/// Returns the documents of a YAML file.
async fn documents(path: &Path) -> Vec<Value> {
    let to_json =
        "import json, sys, yaml; print(json.dumps([d for d in yaml.safe_load_all(open(sys.argv[1])) if d]))";
    let json = run(command(["/usr/bin/python3", "-c", to_json]).arg(path)).await;
    serde_json::from_str(&json).expect("a list of JSON documents")
}

/// Returns the only document of this kind.
fn one<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    let mut found = documents.iter().filter(|document| document["kind"] == kind);
    found.next().unwrap_or_else(|| panic!("no {kind}"))
}

/// Returns the pod template of the chart.
async fn rendered() -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let charts = tempfile::tempdir().expect("a directory for the charts");
    run(command(["cp", "-R"]).arg(root.join("helm")).arg(charts.path())).await;
    let chart = charts.path().join("helm/vm");
    let helm = tools().join("bin/helm");
    run(command([&helm]).args(["dependency", "build"]).arg(&chart)).await;
    let store = ["--set", "cairn.store.url=s3://my-disks/vms"];
    let mut template = command([&helm]);
    template.args(["template", "--kube-version", "1.29", "demo"]).arg(&chart).args(store);
    let manifests = charts.path().join("rendered.yaml");
    std::fs::write(&manifests, run(&mut template).await).expect("the manifests can be written");
    one(&documents(&manifests).await, "StatefulSet")["spec"]["template"]["spec"].clone()
}

/// Returns the documents of a file in `deploy/kubernetes`.
async fn shipped(name: &str) -> Vec<Value> {
    documents(&Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes").join(name)).await
}

/// Returns the texts of a list.
fn texts(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().map(|text| text.as_str().expect("a text")).collect()
}

/// Returns the variables of a container as Kubernetes sets them: a value can only refer to variables before
/// it.
fn environment(container: &Value, pod: &str) -> Vec<(String, String)> {
    let mut set: Vec<(String, String)> = Vec::new();
    for variable in container["env"].as_array().expect("variables") {
        let name = variable["name"].as_str().expect("a name").to_owned();
        let field = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
        let value = match (field, variable["value"].as_str()) {
            (Some("metadata.namespace"), _) => "default".to_owned(),
            (Some("metadata.name"), _) => pod.to_owned(),
            (None, Some(value)) => expanded(value, &set),
            other => panic!("{name}: {other:?}"),
        };
        set.push((name, value));
    }
    set
}

fn expanded(text: &str, set: &[(String, String)]) -> String {
    set.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value))
}

/// Creates an emptyDir of a pod with this `fsGroup`.
fn empty_directory(group: u32) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("the emptyDir");
    chown(directory.path(), None, Some(group)).expect("root gives it a group");
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o2777)).expect("it is ours");
    directory
}

/// A command that runs as another user of the pod, either in the group that its containers share or in no
/// group.
fn as_user(container: &Value, group: Option<u32>) -> Command {
    let user = container["securityContext"]["runAsUser"].as_u64().expect("a user of its own").to_string();
    let groups = group.map_or("--clear-groups".to_owned(), |group| format!("--groups={group}"));
    command(["setpriv", "--reuid", &user, "--regid", &user, &groups, "--"])
}

#[tokio::test]
#[ignore = "needs Helm, MinIO, QEMU, libnbd"]
async fn the_machine_of_the_chart_stops_then_cairn_drains_and_nothing_is_lost() {
    rehearse(rendered().await, "demo-0", "vm-demo-0").await;
}

#[tokio::test]
#[ignore = "needs MinIO, QEMU, libnbd"]
async fn the_machine_of_the_manifest_stops_then_cairn_drains_and_nothing_is_lost() {
    rehearse(one(&shipped("vm-pod.yaml").await, "Pod")["spec"].clone(), "vm", "vm").await;
}

/// Runs a pod of this name, whose disk must have the given name.
async fn rehearse(pod: Value, name: &str, disk: &str) {
    let (sidecar, machine) = (&pod["initContainers"][0], &pod["containers"][0]);
    assert_eq!(
        (&sidecar["name"], &sidecar["restartPolicy"]),
        (&Value::from("cairn"), &Value::from("Always"))
    );
    for probe in ["startupProbe", "readinessProbe"] {
        assert_eq!(sidecar[probe]["httpGet"]["path"], "/health/ready", "{probe}");
    }
    let group = pod["securityContext"]["fsGroup"].as_u64().and_then(|group| u32::try_from(group).ok());
    let group = group.expect("a group that the containers share");
    let (store, files) = (Store::minio().await, empty_directory(group));
    let port = free_port();
    let here = |text: &str| text.replace("/run/cairn", &files.path().display().to_string());
    let mut cairn = store.cairn(texts(&sidecar["args"]));
    for (name, value) in environment(sidecar, name) {
        cairn.env(name, here(&value));
    }
    cairn.env("CAIRN_STORE__URL", store.url()).env("CAIRN_ADMIN__LISTEN", format!("127.0.0.1:{port}"));
    let start = |cairn: &mut Command| Process::spawn("the sidecar", cairn);
    let mut gateway = start(&mut cairn);
    is_ready(&store, port).await;

    // A user who is not in the group cannot connect.
    let uri = format!("nbd+unix:///{disk}?socket={}", files.path().join("nbd.sock").display());
    let stranger = finish(as_user(machine, None).args(["nbdinfo", "--size", &uri])).await;
    assert!(!stranger.status.success() && stranger.stderr.contains("Permission denied"), "{stranger:?}");

    // The machine writes, and stops without a flush.
    let image = files.path().join("image");
    std::fs::write(&image, noise(7, 48 << 20)).expect("an image can be written");
    let writes = format!("write -q -s {} 0 48M", image.display());
    let options = here(&blockdev(machine, name).replace("node-name=disk,", ""));
    let mut qemu_io = as_user(machine, Some(group));
    run(qemu_io.args(["qemu-io", "--cache", "unsafe", "--image-opts", &options, "-c", &writes])).await;

    gateway.signal(Signal::TERM);
    let status = gateway.exit().await;
    assert!(status.success(), "{status}: {}", gateway.output());
    assert!(gateway.output().contains("released its lease"), "{}", gateway.output());
    let grace = pod["terminationGracePeriodSeconds"].as_u64().expect("a number");
    assert!(grace >= 90 + 70, "time for the machine, and for the drain after it: {grace}");

    let mut gateway = start(&mut cairn);
    is_ready(&store, port).await;
    let copy = files.path().join("copy");
    run(command(["nbdcopy", &uri]).arg(&copy)).await;
    let compare = finish(command(["cmp", "--bytes", "50331648"]).arg(&image).arg(&copy)).await;
    assert!(compare.status.success(), "{compare:?}");
    gateway.signal(Signal::TERM);
    assert!(gateway.exit().await.success());
}

/// Returns the options of the machine's disk, in the pod of this name.
fn blockdev(machine: &Value, pod: &str) -> String {
    let words = texts(&machine["command"]);
    let disk = words.iter().find(|word| word.starts_with("driver=nbd")).expect("a disk of NBD");
    let set = if machine["env"].is_array() { environment(machine, pod) } else { Vec::new() };
    expanded(disk, &set)
}

/// Waits for the startup probe, after which the machine starts.
async fn is_ready(store: &Store, port: u16) {
    let probe = || {
        let mut health = std::process::Command::new(store.cairn([]).as_std().get_program());
        health.args(["health", &format!("http://127.0.0.1:{port}/health/ready")]);
        health.output().expect("cairn health runs").status.success()
    };
    until("the gateway is ready", probe).await;
}

/// A gateway for several machines: each machine gets the disk for the subject of its certificate, and no
/// other.
#[tokio::test]
#[ignore = "needs MinIO, QEMU"]
async fn a_machine_with_a_certificate_gets_its_disk_from_the_gateway_of_the_manifest() {
    let manifest = shipped("gateway-tls.yaml").await;
    let gateway = &one(&manifest, "Deployment")["spec"]["template"]["spec"]["containers"][0];
    let machine = &one(&manifest, "Pod")["spec"]["containers"][0];
    let (authority, files) = (Authority::new(), tempfile::tempdir().expect("the mounts"));
    let server = authority.server();
    let text = one(&manifest, "ConfigMap")["data"]["cairn.toml"].as_str().expect("a file");
    let mounted = |path: &str, at: &Path| (path.to_owned(), at.display().to_string());
    let text = [
        mounted("/etc/cairn/tls/tls.crt", &server.certificate),
        mounted("/etc/cairn/tls/tls.key", &server.key),
        mounted("/etc/cairn/clients/authorities.pem", &authority.certificate()),
    ]
    .iter()
    .fold(text.to_owned(), |text, (path, at)| {
        assert!(text.contains(path), "{path} is mounted and not used");
        text.replace(path, at)
    });
    std::fs::write(files.path().join("cairn.toml"), text).expect("a file can be written");

    let store = Store::minio().await;
    let (port, admin) = (free_port(), free_port());
    let mut cairn = store.cairn(texts(&gateway["args"]));
    for (name, value) in environment(gateway, "disks-1") {
        cairn.env(name, value.replace("/etc/cairn/file", &files.path().display().to_string()));
    }
    cairn.env("CAIRN_STORE__URL", store.url());
    cairn.env("CAIRN_SERVER__LISTEN", format!("127.0.0.1:{port}"));
    cairn.env("CAIRN_ADMIN__LISTEN", format!("127.0.0.1:{admin}"));
    let mut gateway = Process::spawn("the gateway", &mut cairn);
    is_ready(&store, admin).await;

    let client = authority.client_of("Example", "vm-1");
    let directory = authority.directory(None, Some(&client));
    let words = texts(&machine["command"]);
    let object = words.iter().find(|word| word.starts_with("tls-creds-x509")).expect("credentials");
    let object = object.replace("/etc/qemu/tls", &directory.path().display().to_string());
    let disk = blockdev(machine, "vm-1").replace("node-name=disk,", "");
    let disk = disk.replace("server.host=disks", "server.host=localhost");
    let disk = disk.replace("server.port=10809", &format!("server.port={port}"));
    let qemu_io = |options: &str, does: &str| {
        let mut qemu_io = command(["qemu-io", "--object", &object, "--image-opts", options, "-c", does]);
        qemu_io.arg("-c").arg("flush");
        qemu_io
    };
    run(&mut qemu_io(&disk, "write -P 0x5a 0 1M")).await;
    run(&mut qemu_io(&disk, "read -P 0x5a 0 1M")).await;
    let others = disk.replace("export=vm-1", "export=vm-2");
    let refused = finish(&mut qemu_io(&others, "read 0 512")).await;
    assert!(!refused.status.success(), "{refused:?}");
    gateway.signal(Signal::TERM);
    assert!(gateway.exit().await.success());
}
