//! Memory for payloads: blocks of a few sizes that are counted, lent out, and used again.
//!
//! A block's header and memory are made once; taking one from a thread's own shelf and giving it
//! back costs no allocation and no lock. `unsafe` lives here because a block is written by one
//! owner while other parts of it are being read.

use std::alloc::{alloc_zeroed, dealloc, handle_alloc_error, Layout};
use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::atomic::{fence, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use nbd_rs_plugin::abi::OwnerVtable;
use nbd_rs_plugin::{Buf, Bytes};

/// Block sizes in bytes. The last one holds the largest payload with room for a header.
const CLASS_BYTES: [usize; 7] = [
    4 << 10,
    16 << 10,
    64 << 10,
    256 << 10,
    1 << 20,
    8 << 20,
    (32 << 20) + (64 << 10),
];
/// Classes up to this one have a shelf in each thread.
const SMALL_CLASSES: usize = 3;
/// Blocks on one thread's shelf of one class.
const SHELF_BLOCKS: usize = 32;
/// Bytes that the common store keeps for later; more go back to the allocator.
const STORE_BYTES: usize = 8 << 20;
/// Page alignment: direct I/O and page-wise copies like it.
const ALIGN: usize = 4096;

/// Header of a block; the memory lies elsewhere, so that it stays page-aligned.
struct Block {
    references: AtomicUsize,
    class: Option<usize>,
    /// What the allocator gave.
    base: NonNull<u8>,
    /// The first page boundary inside.
    memory: *mut u8,
    bytes: usize,
}

static VTABLE: OwnerVtable = OwnerVtable {
    clone: clone_block,
    drop: drop_block,
};

unsafe extern "C" fn clone_block(data: *const ()) {
    // SAFETY: `data` is a live `Block`: the caller holds a reference to it.
    let block = unsafe { &*data.cast::<Block>() };
    block.references.fetch_add(1, Ordering::Relaxed);
}

unsafe extern "C" fn drop_block(data: *const ()) {
    // SAFETY: as above; the caller gives up its reference.
    let block = unsafe { &*data.cast::<Block>() };
    if block.references.fetch_sub(1, Ordering::Release) == 1 {
        fence(Ordering::Acquire);
        // SAFETY: that was the last reference, so the block is ours alone.
        shelve(unsafe { NonNull::new_unchecked(data.cast::<Block>().cast_mut()) });
    }
}

/// A block that nobody refers to.
struct Free(NonNull<Block>);

// SAFETY: a free block has no other user.
unsafe impl Send for Free {}

#[derive(Default)]
struct Store {
    classes: [Vec<Free>; CLASS_BYTES.len()],
    bytes: usize,
}

/// Has the C library give large blocks back to the system at once, of plugins too. Left alone it
/// raises its limit to 32 MiB with the first large block that is freed, and keeps what was freed
/// between others: twice the memory for a volume of 4 MiB shards.
///
/// To be called before there are threads.
pub fn give_back_large_blocks() {
    #[cfg(target_env = "gnu")]
    {
        // malloc.h: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD. The second is what the first one would
        // have made it.
        const OPTIONS: [(i32, i32); 2] = [(-3, 1 << 20), (-1, 2 << 20)];
        unsafe extern "C" {
            fn mallopt(option: i32, value: i32) -> i32;
        }
        for (option, value) in OPTIONS {
            // SAFETY: two numbers, and nobody else allocates meanwhile. Refused? Nothing is lost.
            unsafe { mallopt(option, value) };
        }
    }
}

static STORE: Mutex<Option<Store>> = Mutex::new(None);

thread_local! {
    static SHELVES: RefCell<[Vec<Free>; SMALL_CLASSES]> = const { RefCell::new([const { Vec::new() }; SMALL_CLASSES]) };
}

impl Drop for Free {
    fn drop(&mut self) {
        // SAFETY: the header came from a box and the memory from `alloc` with this layout.
        unsafe {
            let block = Box::from_raw(self.0.as_ptr());
            dealloc(block.base.as_ptr(), memory_layout(block.bytes));
        }
    }
}

/// Room for `bytes` from a page boundary on. The boundary is found by hand: zeroed memory of a
/// larger alignment would be touched all over at once.
fn memory_layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes + ALIGN, 16).expect("a bounded size")
}

fn class_of(len: usize) -> Option<usize> {
    CLASS_BYTES.iter().position(|&bytes| len <= bytes)
}

