//! The policy in the chapter on buckets is enough, and no more than that; and a bucket that keeps everything is served.

use serde_json::Value;

use super::blocks::blocks;
use super::read;
use crate::support::cairn::{Setup, program};
use crate::support::files::noise;
use crate::support::minio::Minio;
use crate::support::process::{command, finish, run};

/// What the policy of the chapter allows.
const URL: &str = "s3://my-bucket/disks";

/// The policy as the chapter prints it.
fn policy() -> Value {
    let chapter = read("docs/buckets.md");
    let marked = blocks("docs/buckets.md", &chapter);
    let mut found = marked.iter().filter(|block| block.comment.as_deref() == Some("policy"));
    let block = found.next().expect("the chapter has a policy");
    assert!(found.next().is_none(), "one policy");
    serde_json::from_str(&block.text).expect("the policy is JSON")
}

/// The actions that a policy allows.
fn actions(policy: &Value) -> Vec<String> {
    let statements = policy["Statement"].as_array().expect("statements").iter();
    let all = statements.flat_map(|statement| match &statement["Action"] {
        Value::Array(actions) => actions.clone(),
        one => vec![one.clone()],
    });
    all.map(|action| action.as_str().expect("an action").to_owned()).collect()
}

/// The policy without an action.
fn without(policy: &Value, action: &str) -> Value {
    let mut less = policy.clone();
    let statements = less["Statement"].as_array_mut().expect("statements");
    for statement in statements.iter_mut() {
        if let Value::Array(actions) = &mut statement["Action"] {
            actions.retain(|one| one != action);
        }
    }
    statements.retain(|statement| statement["Action"] != action);
    less
}

/// A request that curl signs with the server's own keys.
async fn signed(minio: &Minio, service: &str, rest: &[&str]) -> String {
    let env = minio.env();
    let of = |name: &str| env.iter().find(|(key, _)| key == name).expect("MinIO's tests have it").1.clone();
    let user = format!("{}:{}", of("AWS_ACCESS_KEY_ID"), of("AWS_SECRET_ACCESS_KEY"));
    let mut curl = command(["curl", "--silent", "--show-error", "--fail-with-body", "--user", &user]);
    curl.args(["--aws-sigv4", &format!("aws:amz:us-east-1:{service}")]).args(rest);
    run(&mut curl).await
}

/// The environment of a session of MinIO that has exactly these rights, and a bucket of the policy's name.
async fn session(minio: &Minio, policy: &Value) -> Vec<(String, String)> {
    let policy = format!("Policy={policy}");
    let answer = signed(
        minio,
        "sts",
        &[
            &minio.endpoint(),
            "--data-urlencode",
            "Action=AssumeRole",
            "--data-urlencode",
            "Version=2011-06-15",
            "--data-urlencode",
            "DurationSeconds=3600",
            "--data-urlencode",
            &policy,
        ],
    )
    .await;
    let field = |name: &str| {
        let rest = answer.split(&format!("<{name}>")).nth(1).and_then(|rest| rest.split('<').next());
        rest.unwrap_or_else(|| panic!("no {name} in {answer}")).to_owned()
    };
    let mut env = minio.env();
    env.retain(|(name, _)| !name.contains("ACCESS_KEY"));
    env.push(("AWS_ACCESS_KEY_ID".to_owned(), field("AccessKeyId")));
    env.push(("AWS_SECRET_ACCESS_KEY".to_owned(), field("SecretAccessKey")));
    env.push(("AWS_SESSION_TOKEN".to_owned(), field("SessionToken")));
    env.push(("CAIRN_STORE__PATH_STYLE".to_owned(), "true".to_owned()));
    env
}

/// A server with the policy's bucket.
async fn with_bucket(more: &[&str]) -> Minio {
    let minio = Minio::start().await;
    let bucket = format!("{}/my-bucket", minio.endpoint());
    signed(&minio, "s3", &[&["--request", "PUT", &bucket], more].concat()).await;
    minio
}

fn pairs(env: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
    env.iter().map(|(name, value)| (name.as_str(), value.as_str()))
}

