//! What calls take and give. Plain structs and enums here are frozen for a major version: they
//! carry `reserved` words, and flags are numbers with names, so that later versions have room.

use abi_stable::std_types::{ROption, RResult, RString, RVec};
use abi_stable::StableAbi;
use async_ffi::BorrowingFfiFuture;

use crate::abi::DynBackend;
use crate::{Bytes, Error, Kind, Mapped, Result};

/// A set of bits that may grow in later versions.
macro_rules! flags {
    ($(#[$doc:meta])* $name:ident { $($(#[$bit_doc:meta])* $bit:ident = $value:literal,)* }) => {
        $(#[$doc])*
        #[repr(transparent)]
        #[derive(StableAbi, Clone, Copy, PartialEq, Eq, Default, Hash)]
        pub struct $name(pub u64);
        impl $name {
            /// No bit at all.
            pub const NONE: $name = $name(0);
            $($(#[$bit_doc])* pub const $bit: $name = $name(1 << $value);)*
            /// Every bit that this version knows.
            pub const KNOWN: $name = $name(0 $(| 1 << $value)*);
            /// Whether all bits of `other` are set here.
            pub const fn has(self, other: $name) -> bool {
                self.0 & other.0 == other.0
            }
            /// These bits and those of `other`.
            #[must_use]
            pub const fn with(self, other: $name) -> $name {
                $name(self.0 | other.0)
            }
            /// These bits less those of `other`.
            #[must_use]
            pub const fn without(self, other: $name) -> $name {
                $name(self.0 & !other.0)
            }
            /// The bits that this version does not know.
            pub const fn unknown(self) -> $name {
                self.without(Self::KNOWN)
            }
            /// Whether no bit is set.
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }
        }
        impl std::ops::BitOr for $name {
            type Output = $name;
            fn bitor(self, other: $name) -> $name {
                self.with(other)
            }
        }
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(stringify!($name))?;
                let mut set = f.debug_set();
                $(if self.has($name::$bit) { set.entry(&format_args!("{}", stringify!($bit))); })*
                if !self.unknown().is_empty() { set.entry(&format_args!("{:#x}", self.unknown().0)); }
                set.finish()
            }
        }
    };
}

flags! {
    /// How to read an object by name.
    GetFlags {
        /// No link may answer from its copy: ask the store.
        FRESH = 0,
        /// Fill in [`Got::meta`]; without it a hit need not make strings.
        WANT_META = 1,
    }
}

flags! {
    /// How to read from an opened object.
    ReadFlags {
        /// No link may answer from its copy: ask the store.
        FRESH = 0,
        /// The caller hands the answer to the kernel only: [`Piece::Mapped`] is welcome.
        LEND_MAPPED = 1,
        /// The caller can use [`Piece::Hole`]; without it, zeros are spelt out.
        LEND_HOLES = 2,
    }
}

flags! {
    /// How to write to an opened object.
    WriteFlags {
        /// Answer only when these bytes are durable.
        FUA = 0,
    }
}

flags! {
    /// How to zero a part of an opened object. The flags combine.
    ZeroFlags {
        /// The space must be allocated; [`Kind::NoSpace`] if it can't be, now.
        NO_HOLE = 0,
        /// Answer [`Kind::Unsupported`], with nothing changed, unless it is faster than writing zeros.
        FAST = 1,
        /// Answer only when it is durable.
        FUA = 2,
        /// The caller wants the space back (TRIM). Afterwards the range reads as zeros all the same.
        TRIM = 3,
    }
}

flags! {
    /// What is known of an extent.
    ExtentFlags {
        /// Not allocated.
        HOLE = 0,
        /// Reads as zeros.
        ZERO = 1,
    }
}

flags! {
    /// How a backend is opened.
    OpenFlags {
        /// Writes will come. Without it every change is refused.
        WRITE = 0,
        /// Missing directories (never buckets) may be made.
        CREATE = 1,
        /// The target itself is the one object; its key is the empty string.
        SINGLE_OBJECT = 2,
    }
}

flags! {
    /// How an object is opened.
    ObjectFlags {
        /// Writes will come.
        WRITE = 0,
        /// Make it if it is missing.
        CREATE = 1,
        /// Make it; [`Kind::Exists`] if it is there. Needs `CREATE`.
        CREATE_NEW = 2,
        /// Keep other servers and tools out until `close`; [`Kind::Busy`] if one is in.
        LOCK = 3,
        /// Throw away the contents, once the lock is held.
        TRUNCATE = 4,
    }
}

flags! {
    /// What a backend can do and promises. A link passes on only what it knows.
    CapabilityFlags {
        /// An acknowledged `put`, `write` or `zero` survives power loss.
        DURABLE_ON_ACK = 0,
        /// [`Condition::IfAbsent`] is obeyed.
        IF_ABSENT = 1,
        /// [`Condition::IfMatch`] is obeyed.
        IF_MATCH = 2,
        /// A read after an acknowledged write gives that write or a newer one.
        STRONG_READ_AFTER_WRITE = 3,
        /// `get` with a range does not fetch the whole object.
        RANGED_GET = 4,
        /// `open_object` gives objects that can be written inside.
        IN_PLACE = 5,
        /// `zero` gives the space back.
        PUNCH_HOLE = 6,
        /// `zero` with `FAST` can succeed.
        FAST_ZERO = 7,
        /// `extents` tells holes from data.
        EXTENTS = 8,
        /// The object or store can be changed at all.
        WRITABLE = 9,
        /// `zero` with `NO_HOLE` really allocates.
        ALLOCATE = 10,
        /// `prefetch` has an effect.
        PREFETCH = 11,
    }
}

/// What a backend (or one of its opened objects) can do, asked once after it was opened.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// What it can do and promises.
    pub flags: CapabilityFlags,
    /// The largest object, in bytes; 0: no limit known.
    pub max_object_bytes: u64,
    /// The request size that serves best, in bytes; 0: no preference.
    pub preferred_io_bytes: u32,
    /// Smallest size and alignment of reads and writes, in bytes; 0 and 1: any.
    pub min_io_bytes: u32,
    /// A write of this size and alignment is old or new after a crash, never torn; 0: not known.
    pub atomic_unit_bytes: u32,
    #[doc(hidden)]
    pub reserved: [u32; 9],
}

