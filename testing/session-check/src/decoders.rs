//! Every decoder of bytes and texts from outside, by itself: no panic on anything, and what was
//! decoded says the same as the bytes did.

use nbd_rs::layout::distributed::log::object::{
    decode_floor, decode_slot, encode_floor, encode_slot, HEADER_BYTES,
};
use nbd_rs::layout::sharded::Uuid;
use nbd_rs::location::Location;
use nbd_rs::nbd::wire::option::{InfoRequest, MetaContextRequest, OptionHeader};
use nbd_rs::nbd::wire::request::{BlockStatusPayload, Request};
use nbd_rs::nbd::wire::Framing;
use nbd_rs_plugin::options::{boolean, check, count, decode, display_size, duration, size};
use nbd_rs_plugin::{Description, Error, Kind, OptionKind, OptionSpec};

/// Which decoder an input is for: its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoder {
    /// Headers of options and requests.
    Headers,
    /// The data of INFO and GO.
    Info,
    /// The data of the metadata options.
    MetaContext,
    /// The payload of BLOCK_STATUS.
    BlockStatus,
    /// `cache+retry+s3://...`
    Location,
    /// Sizes, durations, and the other values of options.
    Values,
    /// A library before it is loaded.
    Library,
    /// Slots and floors of a commit log.
    Log,
}

/// All of them; the first byte of an input is an index here.
pub const DECODERS: [Decoder; 8] = [
    Decoder::Headers,
    Decoder::Info,
    Decoder::MetaContext,
    Decoder::BlockStatus,
    Decoder::Location,
    Decoder::Values,
    Decoder::Library,
    Decoder::Log,
];

/// Runs the decoder that the first byte names on the rest.
///
/// # Panics
/// If the decoder does, or what it decoded is not what the bytes said.
pub fn run(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else {
        return;
    };
    match DECODERS[usize::from(*first) % DECODERS.len()] {
        Decoder::Headers => headers(bytes),
        Decoder::Info => info(bytes),
        Decoder::MetaContext => meta_context(bytes),
        Decoder::BlockStatus => block_status(bytes),
        Decoder::Location => location(&String::from_utf8_lossy(bytes)),
        Decoder::Values => values(&String::from_utf8_lossy(bytes)),
        Decoder::Library => library(bytes),
        Decoder::Log => log(bytes),
    }
}

fn headers(bytes: &[u8]) {
    if let Some(header) = bytes.first_chunk().and_then(OptionHeader::decode) {
        assert_eq!(header.option.to_be_bytes(), bytes[8..12]);
        assert_eq!(header.length.to_be_bytes(), bytes[12..16]);
    }
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        let whole = framing.request_header_bytes();
        match Request::decode(bytes, framing) {
            Ok(Some(request)) => {
                let encoded = request.encode(framing);
                assert_eq!(encoded, bytes[..whole]);
                assert_eq!(Request::decode(&encoded, framing), Ok(Some(request)));
            }
            Ok(None) => assert!(bytes.len() < whole),
            Err(bad) => assert_eq!(bad.0.to_be_bytes(), bytes[..4]),
        }
    }
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

fn info(bytes: &[u8]) {
    if let Ok(request) = InfoRequest::decode(bytes) {
        let mut encoded = string(request.name);
        encoded.extend((request.infos.len() as u16).to_be_bytes());
        encoded.extend(request.infos.iter().flat_map(|info| info.to_be_bytes()));
        assert_eq!(encoded, bytes);
    }
}

fn meta_context(bytes: &[u8]) {
    if let Ok(request) = MetaContextRequest::decode(bytes) {
        let mut encoded = string(request.name);
        encoded.extend((request.queries.len() as u32).to_be_bytes());
        encoded.extend(request.queries.iter().flat_map(|query| string(query)));
        assert_eq!(encoded, bytes);
    }
}

fn block_status(bytes: &[u8]) {
    if let Some(payload) = BlockStatusPayload::decode(bytes) {
        let mut encoded = payload.effect_length.to_be_bytes().to_vec();
        encoded.extend(payload.contexts.iter().flat_map(|id| id.to_be_bytes()));
        assert_eq!(encoded, bytes);
    }
}

