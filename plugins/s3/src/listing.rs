//! Listings in byte order, also from servers that have another one. Pure.
//!
//! S3 lists by the bytes of the names. Servers over a file system walk folders: all of `d/` comes
//! before `d.x`, though `.` is less than `/`. A page that ends within a folder then says nothing of
//! the names beside it, and "after `d.x`" leaves out all of `d/`. So where the order is not known
//! and could matter, everything is fetched and put in order here.

use std::sync::atomic::{AtomicU8, Ordering};

use nbd_rs_plugin::{Meta, Page};

/// What is known of a server's order.
#[derive(Debug, Default)]
pub(crate) struct Order(AtomicU8);

const UNKNOWN: u8 = 0;
const BYTES: u8 = 1;
const FOLDERS: u8 = 2;

impl Order {
    /// Of a server that is known to keep to the names' bytes, or of any other.
    pub(crate) fn new(is_bytes: bool) -> Self {
        Self(AtomicU8::new(if is_bytes { BYTES } else { UNKNOWN }))
    }

    fn is_bytes(&self) -> bool {
        self.0.load(Ordering::Relaxed) == BYTES
    }

    /// Learns from the names of a page, in the order in which they came.
    pub(crate) fn learn(&self, names: &[&str]) {
        let bytes = names.is_sorted();
        let folders = names.is_sorted_by(|one, other| one.split('/').le(other.split('/')));
        let found = match (bytes, folders) {
            (true, false) => BYTES,
            (true, true) => return,
            (false, _) => FOLDERS,
        };
        // What was seen once of folders is not forgotten.
        self.0.fetch_max(found, Ordering::Relaxed);
    }

    /// Whether the server can be asked for what comes after this name, below this prefix.
    pub(crate) fn can_start(&self, prefix: &str, after: &str) -> bool {
        let below = after.strip_prefix(prefix).unwrap_or(after);
        self.is_bytes() || !below.bytes().any(|byte| byte < b'/')
    }

    /// Whether a page that is not the last can be passed on before the others are there.
    pub(crate) fn can_cut(&self, prefix: &str, names: &[&str]) -> bool {
        let below = |name: &&str| name.strip_prefix(prefix).unwrap_or_default().contains('/');
        self.is_bytes() || (names.is_sorted() && !names.iter().any(below))
    }
}

/// Items in order, each once, of those that come after a name.
pub(crate) fn page(mut items: Vec<Meta>, after: Option<&str>, next: Option<&str>) -> Page {
    items.retain(|meta| after.is_none_or(|after| meta.key.as_str() > after));
    items.sort_by(|one, other| one.key.as_bytes().cmp(other.key.as_bytes()));
    items.dedup_by(|one, other| one.key == other.key);
    Page {
        items: items.into(),
        next: next.map(Into::into).into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn learned(names: &[&str]) -> u8 {
        let order = Order::default();
        order.learn(names);
        order.0.into_inner()
    }

    #[test]
    fn the_order_is_learned_where_it_shows() {
        assert_eq!(learned(&["a", "b", "c/d"]), UNKNOWN);
        assert_eq!(learned(&["d.x", "d/a"]), BYTES);
        assert_eq!(learned(&["d/a", "d.x"]), FOLDERS);
        assert_eq!(learned(&["b", "a"]), FOLDERS);
        let order = Order::new(true);
        order.learn(&["d/a", "d.x"]);
        assert!(!order.is_bytes());
    }

    #[test]
    fn f45_pages_are_cut_only_where_nothing_can_hide() {
        let order = Order::default();
        assert!(order.can_start("p-q/", "p-q/0001"));
        assert!(!order.can_start("p-q/", "p-q/00-1"));
        assert!(order.can_cut("p/", &["p/a.b", "p/b"]));
        assert!(!order.can_cut("p/", &["p/a", "p/b/c"]));
        assert!(!order.can_cut("p/", &["p/b", "p/a"]));
        assert!(Order::new(true).can_cut("p/", &["p/b/c"]));
    }

    /// The first `count` names after one, as a server that walks folders gives them.
    fn walked(names: &[String], after: &str, count: usize) -> Vec<String> {
        let mut names: Vec<&String> = names.iter().collect();
        names.sort_by(|one, other| one.split('/').cmp(other.split('/')));
        let behind = names
            .into_iter()
            .filter(|name| after.split('/').lt(name.split('/')));
        behind.take(count).cloned().collect()
    }

    proptest! {
        /// On a server that walks folders, what is asked for by name and cut into pages is the
        /// same as the names in order.
        #[test]
        fn f45_no_name_is_lost_between_pages(
            names in prop::collection::btree_set("[a.-]{1,2}(/[a.]{1,2}){0,2}", 1..20),
            size in 1usize..6,
        ) {
            let names: Vec<String> = names.into_iter().collect();
            let order = Order::default();
            let (mut found, mut after) = (Vec::new(), String::new());
            while order.can_start("", &after) {
                let page = walked(&names, &after, size);
                let shown: Vec<&str> = page.iter().map(String::as_str).collect();
                let more = page.len() == size;
                if more && !order.can_cut("", &shown) {
                    break;
                }
                found.extend(page);
                match found.last() {
                    Some(last) if more => after.clone_from(last),
                    _ => break,
                }
            }
            found.sort();
            // All that was passed on are the first names there are.
            prop_assert_eq!(&found, &names[..found.len()]);
        }
    }
}