impl Capabilities {
    /// These flags, and nothing known of sizes.
    pub const fn new(flags: CapabilityFlags) -> Self {
        Self {
            flags,
            max_object_bytes: 0,
            preferred_io_bytes: 0,
            min_io_bytes: 0,
            atomic_unit_bytes: 0,
            reserved: [0; 9],
        }
    }

    /// Whether all of `flags` are there.
    pub const fn has(&self, flags: CapabilityFlags) -> bool {
        self.flags.has(flags)
    }
}

/// A part of an object, in bytes.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// How many; [`Range::TO_END`]: as many as there are.
    pub len: u64,
}

impl Range {
    /// The length that means "to the end of the object".
    pub const TO_END: u64 = u64::MAX;
    /// The whole object.
    pub const ALL: Range = Range {
        offset: 0,
        len: Self::TO_END,
    };

    /// `len` bytes from `offset`.
    pub const fn new(offset: u64, len: u64) -> Self {
        Self { offset, len }
    }

    /// This range as indices into an object of `size` bytes.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it does not lie inside the object.
    pub fn within(self, size: u64) -> Result<std::ops::Range<usize>> {
        let end = match self.len {
            Self::TO_END => Some(size.max(self.offset)),
            len => self.offset.checked_add(len),
        };
        match end {
            Some(end) if end <= size => Ok(self.offset as usize..end as usize),
            _ => Err(Error::new(
                Kind::Invalid,
                format!("range {self:?} is outside the object of {size} bytes"),
            )),
        }
    }
}

/// One stretch of what was read.
#[repr(C)]
#[derive(StableAbi, Clone, Debug)]
pub enum Piece {
    /// Memory.
    Bytes(Bytes),
    /// A mapped file, for the kernel only; see [`Mapped`].
    Mapped(Mapped),
    /// So many zeros that are not stored.
    Hole(u64),
}

impl Piece {
    /// Bytes of the volume that this piece stands for.
    pub fn len(&self) -> u64 {
        match self {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::Mapped(mapped) => mapped.len() as u64,
            Piece::Hole(len) => *len,
        }
    }

