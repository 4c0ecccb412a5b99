//! A pod of a virtual machine with Cairn as its native sidecar, rehearsed with plain processes in the order that
//! Kubernetes keeps: Cairn starts and is ready, the machine starts; the machine stops, then Cairn is told to.
//!
//! The sidecar's arguments, settings and startup probe are those of the chart `helm/vm`, as Helm renders it.

use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::cairn::Store;
use crate::support::files::noise;
use crate::support::minio::tools;
use crate::support::process::{Process, command, finish, free_port, run, until};

/// The pod's template.
async fn rendered() -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let charts = tempfile::tempdir().expect("a directory for the charts");
    run(command(["cp", "-R"]).arg(root.join("helm")).arg(charts.path())).await;
    let chart = charts.path().join("helm/vm");
    let helm = tools().join("bin/helm");
    run(command([&helm]).args(["dependency", "build"]).arg(&chart)).await;
    let text = run(command([&helm]).args(["template", "--kube-version", "1.29", "demo"]).arg(&chart)).await;
    let manifests = charts.path().join("rendered.yaml");
    std::fs::write(&manifests, text).expect("the manifests can be written");
    let to_json =
        "import json, sys, yaml; print(json.dumps([d for d in yaml.safe_load_all(open(sys.argv[1])) if d]))";
    let json = run(command(["/usr/bin/python3", "-c", to_json]).arg(&manifests)).await;
    let documents: Value = serde_json::from_str(&json).expect("JSON");
    let sets = documents.as_array().expect("a list").iter();
    let mut sets = sets.filter(|document| document["kind"] == "StatefulSet");
    sets.next().expect("the chart has a StatefulSet")["spec"]["template"]["spec"].clone()
}

#[tokio::test]
async fn the_machine_stops_then_cairn_drains_and_nothing_is_lost() {
    let pod = rendered().await;
    let sidecar = &pod["initContainers"][0];
    assert_eq!(
        (&sidecar["name"], &sidecar["restartPolicy"]),
        (&Value::from("cairn"), &Value::from("Always"))
    );
    let probe = &sidecar["startupProbe"]["httpGet"];
    assert_eq!((&probe["path"], &probe["port"]), (&Value::from("/health/ready"), &Value::from("admin")));
    let machine = pod["containers"][0]["command"].as_array().expect("a command");
    let disk = machine.iter().filter_map(Value::as_str).find(|word| word.starts_with("driver=nbd")).unwrap();

    let (store, files) = (Store::minio().await, tempfile::tempdir().expect("the emptyDir"));
    let port = free_port();
    let here = |text: &str| text.replace("/run/cairn", &files.path().display().to_string());
    let arguments: Vec<&str> = sidecar["args"].as_array().map_or_else(
        || vec!["serve"],
        |arguments| arguments.iter().map(|argument| argument.as_str().expect("text")).collect(),
    );
    let mut cairn = store.cairn(arguments);
    for variable in sidecar["env"].as_array().expect("settings") {
        let name = variable["name"].as_str().expect("a name");
        // Of the pod's own fields, Kubernetes puts the values in.
        let Some(value) = variable["value"].as_str() else { continue };
        let value = value.replace("$(POD_NAMESPACE)", "default").replace("$(POD_NAME)", "demo-0");
        cairn.env(name, here(&value));
    }
    cairn.env("CAIRN_STORE__URL", store.url()).env("CAIRN_ADMIN__LISTEN", format!("127.0.0.1:{port}"));
    let start = |cairn: &mut tokio::process::Command| Process::spawn("the sidecar", cairn);
    let mut gateway = start(&mut cairn);
    is_ready(&store, port).await;

    // The machine, as far as its disk goes: QEMU's block layer with the machine's own options, which writes and stops
    // without a flush.
    let image = files.path().join("image");
    std::fs::write(&image, noise(7, 48 << 20)).expect("an image can be written");
    let writes = format!("write -q -s {} 0 48M", image.display());
    let options = here(&disk.replace("node-name=disk,", ""));
    let mut qemu_io = command(["qemu-io", "--cache", "unsafe", "--image-opts", &options, "-c", &writes]);
    run(&mut qemu_io).await;

    gateway.signal(Signal::TERM);
    let status = gateway.exit().await;
    assert!(status.success(), "{status}: {}", gateway.output());
    assert!(gateway.output().contains("released its lease"), "{}", gateway.output());
    let grace = pod["terminationGracePeriodSeconds"].as_u64().expect("a number");
    assert!(grace >= 90 + 70, "time for the machine, and for the drain after it: {grace}");

    let mut gateway = start(&mut cairn);
    is_ready(&store, port).await;
    let copy = files.path().join("copy");
    let uri = format!("nbd+unix:///vm?socket={}", files.path().join("nbd.sock").display());
    run(command(["nbdcopy", &uri]).arg(&copy)).await;
    let compare = finish(command(["cmp", "--bytes", "50331648"]).arg(&image).arg(&copy)).await;
    assert!(compare.status.success(), "{compare:?}");
    gateway.signal(Signal::TERM);
    assert!(gateway.exit().await.success());
}

/// The startup probe: the machine is started when it passes.
async fn is_ready(store: &Store, port: u16) {
    let probe = || {
        let mut health = std::process::Command::new(store.cairn([]).as_std().get_program());
        health.args(["health", &format!("http://127.0.0.1:{port}/health/ready")]);
        health.output().expect("cairn health runs").status.success()
    };
    until("the sidecar is ready", probe).await;
}