fn make(class: Option<usize>, bytes: usize) -> Free {
    let layout = memory_layout(bytes);
    // SAFETY: the layout has a size above zero. Zeroed, so that the bytes count as initialised;
    // large zeroed memory is not touched before it is used.
    let base = unsafe { alloc_zeroed(layout) };
    let Some(base) = NonNull::new(base) else {
        handle_alloc_error(layout);
    };
    // SAFETY: the layout has a page more than `bytes`.
    let memory = unsafe { base.as_ptr().add(base.as_ptr().align_offset(ALIGN)) };
    let block = Box::new(Block {
        references: AtomicUsize::new(0),
        class,
        base,
        memory,
        bytes,
    });
    Free(NonNull::from(Box::leak(block)))
}

fn take(len: usize) -> NonNull<Block> {
    let free = match class_of(len) {
        None => make(None, len),
        Some(class) => from_shelf(class)
            .or_else(|| from_store(class))
            .unwrap_or_else(|| make(Some(class), CLASS_BYTES[class])),
    };
    let block = free.0;
    std::mem::forget(free);
    // SAFETY: nobody else refers to a free block.
    unsafe { block.as_ref() }
        .references
        .store(1, Ordering::Relaxed);
    block
}

fn from_shelf(class: usize) -> Option<Free> {
    if class >= SMALL_CLASSES {
        return None;
    }
    SHELVES
        .try_with(|shelves| shelves.borrow_mut()[class].pop())
        .ok()
        .flatten()
}

fn from_store(class: usize) -> Option<Free> {
    let mut store = STORE.lock().unwrap_or_else(PoisonError::into_inner);
    let store = store.as_mut()?;
    let free = store.classes[class].pop()?;
    store.bytes -= CLASS_BYTES[class];
    Some(free)
}

/// Puts a block away for later: on this thread's shelf, in the common store, or out of the house.
fn shelve(block: NonNull<Block>) {
    let free = Free(block);
    // SAFETY: the block is free, so this is the only reference.
    let Some(class) = unsafe { block.as_ref() }.class else {
        return;
    };
    let mut left = Some(free);
    if class < SMALL_CLASSES {
        let _ = SHELVES.try_with(|shelves| {
            let shelf = &mut shelves.borrow_mut()[class];
            if shelf.len() < SHELF_BLOCKS {
                shelf.extend(left.take());
            }
        });
    }
    if let Some(free) = left {
        let mut store = STORE.lock().unwrap_or_else(PoisonError::into_inner);
        let store = store.get_or_insert_default();
        if store.bytes + CLASS_BYTES[class] <= STORE_BYTES {
            store.bytes += CLASS_BYTES[class];
            store.classes[class].push(free);
        }
    }
}

/// A buffer of `len` bytes, contents arbitrary.
pub fn buf(len: usize) -> Buf {
    let block = take(len.max(1));
    // SAFETY: the block has at least `len` bytes, initialised when it was made; the reference that
    // `take` counted goes to the buffer, and nobody else knows the block.
    unsafe {
        let memory = block.as_ref().memory;
        Buf::from_raw_owner(memory, len, block.as_ptr().cast(), &VTABLE)
    }
}

/// Gives back what this thread keeps for later; called when a connection falls idle.
pub fn release_thread_cache() {
    let _ = SHELVES.try_with(|shelves| {
        for shelf in shelves.borrow_mut().iter_mut() {
            *shelf = Vec::new();
        }
    });
}

/// A block that a socket is read into, and payloads are cut from without a copy.
///
/// `[0, parsed)` may be lent out, `[parsed, filled)` waits to be parsed, the rest is free.
#[derive(Debug)]
pub struct RecvBuffer {
    block: NonNull<Block>,
    parsed: usize,
    filled: usize,
}

// SAFETY: the count is atomic, and `&mut self` guards what is not lent out.
unsafe impl Send for RecvBuffer {}

impl RecvBuffer {
    /// A buffer with room for `bytes`.
    pub fn new(bytes: usize) -> Self {
        Self {
            block: take(bytes),
            parsed: 0,
            filled: 0,
        }
    }

    fn block(&self) -> &Block {
        // SAFETY: we hold a reference to the block.
        unsafe { self.block.as_ref() }
    }

    /// Bytes that can be held in all.
    pub fn capacity(&self) -> usize {
        self.block().bytes
    }

    /// What was received and not yet taken.
    pub fn unparsed(&self) -> &[u8] {
        // SAFETY: inside the block; only `spare` writes, behind `filled`.
        unsafe {
            let start = self.block().memory.add(self.parsed);
            std::slice::from_raw_parts(start, self.filled - self.parsed)
        }
    }