    /// Whether it stands for no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a read gives: usually one piece.
#[repr(C)]
#[derive(StableAbi, Clone, Debug)]
pub enum Data {
    /// One piece.
    One(Piece),
    /// Several, in order, without gaps.
    Many(RVec<Piece>),
}

impl Data {
    /// The pieces in order.
    pub fn pieces(&self) -> &[Piece] {
        match self {
            Data::One(piece) => std::slice::from_ref(piece),
            Data::Many(pieces) => pieces,
        }
    }

    /// Bytes in all pieces together.
    pub fn len(&self) -> u64 {
        self.pieces()
            .iter()
            .map(Piece::len)
            .fold(0, u64::saturating_add)
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Bytes> for Data {
    fn from(bytes: Bytes) -> Self {
        Data::One(Piece::Bytes(bytes))
    }
}

/// What a write stores: usually one stretch of memory.
#[repr(C)]
#[derive(StableAbi, Clone, Debug)]
pub enum Body {
    /// One stretch.
    One(Bytes),
    /// Several, in order.
    Many(RVec<Bytes>),
}

impl Body {
    /// The stretches in order.
    pub fn pieces(&self) -> &[Bytes] {
        match self {
            Body::One(bytes) => std::slice::from_ref(bytes),
            Body::Many(pieces) => pieces,
        }
    }

    /// Bytes in all stretches together.
    pub fn len(&self) -> u64 {
        self.pieces().iter().map(|piece| piece.len() as u64).sum()
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Body::One(bytes)
    }
}

/// When a put may happen.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    Always,
    /// Only if there is no such object; else [`Kind::Exists`].
    IfAbsent,
    /// Only if the object has this ETag; else [`Kind::Precondition`].
    IfMatch(RString),
}

/// What is known of an object.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Its name.
    pub key: RString,
    /// Its length in bytes.
    pub size: u64,
    /// A token that changes with the contents; empty if the store has none. Not a hash.
    pub etag: RString,
    /// Milliseconds since 1970, UTC; 0: not known.
    pub modified_ms: u64,
    #[doc(hidden)]
    pub reserved: [u64; 4],
}

impl Meta {
    /// A name and a length.
    pub fn new(key: &str, size: u64) -> Self {
        Self {
            key: key.into(),
            size,
            etag: RString::new(),
            modified_ms: 0,
            reserved: [0; 4],
        }
    }
}

/// What `get` gives.
#[repr(C)]
#[derive(StableAbi, Clone, Debug)]
pub struct Got {
    /// The bytes asked for.
    pub data: Data,
    /// Filled in when [`GetFlags::WANT_META`] was asked for.
    pub meta: ROption<Meta>,
}

impl Got {
    /// Bytes alone.
    pub fn new(data: Data) -> Self {
        Self {
            data,
            meta: ROption::RNone,
        }
    }
}

/// What `put` gives.
#[repr(C)]
#[derive(StableAbi, Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// The new ETag; empty if the store has none.
    pub etag: RString,
    #[doc(hidden)]
    pub reserved: [u64; 2],
}

impl Put {
    /// Stored, under this ETag.
    pub fn new(etag: &str) -> Self {
        Self {
            etag: etag.into(),
            reserved: [0; 2],
        }
    }
}

/// A page of a listing, in the order of the names' bytes.
#[repr(C)]
#[derive(StableAbi, Clone, Debug)]
pub struct Page {
    /// The objects.
    pub items: RVec<Meta>,
    /// Where the next page starts (`after`), if there is one.
    pub next: ROption<RString>,
}

impl Page {
    /// The last page.
    pub fn last(items: Vec<Meta>) -> Self {
        Self {
            items: items.into(),
            next: ROption::RNone,
        }
    }
}

/// A stretch of an opened object with one state.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its length in bytes; never 0.
    pub len: u64,
    /// What is known of it.
    pub flags: ExtentFlags,
}

/// How [`Backend::open_object`](crate::Backend::open_object) opens.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectMode {
    /// What to do if it is there, or missing.
    pub flags: ObjectFlags,
    /// The size of an object that is made now, in bytes.
    pub size: u64,
    #[doc(hidden)]
    pub reserved: [u64; 2],
}

