//! Connects to a service: finds its address, decides which certificates to trust, and builds a client.
//!
//! Owns the configuration of the SDK, and must not know what is stored. Settings have precedence over the
//! environment, which has precedence over the profile, as in other programs that use an AWS SDK. Invariant: a
//! configuration that cannot work fails here, before anything is sent, with an error that names the setting.

use std::fmt;
use std::path::Path;

use aws_config::{BehaviorVersion, ConfigLoader};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    AppName, Region, SharedCredentialsProvider, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_types::service_config::{LoadServiceConfig, ServiceConfigKey};

use super::endpoint::{self, Endpoint};
use super::{S3Options, Transport, trust};

/// The region of a bucket that is created without a location constraint.
pub(super) const PLAIN_REGION: &str = "us-east-1";

/// The settings, environment and profile as they were when the store was opened. They stay fixed: a later
/// change of the profile can bring new credentials, but never another service.
pub(super) struct Connection {
    options: S3Options,
    http: SharedHttpClient,
    endpoint: Option<Endpoint>,
    region: Region,
}

/// The service, as errors name it.
#[derive(Clone, Debug)]
pub(super) struct Service {
    /// The URL, or a description such as `Amazon S3 in the region …`.
    pub(super) name: String,
    /// The setting that determines where the service is.
    pub(super) setting: &'static str,
    /// Whether the bucket is part of the host name, below a configured endpoint.
    pub(super) bucket_in_host: bool,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, setting, .. } = self;
        write!(f, "{name} (set by {setting})")
    }
}

impl Connection {
    /// Reads the configuration. Sends nothing, except that the SDK may ask the metadata service of the
    /// machine for the region.
    pub(super) async fn of(options: &S3Options) -> Result<Self, String> {
        // This region is not used. It only stops the SDK from looking for one.
        let known = aws_config::defaults(version()).region(Region::from_static(PLAIN_REGION));
        let known = known.no_credentials().load().await;
        let known = known.service_config();
        let bundle = known.and_then(|known| configured(known, "AWS_CA_BUNDLE", "ca_bundle"));
        let trusted = bundle.map(|path| trust::bundle(Path::new(&path))).transpose()?;
        let http = trust::http_client(trusted)?;
        let endpoint = endpoint_of(options, known)?;
        let region = match &options.region {
            Some(region) => Some(Region::new(region.clone())),
            None => loader(options, &http).no_credentials().load().await.region().cloned(),
        };
        let region = region.filter(|region| !region.as_ref().is_empty());
        let region = match (region, &endpoint) {
            (Some(region), None) if !is_label(region.as_ref()) => {
                return Err(format!(
                    "{:?} is not a region: check store.region or AWS_REGION",
                    region.as_ref()
                ));
            }
            (Some(region), _) => region,
            // Servers other than Amazon's accept almost any region, and by convention this one.
            (None, Some(_)) => Region::from_static(PLAIN_REGION),
            (None, None) => {
                return Err(
                    "no region is set: set store.region, AWS_REGION or region of the profile; for a \
                            service other than Amazon's, store.endpoint or AWS_ENDPOINT_URL"
                        .to_owned(),
                );
            }
        };
        Ok(Self { options: options.clone(), http, endpoint, region })
    }

    /// Creates a client for the service.
    pub(super) async fn client(&self, transport: &Transport) -> Client {
        let mut loader = loader(&self.options, &self.http).region(self.region.clone());
        if let Some(endpoint) = &self.endpoint {
            loader = loader.endpoint_url(&endpoint.url);
        }
        if let Some(credentials) = &self.options.credentials {
            loader = loader.credentials_provider(credentials.clone());
        }
        let shared = loader.load().await;
        let config = aws_sdk_s3::config::Builder::from(&shared)
            .force_path_style(self.options.path_style)
            .interceptor(transport.clone());
        Client::from_conf(config.build())
    }

    /// Creates the SDK's chain of credentials, which has not read anything yet.
    pub(super) async fn credentials(&self) -> Option<SharedCredentialsProvider> {
        let shared = loader(&self.options, &self.http).region(self.region.clone()).load().await;
        shared.credentials_provider()
    }

    pub(super) fn service(&self) -> Service {
        match &self.endpoint {
            Some(Endpoint { url, setting }) => {
                Service { name: url.clone(), setting, bucket_in_host: !self.options.path_style }
            }
            None => Service {
                name: format!("Amazon S3 in the region {}", self.region),
                setting: "store.region or AWS_REGION",
                bucket_in_host: false,
            },
        }
    }
}

/// Returns whether the region can be part of a host name of Amazon.
fn is_label(region: &str) -> bool {
    region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn version() -> BehaviorVersion {
    BehaviorVersion::v2026_01_12()
}

fn loader(options: &S3Options, http: &SharedHttpClient) -> ConfigLoader {
    aws_config::defaults(version())
        .http_client(http.clone())
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(options.connect_timeout).build())
        // A second safeguard for downloads. The store watches their progress itself.
        .stalled_stream_protection(
            StalledStreamProtectionConfig::enabled().grace_period(options.stall_timeout * 2).build(),
        )
        .app_name(AppName::new("cairn").expect("a plain word is a valid name"))
}

/// Returns the value of an environment variable, or else of a profile key, for the service S3.
fn configured(known: &dyn LoadServiceConfig, variable: &str, key: &str) -> Option<String> {
    let key = ServiceConfigKey::builder().service_id("S3").env(variable).profile(key).build();
    known.load_config(key.expect("all of a key is given")).filter(|value| !value.is_empty())
}

/// Returns the configured endpoint, if there is one. The SDK ignores or retries a malformed endpoint; this
/// returns an error instead.
fn endpoint_of(
    options: &S3Options,
    known: Option<&dyn LoadServiceConfig>,
) -> Result<Option<Endpoint>, String> {
    let (text, setting) = match &options.endpoint {
        Some(text) => (text.clone(), "store.endpoint"),
        None => match known.and_then(|known| configured(known, "AWS_ENDPOINT_URL", "endpoint_url")) {
            None => return Ok(None),
            Some(text) => {
                let of = |variable: &str| std::env::var(variable).is_ok_and(|value| value == text);
                let variables = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
                let setting = variables.into_iter().find(|variable| of(variable));
                (text, setting.unwrap_or("endpoint_url of the profile"))
            }
        },
    };
    let url = endpoint::parse(&text).map_err(|error| format!("{setting}: {error}"))?;
    Ok(Some(Endpoint { url, setting }))
}
