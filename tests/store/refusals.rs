//! Mistakes that waiting cannot cure are reported at once at the start, with their cause and what to change:
//! a wrong endpoint, an untrusted certificate, a bucket in another region, credentials, permissions.

use cairn::metrics::Metrics;
use cairn::store::{
    self, Control, Drawn, Error, ListFrom, Location, OpenError, Options, S3Options, S3Store, Store,
};
use cairn::task::Tasks;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use crate::support::cairn::program;
use crate::support::certificates::Authority;
use crate::support::fake_bucket::{BUCKET, FakeBucket};
use crate::support::fake_s3::{FakeS3, Reply, Request, answer, error};
use crate::support::process::free_port;

/// The result of a run of `cairn volume list`.
struct Listed {
    works: bool,
    said: String,
}

/// Lists the volumes with these variables, and no others of AWS.
async fn list(env: &[(&str, &str)]) -> Listed {
    let mut command = program();
    command.args(["volume", "list", "--store", "s3://disks/at"]);
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("CAIRN_STORE__PATH_STYLE", "true"),
    ] {
        command.env(name, value);
    }
    command.env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR").envs(env.iter().copied());
    let output = command.output().await.expect("the program runs");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Listed { works: output.status.success(), said }
}

async fn fails(env: &[(&str, &str)], parts: &[&str]) {
    let Listed { works, said } = list(env).await;
    assert!(!works, "{env:?}: {said}");
    let last = said.lines().last().unwrap_or_default();
    for part in parts {
        assert!(last.contains(part), "{env:?}: no {part} in: {said}");
    }
}

#[tokio::test]
async fn an_invalid_endpoint_in_the_environment_is_named_at_once() {
    for (name, value, part) in [
        ("AWS_ENDPOINT_URL", "minio:9000", "write http://minio:9000 or https://minio:9000"),
        ("AWS_ENDPOINT_URL_S3", "minio", "has no scheme"),
        ("AWS_ENDPOINT_URL", "ftp://minio", "neither http:// nor https://"),
    ] {
        fails(&[(name, value)], &["s3://disks", &format!("{name}: the endpoint"), part]).await;
    }
    fails(&[("CAIRN_STORE__ENDPOINT", "minio:9000")], &["store.endpoint", "write http://minio:9000"]).await;
    fails(&[("AWS_REGION", "eu central 1")], &["\"eu central 1\" is not a region", "AWS_REGION"]).await;
    fails(&[("AWS_REGION", "")], &["no region is set", "store.region", "AWS_REGION"]).await;
}

#[tokio::test]
async fn a_host_that_does_not_exist_is_named_at_once() {
    let named = "cannot reach http://nowhere.invalid:9000 (set by AWS_ENDPOINT_URL): ";
    let env = [("AWS_ENDPOINT_URL", "http://nowhere.invalid:9000")];
    fails(&env, &[named, "the host does not exist; check AWS_ENDPOINT_URL"]).await;
    // The bucket becomes part of the host name, which many services do not support.
    let env = [("AWS_ENDPOINT_URL", "http://nowhere.invalid:9000"), ("CAIRN_STORE__PATH_STYLE", "false")];
    fails(&env, &[named, "store.path_style = true"]).await;
}

#[tokio::test]
async fn a_certificate_is_trusted_if_the_environment_says_so_and_otherwise_named_at_once() {
    let authority = Authority::new();
    let bucket = FakeBucket::start_tls(authority.server_config()).await;
    let endpoint = format!("https://localhost:{}", bucket.server.port());
    let path = authority.certificate().display().to_string();
    let here = ("AWS_ENDPOINT_URL", endpoint.as_str());
    fails(&[here], &["UnknownIssuer", &endpoint, "AWS_CA_BUNDLE or SSL_CERT_FILE"]).await;
    for variable in ["AWS_CA_BUNDLE", "SSL_CERT_FILE"] {
        let Listed { works, said } = list(&[here, (variable, &path)]).await;
        assert!(works, "{variable}: {said}");
    }
    let config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(config.path(), format!("[default]\nca_bundle = {path}\n")).unwrap();
    let Listed { works, said } = list(&[here, ("AWS_CONFIG_FILE", config.path().to_str().unwrap())]).await;
    assert!(works, "ca_bundle: {said}");
    fails(&[here, ("AWS_CA_BUNDLE", "/no/such")], &["AWS_CA_BUNDLE", "/no/such", "No such file"]).await;
    // The certificate is for localhost.
    let endpoint = format!("https://127.0.0.1:{}", bucket.server.port());
    let by_address = ("AWS_ENDPOINT_URL", endpoint.as_str());
    fails(&[by_address, ("AWS_CA_BUNDLE", &path)], &[&endpoint, "for another name", "AWS_ENDPOINT_URL"])
        .await;
    assert!(!list(&[here]).await.said.contains("panicked"));
}

#[tokio::test]
async fn a_server_without_tls_is_named_at_once() {
    // As servers answer a request that is not HTTP.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    let tasks = Tasks::new();
    tasks.spawn_until_cancelled(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await.unwrap();
        }
    });
    let parts = [&endpoint, "does not use TLS", "should AWS_ENDPOINT_URL begin with http://"];
    fails(&[("AWS_ENDPOINT_URL", &endpoint)], &parts).await;
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_named_with_its_cause_and_setting() {
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let options = S3Options { endpoint: Some(endpoint.clone()), ..FakeS3::start(nothing).await.options() };
    let store = S3Store::open(BUCKET, "", options).await.unwrap();
    let error = store.list("name/", &ListFrom::Start).await.unwrap_err();
    assert!(matches!(error, Error::Transient { .. }), "{error}");
    for part in [&format!("no answer from {endpoint} (set by store.endpoint): "), "Connection refused"] {
        assert!(error.to_string().contains(part), "no {part} in: {error}");
    }
}

