//! `nbd-rs info`: what a volume is, and what its chain can do.

use nbd_rs_plugin::options::display_size;
use serde_json::json;

use super::args::Info;
use super::{say, volume, Done};
use crate::export::Export;
use crate::layout::open::{DistributedFacts, Facts, ShardedFacts, Volume};
use crate::nbd::validate::{transmission_flags, Agreement};
use crate::nbd::wire::constants::flag;
use crate::nbd::wire::Framing;
use crate::plugin::Registry;
use crate::runtime;

/// Names of the transmission flags, as the NBD specification spells them.
const FLAG_NAMES: [(u16, &str); 11] = [
    (flag::HAS_FLAGS, "HAS_FLAGS"),
    (flag::READ_ONLY, "READ_ONLY"),
    (flag::SEND_FLUSH, "SEND_FLUSH"),
    (flag::SEND_FUA, "SEND_FUA"),
    (flag::SEND_TRIM, "SEND_TRIM"),
    (flag::SEND_WRITE_ZEROES, "SEND_WRITE_ZEROES"),
    (flag::SEND_DF, "SEND_DF"),
    (flag::CAN_MULTI_CONN, "CAN_MULTI_CONN"),
    (flag::SEND_CACHE, "SEND_CACHE"),
    (flag::SEND_FAST_ZERO, "SEND_FAST_ZERO"),
    (flag::BLOCK_STATUS_PAYLOAD, "BLOCK_STATUS_PAYLOAD"),
];

/// The names of the flags that a client with every extension would see.
fn flag_names(export: &Export) -> Vec<&'static str> {
    let agreement = Agreement {
        framing: Framing::Extended,
        allocation: true,
    };
    let flags = transmission_flags(export, agreement);
    let set = FLAG_NAMES.iter().filter(|(bit, _)| flags & bit != 0);
    set.map(|(_, name)| *name).collect()
}

/// Prints it, also while the volume is being served.
///
/// # Errors
/// If the volume can't be opened.
pub(super) fn print(args: &Info, registry: &Registry) -> Done<()> {
    let (volume, export) = volume::look(&args.volume, registry)?;
    let facts = runtime::block_on(volume.facts(registry))?;
    match args.json {
        true => say(format_args!("{:#}", json(&volume, &export, facts.as_ref()))),
        false => say(text(&volume, &export, facts.as_ref())),
    }
    Ok(runtime::block_on(export.release())?)
}

fn json(volume: &Volume, export: &Export, facts: Option<&Facts>) -> serde_json::Value {
    let sizes = export.block_sizes();
    let mut json = json!({
        "layout": volume.driver.to_string(),
        "location": volume.location.to_string(),
        "size": export.size(),
        "block_sizes": {
            "minimum": sizes.minimum,
            "preferred": sizes.preferred,
            "maximum": sizes.maximum,
        },
        "read_only": export.is_read_only(),
        "flags": flag_names(export),
        "flush": export.flush_means(),
    });
    match facts {
        Some(Facts::Sharded(facts)) => sharded_json(&mut json, facts),
        Some(Facts::Distributed(facts)) => distributed_json(&mut json, facts),
        None => {}
    }
    json
}

fn sharded_json(json: &mut serde_json::Value, facts: &ShardedFacts) {
    let owner = facts.owner.as_ref();
    json["uuid"] = json!(facts.record.uuid.to_string());
    json["way"] = json!(facts.record.way.to_string());
    json["created"] = json!(facts.record.created_s);
    json["shard_size"] = json!(facts.record.shard_bytes);
    json["shards"] = json!({
        "never": facts.shards[0],
        "intended": facts.shards[1],
        "written": facts.shards[2],
    });
    json["journal"] = json!(facts.journal.as_ref().map(|entry| json!({
        "journal": entry.ticket.journal.to_string(),
        "host": entry.host,
        "needed": !entry.ticket.passed_by,
        "epoch": entry.ticket.epoch,
        "stored_record": entry.ticket.shipped_seq,
        "said": entry.said_s,
    })));
    json["owner"] = json!(owner.map(owner_json));
}