impl ObjectMode {
    /// Open what exists.
    pub const fn new(flags: ObjectFlags) -> Self {
        Self::create(flags, 0)
    }

    /// Open or make, with this size when it is made.
    pub const fn create(flags: ObjectFlags, size: u64) -> Self {
        Self {
            flags,
            size,
            reserved: [0; 2],
        }
    }
}

/// One option from the URL's query, already checked against the plugin's own description.
#[repr(C)]
#[derive(StableAbi, Clone, PartialEq, Eq)]
pub struct OptionValue {
    /// The name, without the link's prefix.
    pub name: RString,
    /// The value, percent-decoded.
    pub value: RString,
}

/// How the host asks a plugin to open a backend.
#[repr(C)]
#[derive(StableAbi)]
pub struct OpenRequest {
    /// The scheme that was typed, one of the plugin's own.
    pub scheme: RString,
    /// For a store: what stands behind the scheme, up to the query, still percent-encoded (see
    /// [`decode`](crate::options::decode)). For a link: its store's name, to tell stores apart.
    pub target: RString,
    /// The options given, defaults not filled in.
    pub options: RVec<OptionValue>,
    /// What the host means to do.
    pub flags: OpenFlags,
    /// For a link: the backend behind it.
    pub inner: ROption<DynBackend>,
    #[doc(hidden)]
    pub reserved: [u64; 4],
}

/// Store or link.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Role(pub u32);

impl Role {
    /// Keeps objects; stands at the end of a chain.
    pub const STORE: Role = Role(0);
    /// Stands before another backend.
    pub const LINK: Role = Role(1);
}

/// The type of an option.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionKind(pub u32);

impl OptionKind {
    /// Any text.
    pub const TEXT: OptionKind = OptionKind(0);
    /// `true` or `false`.
    pub const BOOL: OptionKind = OptionKind(1);
    /// A whole number, not negative.
    pub const COUNT: OptionKind = OptionKind(2);
    /// Bytes: `4096`, `64Ki`, `1.5GiB`.
    pub const SIZE: OptionKind = OptionKind(3);
    /// A time: `250ms`, `10s`, `5m`, `1h`.
    pub const DURATION: OptionKind = OptionKind(4);
    /// A path on this machine.
    pub const PATH: OptionKind = OptionKind(5);
    /// One of [`OptionSpec::choices`].
    pub const CHOICE: OptionKind = OptionKind(6);

    /// The word for it in lists and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::BOOL => "bool",
            Self::COUNT => "count",
            Self::SIZE => "size",
            Self::DURATION => "duration",
            Self::PATH => "path",
            Self::CHOICE => "choice",
            _ => "text",
        }
    }
}

/// An option that a plugin takes.
#[repr(C)]
#[derive(StableAbi, Clone, Debug)]
pub struct OptionSpec {
    /// Its name, lower case with underscores.
    pub name: RString,
    /// Its type.
    pub kind: OptionKind,
    /// What it is when not given; nothing if it has no default.
    pub default: ROption<RString>,
    /// One line for a person.
    pub help: RString,
    /// Whether its value is masked wherever it is printed.
    pub secret: bool,
    /// For [`OptionKind::CHOICE`]: what may be said.
    pub choices: RVec<RString>,
    #[doc(hidden)]
    pub reserved: [u64; 2],
}

impl OptionSpec {
    /// An option without a default.
    pub fn new(name: &str, kind: OptionKind, help: &str) -> Self {
        Self {
            name: name.into(),
            kind,
            default: ROption::RNone,
            help: help.into(),
            secret: false,
            choices: RVec::new(),
            reserved: [0; 2],
        }
    }

    /// With what it is when not given.
    #[must_use]
    pub fn default(mut self, default: &str) -> Self {
        self.default = ROption::RSome(default.into());
        self
    }

    /// Masked wherever it is printed.
    #[must_use]
    pub fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// One of `choices`.
    pub fn choice(name: &str, choices: &[&str], help: &str) -> Self {
        Self {
            choices: choices
                .iter()
                .map(|choice| RString::from(*choice))
                .collect(),
            ..Self::new(name, OptionKind::CHOICE, help)
        }
    }
}