    /// Where to receive more.
    pub fn spare(&mut self) -> &mut [u8] {
        // SAFETY: inside the block, behind everything that was ever lent out since the last rewind.
        unsafe {
            let start = self.block().memory.add(self.filled);
            std::slice::from_raw_parts_mut(start, self.block().bytes - self.filled)
        }
    }

    /// Says that `bytes` were received into [`spare`](Self::spare).
    pub fn received(&mut self, bytes: usize) {
        assert!(bytes <= self.capacity() - self.filled);
        self.filled += bytes;
    }

    /// Passes over `bytes` that were parsed.
    pub fn skip(&mut self, bytes: usize) {
        assert!(bytes <= self.filled - self.parsed);
        self.parsed += bytes;
    }

    /// Cuts out the next `bytes`, without a copy.
    pub fn take(&mut self, bytes: usize) -> Bytes {
        assert!(bytes <= self.filled - self.parsed);
        // SAFETY: the range is inside the block and is never written again while it is lent:
        // `rewind` moves to another block as long as somebody refers to this one. The reference
        // counted here goes to the buffer.
        let buf = unsafe {
            let block = self.block.as_ref();
            let start = block.memory.add(self.parsed);
            clone_block(self.block.as_ptr().cast());
            Buf::from_raw_owner(start, bytes, self.block.as_ptr().cast(), &VTABLE)
        };
        self.parsed += bytes;
        buf.freeze()
    }

    /// Makes room at the end: what is not parsed moves to the front of this block if nobody refers
    /// to it any more, else of a new one.
    pub fn rewind(&mut self) {
        if self.parsed == 0 {
            return;
        }
        let rest = self.parsed..self.filled;
        // Acquire: whoever gave back a slice is done reading it.
        if self.block().references.load(Ordering::Acquire) == 1 {
            // SAFETY: the block is ours alone, and both ranges are inside it.
            unsafe {
                let memory = self.block().memory;
                std::ptr::copy(memory.add(rest.start), memory, rest.len());
            }
        } else {
            let mut fresh = Self::new(self.capacity());
            fresh.spare()[..rest.len()].copy_from_slice(self.unparsed());
            std::mem::swap(&mut self.block, &mut fresh.block);
        }
        self.parsed = 0;
        self.filled = rest.len();
    }

    /// Moves to a block with room for `bytes` in all.
    pub fn grow(&mut self, bytes: usize) {
        let mut larger = Self::new(bytes.max(self.filled));
        let rest = self.unparsed().len();
        larger.spare()[..rest].copy_from_slice(self.unparsed());
        larger.filled = rest;
        *self = larger;
    }
}

impl Drop for RecvBuffer {
    fn drop(&mut self) {
        // SAFETY: gives up the one reference that this value holds.
        unsafe { drop_block(self.block.as_ptr().cast()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_comes_back_to_the_thread_that_gave_it_up() {
        let first = buf(4000);
        let address = first.as_ptr();
        drop(first.freeze().slice(1..2));
        assert_eq!(buf(1).as_ptr(), address);
    }

    #[test]
    fn lent_bytes_stay_while_the_buffer_goes_on() {
        let mut recv = RecvBuffer::new(4096);
        recv.spare()[..6].copy_from_slice(b"abcdef");
        recv.received(6);
        let lent = recv.take(3);
        recv.rewind();
        assert_eq!(recv.unparsed(), b"def");
        recv.spare()[..1].copy_from_slice(b"g");
        recv.received(1);
        assert_eq!(&lent[..], b"abc");
        assert_eq!(recv.unparsed(), b"defg");
        drop(lent);
        recv.skip(2);
        recv.rewind();
        assert_eq!((recv.unparsed(), recv.parsed), (&b"fg"[..], 0));
    }

    #[test]
    fn growing_keeps_what_was_not_parsed() {
        let mut recv = RecvBuffer::new(4096);
        recv.spare()[..4].copy_from_slice(b"wxyz");
        recv.received(4);
        recv.skip(1);
        recv.grow(1 << 20);
        assert!(recv.capacity() >= 1 << 20);
        assert_eq!(recv.unparsed(), b"xyz");
    }

    #[test]
    fn odd_sizes_are_served_and_freed() {
        for len in [0, 1, 4096, 4097, 40 << 20] {
            let mut b = buf(len);
            assert_eq!(b.len(), len);
            b.fill(7);
        }
    }
}