fn owner_json((who, standing): &(String, &'static str)) -> serde_json::Value {
    json!({ "who": who, "standing": standing })
}

fn distributed_json(json: &mut serde_json::Value, facts: &DistributedFacts) {
    let identity = &facts.identity;
    json["uuid"] = json!(identity.volume.to_string());
    json["created"] = json!(identity.created_s);
    json["shard_size"] = json!(identity.geometry.shard_bytes);
    json["replicas"] = json!({ "asked": identity.replicas, "copies": identity.copies() });
    json["write_quorum"] = json!(identity.write_quorum);
    json["warnings"] = json!(facts.warnings);
    let backend = |it: &crate::layout::open::BackendFacts| {
        json!({
            "name": it.name,
            "there": it.is_there,
            "owner": it.owner.as_ref().map(owner_json),
        })
    };
    json["backends"] = json!(facts.backends.iter().map(backend).collect::<Vec<_>>());
}

/// `1 MiB (1048576 bytes)`, or `1000 bytes`.
fn size(bytes: u64) -> String {
    match (display_size(bytes), format!("{bytes} bytes")) {
        (round, exact) if round == exact => exact,
        (round, exact) => format!("{round} ({exact})"),
    }
}

/// What may be done with an export.
pub(super) fn access(export: &Export) -> &'static str {
    match export.is_read_only() {
        true => "read-only",
        false => "read-write",
    }
}

/// What a layout has besides.
fn facts_lines(facts: &Facts) -> Vec<(&'static str, String)> {
    match facts {
        Facts::Sharded(facts) => sharded_lines(facts),
        Facts::Distributed(facts) => distributed_lines(facts),
    }
}

fn owner_text((who, standing): &(String, &'static str)) -> String {
    format!("{who} ({standing})")
}

fn distributed_lines(facts: &DistributedFacts) -> Vec<(&'static str, String)> {
    let identity = &facts.identity;
    let geometry = identity.geometry;
    let (copies, all) = (identity.copies(), identity.backends.len());
    let quorum = identity.write_quorum;
    let mut lines = vec![
        ("uuid", identity.volume.to_string()),
        (
            "shards",
            format!("{} of {}", geometry.shards(), display_size(geometry.shard_bytes)),
        ),
        (
            "copies",
            format!("{copies} of each shard; the log on {all} backends, {quorum} of which have to take a record"),
        ),
    ];
    for backend in &facts.backends {
        let owner = backend.owner.as_ref().map(owner_text);
        let said = match backend.is_there {
            true => owner.map_or("nobody yet".to_owned(), |owner| format!("owner {owner}")),
            false => "away".to_owned(),
        };
        lines.push(("backend", format!("{}: {said}", backend.name)));
    }
    let warnings = facts.warnings.iter().cloned();
    lines.extend(warnings.map(|warning| ("warning", warning)));
    lines
}

fn sharded_lines(facts: &ShardedFacts) -> Vec<(&'static str, String)> {
    let [never, intended, written] = facts.shards;
    let shard = display_size(facts.record.shard_bytes);
    let owner = match &facts.owner {
        Some(owner) => owner_text(owner),
        None => "nobody yet".to_owned(),
    };
    vec![
        ("uuid", facts.record.uuid.to_string()),
        (
            "shards",
            format!("{} of {shard}, {}", facts.record.shards(), facts.record.way),
        ),
        (
            "states",
            format!("{written} written, {intended} reserved, {never} never"),
        ),
        ("owner", owner),
        (
            "journal",
            match &facts.journal {
                Some(entry) => format!("writes may wait in {entry}"),
                None => "nothing waits in one".to_owned(),
            },
        ),
    ]
}

fn text(volume: &Volume, export: &Export, facts: Option<&Facts>) -> String {
    let sizes = export.block_sizes();
    let mut lines = vec![
        ("layout", volume.driver.to_string()),
        ("location", volume.location.to_string()),
        ("size", size(export.size())),
        ("access", access(export).to_owned()),
        (
            "block sizes",
            format!("minimum {}, preferred {}", sizes.minimum, sizes.preferred),
        ),
        ("max payload", display_size(u64::from(sizes.maximum))),
        ("flush", export.flush_means().to_owned()),
        ("flags", flag_names(export).join(" ")),
    ];
    lines.extend(facts.map(facts_lines).unwrap_or_default());
    let lines = lines
        .iter()
        .map(|(name, value)| format!("{name:<13}{value}"));
    lines.collect::<Vec<_>>().join("\n")
}