fn nothing(_: &Request) -> Reply {
    Reply::Close(Vec::new())
}

#[tokio::test]
async fn an_endpoint_with_a_path_has_the_bucket_below_it() {
    let server = FakeS3::start(|_| Reply::Whole(answer("200 OK", &[("ETag", "\"e\"")], b"x"))).await;
    for end in ["", "/"] {
        let endpoint = format!("http://127.0.0.1:{}/storage/v1/s3{end}", server.port());
        let options = S3Options { endpoint: Some(endpoint), ..server.options() };
        let store = S3Store::open(BUCKET, "at", options).await.unwrap();
        store.get("key", store::ByteRange::Full).await.unwrap();
        let last = server.requests().pop().unwrap();
        assert_eq!(last.target.split('?').next(), Some("/storage/v1/s3/disks/at/key"));
    }
}

async fn opened(options: S3Options, location: &str) -> Result<Control, OpenError> {
    let location: Location = location.parse().unwrap();
    let options = Options { s3: options, ..Options::default() };
    let drawn = Drawn { seed: 1, nonce: "nonce".into(), now_seconds: 0 };
    Ok(store::open(&location, &options, Metrics::new().store(), &drawn).await?.control)
}

#[tokio::test]
async fn a_start_does_not_wait_for_a_host_that_does_not_exist() {
    let options = FakeS3::start(nothing).await.options();
    for create_bucket in [false, true] {
        let endpoint = Some("http://nowhere.invalid:9000".to_owned());
        let options = S3Options { endpoint, create_bucket, ..options.clone() };
        let message = opened(options, "s3://disks/at").await.unwrap_err().to_string();
        for part in
            ["cannot reach http://nowhere.invalid:9000", "the host does not exist; check store.endpoint"]
        {
            assert!(message.contains(part), "no {part} in: {message}");
        }
    }
}

/// Responses of S3, and what must be reported. One request is enough to know.
#[tokio::test]
async fn permanent_refusals_are_reported_after_one_request() {
    let moved = || {
        let body = b"<Error><Code>PermanentRedirect</Code><Message>elsewhere</Message></Error>";
        answer("301 Moved Permanently", &[("x-amz-bucket-region", "eu-west-1")], body)
    };
    for (reply, parts) in [
        (
            error("403 Forbidden", "InvalidAccessKeyId"),
            ["access denied: InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"],
        ),
        (error("403 Forbidden", "SignatureDoesNotMatch"), ["SignatureDoesNotMatch", "AWS_PROFILE"]),
        (error("403 Forbidden", "RequestTimeTooSkewed"), ["RequestTimeTooSkewed", "clock of this machine"]),
        (error("404 Not Found", "NoSuchBucket"), ["NoSuchBucket", "store.create_bucket"]),
        (moved(), ["PermanentRedirect", "set store.region (AWS_REGION) to eu-west-1"]),
        (
            error("400 Bad Request", "AuthorizationHeaderMalformed"),
            ["AuthorizationHeaderMalformed", "store.region"],
        ),
    ] {
        let server = FakeS3::start(move |_| Reply::Whole(reply.clone())).await;
        let message = opened(server.options(), "s3://disks/at").await.unwrap_err().to_string();
        let service =
            format!("s3://disks/at at http://127.0.0.1:{} (set by store.endpoint): ", server.port());
        for part in parts.into_iter().chain([service.as_str()]) {
            assert!(message.contains(part), "no {part} in: {message}");
        }
        assert_eq!(server.requests().len(), 1, "{message}");
    }
}

/// Each forbidden operation is reported with its permission, at the first start and at later ones.
#[tokio::test]
async fn a_missing_permission_is_reported_at_the_start() {
    let bucket = FakeBucket::start().await;
    for start in ["first", "later"] {
        for (method, permission) in [
            ("GET", "s3:GetObject and s3:ListBucket"),
            ("PUT", "need s3:PutObject"),
            ("LIST", "need s3:ListBucket"),
            ("POST", "need s3:DeleteObject"),
        ] {
            bucket.rule(move |request| {
                let listing = request.target.contains("list-type=2");
                let asked = if listing { "LIST" } else { request.method.as_str() };
                (asked == method).then(|| Reply::Whole(error("403 Forbidden", "AccessDenied")))
            });
            let message = opened(bucket.server.options(), "s3://disks/at").await.unwrap_err().to_string();
            assert!(message.contains("access denied: AccessDenied"), "{start}: {message}");
            assert!(message.contains(permission), "{start}: no {permission} in: {message}");
        }
        // Without ListBucket, a GET of an object that does not exist is forbidden.
        bucket.rule(|request| {
            let absent = request.method == "GET" && request.target.contains("/probe/nonce/");
            absent.then(|| Reply::Whole(error("403 Forbidden", "AccessDenied")))
        });
        let message = opened(bucket.server.options(), "s3://disks/at").await.unwrap_err().to_string();
        assert!(
            message.contains("GET of a key that does not exist, which also needs ListBucket"),
            "{start}: {message}"
        );
        bucket.no_rule();
        opened(bucket.server.options(), "s3://disks/at").await.unwrap();
        assert_eq!(bucket.keys(), ["at/probe/passed"]);
    }
}
