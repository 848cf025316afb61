//! How everything that crosses lies in memory on a 64-bit machine, as literal numbers: what differs
//! here is another major version (docs/abi-policy.md). `host/tests/plugin_loading/kept.rs` loads
//! libraries of the first version, and the loader compares what is not said here.

use std::mem::{align_of, offset_of, size_of};

use crate::abi::{
    DynBackend, DynObject, HostRef, HostTable, Job, OwnerVtable, PluginRef, PluginTable,
};
use crate::*;

/// Size, alignment, and where each field lies: all that differs.
macro_rules! layout {
    ($($type:ty: $size:literal, $align:literal, { $($field:ident $offset:literal)* };)*) => {{
        let mut differs = Vec::new();
        $(
            let seen = [size_of::<$type>(), align_of::<$type>() $(, offset_of!($type, $field))*];
            if seen != [$size, $align $(, $offset)*] {
                let fields = stringify!(size align $($field)*);
                differs.push(format!("{}: {fields}: {seen:?}", stringify!($type)));
            }
        )*
        assert!(differs.is_empty(), "{}", differs.join("\n"));
    }};
}

#[test]
fn structs_lie_as_they_lay_in_the_first_version() {
    layout! {
        Capabilities: 64, 8, { flags 0 max_object_bytes 8 preferred_io_bytes 16 min_io_bytes 20
            atomic_unit_bytes 24 reserved 28 };
        Range: 16, 8, { offset 0 len 8 };
        Meta: 112, 8, { key 0 size 32 etag 40 modified_ms 72 reserved 80 };
        Got: 168, 8, { data 0 meta 48 };
        Put: 48, 8, { etag 0 reserved 32 };
        Page: 72, 8, { items 0 next 32 };
        Extent: 16, 8, { len 0 flags 8 };
        ObjectMode: 32, 8, { flags 0 size 8 reserved 16 };
        OptionValue: 64, 8, { name 0 value 32 };
        OpenRequest: 168, 8, { scheme 0 target 32 options 64 flags 96 inner 104 reserved 136 };
        OptionSpec: 168, 8, { name 0 kind 32 default 40 help 80 secret 112 choices 120 reserved 152 };
        SchemeSpec: 64, 8, { name 0 help 32 };
        Description: 200, 8, { name 0 version 32 license 64 role 96 schemes 104 options 136
            reserved 168 };
        Error: 40, 8, { kind 0 errno 4 message 8 };
        OwnerVtable: 16, 8, { clone 0 drop 8 };
        Job: 24, 8, { };
        Bytes: 32, 8, { };
        Buf: 32, 8, { };
        Mapped: 32, 8, { };
    }
}

#[test]
fn enums_and_numbers_are_as_wide_as_they_were() {
    layout! {
        Piece: 40, 8, { };
        Data: 48, 8, { };
        Body: 40, 8, { };
        Condition: 40, 8, { };
        Started<'static, ()>: 56, 8, { };
        Kind: 4, 4, { };
        Role: 4, 4, { };
        OptionKind: 4, 4, { };
        GetFlags: 8, 8, { };
        ReadFlags: 8, 8, { };
        WriteFlags: 8, 8, { };
        ZeroFlags: 8, 8, { };
        ExtentFlags: 8, 8, { };
        OpenFlags: 8, 8, { };
        ObjectFlags: 8, 8, { };
        CapabilityFlags: 8, 8, { };
    }
}

/// These may grow at their ends: then the first fields still lie here.
#[test]
fn tables_begin_as_they_began() {
    layout! {
        HostTable: 48, 8, { buf 0 log 8 log_enabled 16 sleep 24 spawn 32 blocking 40 };
        PluginTable: 32, 8, { describe 0 unwinds 8 check 16 open 24 };
        HostRef: 8, 8, { };
        PluginRef: 8, 8, { };
        DynBackend: 24, 8, { };
        DynObject: 24, 8, { };
    }
}

/// Which variant is which, as the byte that says so.
#[test]
fn variants_keep_their_numbers() {
    fn tag<T>(value: &T) -> u8 {
        // SAFETY: a `repr(C)` enum begins with its discriminant, of which the first byte is read.
        unsafe { *std::ptr::from_ref(value).cast::<u8>() }
    }
    let bytes = || Bytes::from(vec![1]);
    assert_eq!(tag(&Piece::Bytes(bytes())), 0);
    assert_eq!(tag(&Piece::Hole(1)), 2);
    assert_eq!(tag(&Data::One(Piece::Hole(1))), 0);
    assert_eq!(tag(&Data::Many(Vec::new().into())), 1);
    assert_eq!(tag(&Body::One(bytes())), 0);
    assert_eq!(tag(&Body::Many(Vec::new().into())), 1);
    assert_eq!(tag(&Condition::Always), 0);
    assert_eq!(tag(&Condition::IfAbsent), 1);
    assert_eq!(tag(&Condition::IfMatch("x".into())), 2);
    assert_eq!(tag(&Started::<()>::ready(Ok(()))), 0);
}

/// A name, and the bit that it stands for.
macro_rules! bits {
    ($($type:ident { $($name:ident $bit:literal)* })*) => {
        $(
            $(assert_eq!($type::$name.0, 1 << $bit, concat!(stringify!($type), "::", stringify!($name)));)*
            let known = 0u64 $(| 1 << $bit)*;
            assert_eq!($type::KNOWN.0, known, "{}: a bit is not in this test", stringify!($type));
        )*
    };
}

#[test]
fn flags_keep_their_bits() {
    bits! {
        GetFlags { FRESH 0 WANT_META 1 }
        ReadFlags { FRESH 0 LEND_MAPPED 1 LEND_HOLES 2 }
        WriteFlags { FUA 0 }
        ZeroFlags { NO_HOLE 0 FAST 1 FUA 2 TRIM 3 }
        ExtentFlags { HOLE 0 ZERO 1 }
        OpenFlags { WRITE 0 CREATE 1 SINGLE_OBJECT 2 }
        ObjectFlags { WRITE 0 CREATE 1 CREATE_NEW 2 LOCK 3 TRUNCATE 4 }
        CapabilityFlags { DURABLE_ON_ACK 0 IF_ABSENT 1 IF_MATCH 2 STRONG_READ_AFTER_WRITE 3
            RANGED_GET 4 IN_PLACE 5 PUNCH_HOLE 6 FAST_ZERO 7 EXTENTS 8 WRITABLE 9 ALLOCATE 10
            PREFETCH 11 }
    }
    assert_eq!((Role::STORE.0, Role::LINK.0), (0, 1));
    let kinds = [
        OptionKind::TEXT,
        OptionKind::BOOL,
        OptionKind::COUNT,
        OptionKind::SIZE,
        OptionKind::DURATION,
        OptionKind::PATH,
        OptionKind::CHOICE,
    ];
    assert_eq!(kinds.map(|kind| kind.0), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(Range::TO_END, u64::MAX);
}
