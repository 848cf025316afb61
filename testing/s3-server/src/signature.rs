//! AWS Signature Version 4, checked as a store does: from the request as it came over the wire.

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use crate::http::Request;

/// The keys that locations of [`Server::target`](crate::Server::target) have.
const KEYS: (&str, &str) = ("key", "secret");

/// Whether a request of those keys has another signature than its own. Other keys are not known
/// here.
pub(crate) fn is_wrong(request: &Request) -> bool {
    let given = request.header("authorization").and_then(Given::parse);
    let Some(given) = given else {
        return false;
    };
    given.key == KEYS.0 && given.signature != given.expected(request)
}

/// What the `Authorization` header says.
struct Given<'a> {
    key: &'a str,
    /// Date, region, service and `aws4_request`.
    scope: Vec<&'a str>,
    headers: &'a str,
    signature: &'a str,
}

impl<'a> Given<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let fields = text.strip_prefix("AWS4-HMAC-SHA256 ")?;
        let field = |name: &str| {
            let mut fields = fields.split(',').map(str::trim);
            fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        let mut credential = field("Credential")?.split('/');
        Some(Self {
            key: credential.next()?,
            scope: credential.collect(),
            headers: field("SignedHeaders")?,
            signature: field("Signature")?,
        })
    }

    fn expected(&self, request: &Request) -> String {
        let date = request.header("x-amz-date").unwrap_or_default();
        let hash = hex(&Sha256::digest(self.canonical(request)));
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{}\n{hash}", self.scope.join("/"));
        let secret = format!("AWS4{}", KEYS.1).into_bytes();
        let key = self.scope.iter().fold(secret, |key, part| sign(&key, part));
        hex(&sign(&key, &text))
    }

    fn canonical(&self, request: &Request) -> String {
        let (path, query) = request
            .target
            .split_once('?')
            .unwrap_or((&request.target, ""));
        let mut query: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty()).collect();
        query.sort_unstable();
        let mut text = format!("{}\n{path}\n{}\n", request.method, query.join("&"));
        for name in self.headers.split(';') {
            text += &format!("{name}:{}\n", request.header(name).unwrap_or_default());
        }
        let payload = request.header("x-amz-content-sha256").unwrap_or_default();
        text + &format!("\n{}\n{payload}", self.headers)
    }
}

fn sign(key: &[u8], text: &str) -> Vec<u8> {
    let mac = Hmac::<Sha256>::new_from_slice(key);
    let mut mac = mac.expect("any key will do");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