fn library(bytes: &[u8]) {
    if nbd_rs::plugin::check_library(bytes).is_ok() {
        // Cut right behind its head it can't be whole.
        assert!(nbd_rs::plugin::check_library(&bytes[..64]).is_err());
    }
}

/// Its checksum is put right, and it is of the volume and the place that it says.
fn log(bytes: &[u8]) {
    let mut header = bytes.to_vec();
    header.resize(HEADER_BYTES, 0);
    let (covered, checksum) = header.split_at_mut(HEADER_BYTES - 4);
    checksum.copy_from_slice(&crc32c::crc32c(covered).to_le_bytes());
    let volume = Uuid(header[8..24].try_into().unwrap_or_default());
    let number = u64::from_le_bytes(header[24..32].try_into().unwrap_or_default());
    if let Ok((entry, seal)) = decode_slot(volume, number, &header) {
        assert_eq!(encode_slot(volume, number, &entry, seal), header);
        assert!(decode_slot(volume, number ^ 1, &header).is_err());
    }
    if let Ok(floor) = decode_floor(volume, number, &header) {
        assert_eq!(encode_floor(volume, number, &floor), header);
    }
    assert!(decode_slot(volume, number, bytes).is_err() || bytes == header);
}

fn values(text: &str) {
    if let Ok(bytes) = size(text) {
        let shown = display_size(bytes).replace(' ', "").replace("bytes", "");
        assert_eq!(
            size(&shown).ok(),
            Some(bytes),
            "{text:?} shown as {shown:?}"
        );
    }
    if let Ok(time) = duration(text) {
        assert_eq!(
            duration(&format!("{}ms", time.as_millis())).ok(),
            Some(time)
        );
    }
    if let Ok(number) = count(text) {
        assert_eq!(count(&number.to_string()).ok(), Some(number));
    }
    let _ = boolean(text);
    if let Ok(decoded) = decode(text) {
        assert!(!decoded.contains('\0'));
    }
    for spec in &descriptions()[0].options {
        let _ = check(spec, text);
    }
}

/// A store and two links with options of every kind.
fn descriptions() -> [Description; 4] {
    let s3 = Description::store("s3", "1")
        .option(OptionSpec::new("region", OptionKind::TEXT, ""))
        .option(OptionSpec::new("secret_key", OptionKind::TEXT, "").secret())
        .option(OptionSpec::new("part", OptionKind::SIZE, ""))
        .option(OptionSpec::new("timeout", OptionKind::DURATION, ""))
        .option(OptionSpec::new("attempts", OptionKind::COUNT, ""))
        .option(OptionSpec::new("path_style", OptionKind::BOOL, ""))
        .option(OptionSpec::choice("acl", &["private", "public"], ""));
    let cache =
        Description::link("cache", "1").option(OptionSpec::new("size", OptionKind::SIZE, ""));
    let token = OptionSpec::new("token", OptionKind::TEXT, "").secret();
    let retry = Description::link("retry", "1").option(token);
    [s3, Description::store("file", "1"), cache, retry]
}

fn location(text: &str) {
    let known = descriptions();
    let lookup = |scheme: &str| {
        let found = known.iter().find(|description| description.name == scheme);
        found.ok_or_else(|| Error::new(Kind::Invalid, "unknown scheme"))
    };
    let Ok(location) = Location::parse(text, &lookup) else {
        return;
    };
    assert!(location.links.len() <= 16);
    let (shown, debugged) = (location.to_string(), format!("{location:?}"));
    assert!(!shown.contains(|c: char| c.is_control()), "{shown:?}");
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8_lossy();
    for hop in location.links.iter().chain([&location.store]) {
        let description = lookup(&hop.scheme).expect("only known schemes are taken");
        let debugged_hop = format!("{hop:?}");
        for value in hop.option_values() {
            let spec = description
                .options
                .iter()
                .find(|spec| spec.name == value.name);
            let spec = spec.expect("only known options are taken");
            let secret = value.value.as_str();
            // Short words, and those that stand elsewhere too, prove nothing.
            let is_telling = secret.len() >= 8 && decoded.matches(secret).count() == 1;
            if spec.secret && is_telling {
                for text in [&shown, &debugged, &debugged_hop] {
                    assert!(!text.contains(secret), "{text:?} shows {secret:?}");
                }
            }
        }
    }
}
