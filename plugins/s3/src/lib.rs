//! The S3 store: objects in a bucket, on AWS or any server that speaks its protocol.
//!
//! ```text
//!   backend ──▶ client ──▶ request ──▶ (network) ──▶ response ──▶ assemble
//!   one method  attempts   path,       one pool of   status and   chunks as they came,
//!   per call    and times  headers,    connections   XML judged   exactly the range
//!                          signature
//! ```
//!
//! `location`, `config`, `profile`, `request`, `response`, `xml` and `assemble` know no socket, file
//! or clock; `client` is the one with the network, and `credentials` finds and refreshes keys, those
//! of a machine's role by `metadata`.

mod assemble;
pub mod backend;
mod body;
mod client;
mod config;
mod credentials;
mod endpoint;
mod listing;
mod location;
mod metadata;
mod open;
mod profile;
mod request;
mod resolve;
mod response;
mod xml;

use nbd_rs_plugin::{export_plugin, Description, Host, OpenRequest, OptionKind, OptionSpec};

/// What the plugin says of itself.
pub fn describe() -> Description {
    let scheme = "a bucket: s3://bucket/prefix, s3://KEY:SECRET@host:9000/bucket/prefix";
    let description = Description::store("s3", env!("CARGO_PKG_VERSION"))
        .license("MIT OR Apache-2.0")
        .scheme("s3", scheme);
    options().into_iter().fold(description, Description::option)
}

fn options() -> Vec<OptionSpec> {
    let text = |name, help| OptionSpec::new(name, OptionKind::TEXT, help);
    let time =
        |name, default, help| OptionSpec::new(name, OptionKind::DURATION, help).default(default);
    let flag = |name, help| OptionSpec::new(name, OptionKind::BOOL, help).default("false");
    let count =
        |name, default, help| OptionSpec::new(name, OptionKind::COUNT, help).default(default);
    let choice =
        |name, choices: &[&str], help| OptionSpec::choice(name, choices, help).default(choices[0]);
    vec![
        text("region", "the bucket's region; without it: environment, profile, or what the store says"),
        text("endpoint", "the server, such as https://s3.example.com:9000, for s3://bucket/prefix"),
        choice(
            "style",
            &["auto", "path", "virtual"],
            "where the bucket is named: in the path or in the host; auto: in the host on AWS only",
        ),
        text("profile", "the section of the AWS credentials and config files to use"),
        text("storage_class", "the class of new objects, such as STANDARD_IA"),
        choice(
            "checksum",
            &["crc32c", "none", "signed"],
            "how the store checks what it receives: a CRC-32C header, nothing, or a signed SHA-256",
        ),
        choice(
            "conditions",
            &["probe", "yes", "no"],
            "whether the store obeys If-None-Match and If-Match; probe: try it when opened for writing",
        ),
        OptionSpec::new("ca", OptionKind::PATH, "PEM file with the certificates of a private CA"),
        flag("create_bucket", "make the bucket if it does not exist"),
        flag("allow_link_local", "let the endpoint be a link-local address"),
        time("connect_timeout", "5s", "how long a connection may take to be made"),
        time("read_timeout", "15s", "how long the store may be silent when an answer is due"),
        time("timeout", "60s", "how long one attempt may take in all"),
        count("connections", "64", "how many requests may be under way at once"),
        count("threads", "1", "network threads of this plugin; the first s3 location opened decides"),
    ]
}

export_plugin! {
    describe: describe,
    check: config::check,
    open: |_host: Host, request: OpenRequest| backend::S3Backend::open(request),
}
