//! `nbd-rs info`: what a volume is, and what its chain can do.

use nbd_rs_plugin::options::display_size;
use serde_json::json;

use crate::error::Result;
use crate::export::Export;
use crate::layout::open::Volume;
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

/// What a flush means over the raw layout.
pub(super) const RAW_FLUSH: &str = "synced to the image's own disk (fdatasync)";

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

/// Prints it. The volume is opened as `serve` would, so it must not be in use.
///
/// # Errors
/// If the volume can't be opened.
pub(super) fn print(volume: &Volume, registry: &Registry, as_json: bool) -> Result<()> {
    let layout = runtime::block_on(volume.open(registry, false))?;
    let export = Export::new(String::new(), volume.to_string(), layout, false);
    let sizes = export.block_sizes();
    if as_json {
        let value = json!({
            "layout": volume.driver.to_string(),
            "location": volume.location.to_string(),
            "size": export.size(),
            "block_sizes": {
                "minimum": sizes.minimum,
                "preferred": sizes.preferred,
                "maximum": sizes.maximum,
            },
            "read_only": export.is_read_only(),
            "flags": flag_names(&export),
            "flush": RAW_FLUSH,
        });
        println!("{value:#}");
    } else {
        let (size, bytes) = (display_size(export.size()), export.size());
        println!("layout       {}", volume.driver);
        println!("location     {}", volume.location);
        println!("size         {size} ({bytes} bytes)");
        println!(
            "block sizes  minimum {}, preferred {}",
            sizes.minimum, sizes.preferred
        );
        println!("max payload  {}", display_size(u64::from(sizes.maximum)));
        println!("flush        {RAW_FLUSH}");
        println!("flags        {}", flag_names(&export).join(" "));
    }
    runtime::block_on(export.close())
}