/// A scheme that a plugin serves.
#[repr(C)]
#[derive(StableAbi, Clone, Debug)]
pub struct SchemeSpec {
    /// The scheme: a lower-case letter, then lower-case letters, digits, `-`.
    pub name: RString,
    /// One line for a person.
    pub help: RString,
}

/// What a plugin says of itself.
#[repr(C)]
#[derive(StableAbi, Clone, Debug)]
pub struct Description {
    /// The plugin's name.
    pub name: RString,
    /// Its version.
    pub version: RString,
    /// Its licence, as an SPDX expression; empty if not said.
    pub license: RString,
    /// Store or link.
    pub role: Role,
    /// The schemes that it serves.
    pub schemes: RVec<SchemeSpec>,
    /// The options that it takes.
    pub options: RVec<OptionSpec>,
    #[doc(hidden)]
    pub reserved: [u64; 4],
}

impl Description {
    /// A store's description, to be completed with [`scheme`](Self::scheme) and [`option`](Self::option).
    pub fn store(name: &str, version: &str) -> Self {
        Self {
            name: name.into(),
            version: version.into(),
            license: RString::new(),
            role: Role::STORE,
            schemes: RVec::new(),
            options: RVec::new(),
            reserved: [0; 4],
        }
    }

    /// A link's description.
    pub fn link(name: &str, version: &str) -> Self {
        Self {
            role: Role::LINK,
            ..Self::store(name, version)
        }
    }

    /// With a licence (SPDX).
    #[must_use]
    pub fn license(mut self, license: &str) -> Self {
        self.license = license.into();
        self
    }

    /// With one more scheme.
    #[must_use]
    pub fn scheme(mut self, name: &str, help: &str) -> Self {
        self.schemes.push(SchemeSpec {
            name: name.into(),
            help: help.into(),
        });
        self
    }

    /// With one more option.
    #[must_use]
    pub fn option(mut self, option: OptionSpec) -> Self {
        self.options.push(option);
        self
    }
}

/// The answer of a call: at once, or a future that has not started.
///
/// A `Pending` that is dropped before its first poll has had no effect.
#[repr(C)]
#[derive(StableAbi)]
pub enum Started<'a, T> {
    /// The answer.
    Ready(RResult<T, Error>),
    /// Ask again by polling; nothing has happened yet.
    Pending(BorrowingFfiFuture<'a, RResult<T, Error>>),
}

impl<'a, T> Started<'a, T> {
    /// A ready answer.
    pub fn ready(result: Result<T>) -> Self {
        Started::Ready(result.into())
    }

    /// Waits for the answer.
    ///
    /// # Errors
    /// Whatever the call answered.
    pub async fn wait(self) -> Result<T> {
        match self {
            Started::Ready(result) => result.into(),
            Started::Pending(future) => future.await.into(),
        }
    }

    /// The answer if it is there, or the future.
    pub fn now(self) -> std::result::Result<Result<T>, BorrowingFfiFuture<'a, RResult<T, Error>>> {
        match self {
            Started::Ready(result) => Ok(result.into()),
            Started::Pending(future) => Err(future),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked_before_they_are_used() {
        assert_eq!(Range::new(2, 3).within(5).unwrap(), 2..5);
        assert_eq!(Range::ALL.within(5).unwrap(), 0..5);
        assert_eq!(Range::new(5, 0).within(5).unwrap(), 5..5);
        assert!(Range::new(2, 4).within(5).is_err());
        assert!(Range::new(u64::MAX, 2).within(5).is_err());
        assert!(Range::new(6, Range::TO_END).within(5).is_err());
    }

    #[test]
    fn flags_print_their_names_and_keep_unknown_bits_apart() {
        let flags = ZeroFlags(0b101 | 1 << 40);
        assert!(flags.has(ZeroFlags::NO_HOLE) && flags.has(ZeroFlags::FUA));
        assert_eq!(flags.unknown().0, 1 << 40);
        assert_eq!(
            format!("{flags:?}"),
            "ZeroFlags{NO_HOLE, FUA, 0x10000000000}"
        );
    }
}