/// Serves, writes, flushes, reads, overwrites and deletes a volume.
async fn lives(env: &[(String, String)]) {
    let files = tempfile::tempdir().expect("a directory");
    let path = |name: &str| files.path().join(name);
    let gateway = Setup::at(URL, pairs(env))
        .create("disk", "16MiB")
        .tcp()
        .env("CAIRN_STORE__DELETION_GRACE", "0s")
        .env("CAIRN_ADMIN__LISTEN", "none");
    let mut gateway = gateway.start().await;
    for seed in [1, 2] {
        std::fs::write(path("image"), noise(seed, 16 << 20)).expect("an image can be written");
        run(command(["nbdcopy", "--flush"]).arg(path("image")).arg(gateway.uri("disk"))).await;
        run(command(["nbdcopy"]).arg(gateway.uri("disk")).arg(path("copy"))).await;
        assert!(
            std::fs::read(path("image")).ok() == std::fs::read(path("copy")).ok(),
            "the disk holds the image"
        );
    }
    gateway.process.signal(rustix::process::Signal::TERM);
    let status = gateway.process.exit().await;
    let log = gateway.process.output();
    assert!(status.success(), "{status}: {log}");
    assert!(!log.contains("denied") && !log.contains("WARN"), "{log}");
    for line in [&["volume", "delete", "disk", "--now"][..], &["volume", "list"]] {
        let left = run(program().args(line).args(["--store", URL]).envs(pairs(env))).await;
        assert_eq!(left.contains("disk"), line[1] == "delete", "{left}");
    }
}

/// What Cairn says where it lacks a right: a volume is made and deleted.
async fn refused(env: &[(String, String)]) -> String {
    let mut said = String::new();
    for line in [&["create", "disk", "16MiB"][..], &["delete", "disk", "--now"]] {
        let done = finish(program().arg("volume").args(line).args(["--store", URL]).envs(pairs(env))).await;
        if !done.status.success() {
            assert_eq!(done.status.code(), Some(1), "{}", done.stderr);
            return done.stderr;
        }
        said += &done.stderr;
    }
    panic!("nothing was refused: {said}");
}

#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn the_policy_is_enough_for_the_whole_life_of_a_volume() {
    let minio = with_bucket(&[]).await;
    assert_eq!(actions(&policy()).len(), 4);
    lives(&session(&minio, &policy()).await).await;
}

#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn without_any_of_its_actions_cairn_names_the_one_that_is_missing() {
    let minio = with_bucket(&[]).await;
    for action in actions(&policy()) {
        let said = refused(&session(&minio, &without(&policy(), &action)).await).await;
        let last = said.lines().last().unwrap_or_default();
        assert!(last.contains(&action) && last.contains("access denied"), "without {action}: {said}");
    }
}

#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn the_policy_gives_no_right_to_another_prefix() {
    let minio = with_bucket(&[]).await;
    let env = session(&minio, &policy()).await;
    let mut elsewhere = program();
    elsewhere.args(["volume", "list", "--store", "s3://my-bucket/others"]).envs(pairs(&env));
    let done = finish(&mut elsewhere).await;
    assert_eq!(done.status.code(), Some(1), "{}{}", done.stdout, done.stderr);
    assert!(done.stderr.contains("access denied"), "{}", done.stderr);
}

#[tokio::test]
#[ignore = "needs MinIO, libnbd"]
async fn a_bucket_that_lets_nothing_go_is_served_and_keeps_everything() {
    let minio = with_bucket(&["--header", "x-amz-bucket-object-lock-enabled: true"]).await;
    let rule = "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>\
         <Mode>COMPLIANCE</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>";
    // The digests of the rule, which S3 asks for.
    let sha256 = "6f5e7ab570c3c80c33995fa80b66a80d2a419088c5f98fcdb1f3048b3ea3cf84";
    let md5 = "bAtV4GhRHjlhyrqo+OfhYg==";
    let lock = format!("{}/my-bucket?object-lock=", minio.endpoint());
    let (sha256, md5) = (format!("x-amz-content-sha256: {sha256}"), format!("Content-MD5: {md5}"));
    let request = ["--request", "PUT", &lock, "--header", &sha256, "--header", &md5];
    signed(
        &minio,
        "s3",
        &[&request[..], &["--header", "Content-Type: application/xml", "--data-binary", rule]].concat(),
    )
    .await;
    let mut env = minio.env();
    env.push(("CAIRN_STORE__PATH_STYLE".to_owned(), "true".to_owned()));
    lives(&env).await;
    let versions = signed(&minio, "s3", &[&format!("{}/my-bucket?versions=", minio.endpoint())]).await;
    let count = |what: &str| versions.matches(what).count();
    assert!(count("/chunk/") >= 16 && count("<DeleteMarker>") >= 8, "{versions}");
}
