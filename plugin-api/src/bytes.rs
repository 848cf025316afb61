//! Memory that crosses the border: [`Bytes`] (shared, read-only), [`Buf`] (one owner, writable)
//! and [`Mapped`] (a file mapping that only the kernel may read).
//!
//! Each is a pointer, a length, and an owner behind a two-entry table. Whoever made the memory
//! frees it: the last `drop` calls back into the library that handed it out.

use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use abi_stable::StableAbi;

/// What the owner of the memory can do: one more reference, one less.
///
/// Like `Arc`: `clone` and `drop` count, and the last `drop` frees.
#[repr(C)]
#[derive(StableAbi)]
pub struct OwnerVtable {
    /// Adds a reference to the owner at `data`.
    pub clone: unsafe extern "C" fn(data: *const ()),
    /// Gives back one reference; the last one frees the memory.
    pub drop: unsafe extern "C" fn(data: *const ()),
}

/// One counted reference to the owner of some memory.
#[repr(C)]
#[derive(StableAbi)]
struct Owner {
    data: *const (),
    vtable: &'static OwnerVtable,
}

// SAFETY: the constructors demand `Send + Sync` owners, and the count is atomic.
unsafe impl Send for Owner {}
// SAFETY: as above.
unsafe impl Sync for Owner {}

impl Owner {
    fn of<T: Send + Sync + 'static>(owner: Arc<T>) -> Self {
        Self {
            data: Arc::into_raw(owner).cast(),
            vtable: &ArcVtable::<T>::VTABLE,
        }
    }
}

impl Clone for Owner {
    fn clone(&self) -> Self {
        // SAFETY: `data` came with this table, and we hold a reference to it.
        unsafe { (self.vtable.clone)(self.data) };
        Self {
            data: self.data,
            vtable: self.vtable,
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // SAFETY: this is the one reference that this value stands for.
        unsafe { (self.vtable.drop)(self.data) }
    }
}

struct ArcVtable<T>(std::marker::PhantomData<T>);

impl<T: Send + Sync + 'static> ArcVtable<T> {
    const VTABLE: OwnerVtable = OwnerVtable {
        clone: clone_arc::<T>,
        drop: drop_arc::<T>,
    };
}

unsafe extern "C" fn clone_arc<T>(data: *const ()) {
    // SAFETY: `data` is from `Arc::into_raw` in `Owner::of`, and still counted.
    unsafe { Arc::increment_strong_count(data.cast::<T>()) }
}

unsafe extern "C" fn drop_arc<T>(data: *const ()) {
    // SAFETY: as in `clone_arc`; the caller gives up its reference.
    unsafe { Arc::decrement_strong_count(data.cast::<T>()) }
}

/// Shared, read-only bytes, owned by anyone: a vector, a `bytes::Bytes`, a pooled buffer.
///
/// Cloning and slicing never copy.
#[repr(C)]
#[derive(StableAbi, Clone)]
pub struct Bytes {
    ptr: *const u8,
    len: usize,
    owner: Owner,
}

// SAFETY: read-only memory whose owner is `Send + Sync`.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// Lends the memory of `owner`: one small allocation, no copy.
    pub fn from_owner<T: AsRef<[u8]> + Send + Sync + 'static>(owner: T) -> Self {
        Self::from_arc(Arc::new(owner))
    }

    /// Lends the memory of an owner that is counted already: no allocation, no copy.
    pub fn from_arc<T: AsRef<[u8]> + Send + Sync + 'static>(owner: Arc<T>) -> Self {
        let slice = (*owner).as_ref();
        let (ptr, len) = (slice.as_ptr(), slice.len());
        Self {
            ptr,
            len,
            owner: Owner::of(owner),
        }
    }

    /// A part of these bytes, sharing their owner.
    ///
    /// # Panics
    /// If `range` is not inside the bytes.
    pub fn slice(mut self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range was just checked to lie inside the allocation.
        self.ptr = unsafe { self.ptr.add(range.start) };
        self.len = range.end - range.start;
        self
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the owner keeps `len` bytes at `ptr` alive and unchanged.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(vec: Vec<u8>) -> Self {
        Self::from_owner(vec)
    }
}

impl From<bytes::Bytes> for Bytes {
    fn from(bytes: bytes::Bytes) -> Self {
        Self::from_owner(bytes)
    }
}

impl From<Bytes> for bytes::Bytes {
    fn from(bytes: Bytes) -> Self {
        Self::from_owner(bytes)
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({})", self.len)
    }
}

/// A writable buffer with one owner, usually out of the host's pool ([`Host::buf`](crate::Host::buf)).
///
/// [`freeze`](Buf::freeze) makes it [`Bytes`] without a copy. Its first contents are arbitrary.
#[repr(C)]
#[derive(StableAbi)]
pub struct Buf {
    ptr: *mut u8,
    len: usize,
    owner: Owner,
}

// SAFETY: unique access to its range of the memory, whose owner is `Send + Sync`.
unsafe impl Send for Buf {}
// SAFETY: as above; `&Buf` only reads.
unsafe impl Sync for Buf {}

impl Buf {
    /// A buffer over memory that `owner` keeps alive.
    ///
    /// # Safety
    /// `ptr` must point at `len` initialised bytes that stay valid while `owner` lives, and nothing
    /// else may read or write them as long as this value, or `Bytes` made from it, exists.
    pub unsafe fn from_raw_parts<T: Send + Sync + 'static>(
        ptr: *mut u8,
        len: usize,
        owner: Arc<T>,
    ) -> Self {
        Self {
            ptr,
            len,
            owner: Owner::of(owner),
        }
    }

    /// A buffer whose owner counts by a table of its own, such as a pool's block.
    ///
    /// # Safety
    /// As for [`from_raw_parts`](Buf::from_raw_parts); `data` must carry one reference that this
    /// value takes over, and `vtable` must count references to it from any thread.
    pub unsafe fn from_raw_owner(
        ptr: *mut u8,
        len: usize,
        data: *const (),
        vtable: &'static OwnerVtable,
    ) -> Self {
        Self {
            ptr,
            len,
            owner: Owner { data, vtable },
        }
    }

    /// Cuts off the first `at` bytes; the two parts share the owner.
    ///
    /// # Panics
    /// If the buffer is shorter than `at`.
    pub fn split_to(&mut self, at: usize) -> Self {
        assert!(at <= self.len);
        let head = Self {
            ptr: self.ptr,
            len: at,
            owner: self.owner.clone(),
        };
        // SAFETY: `at` is inside the allocation; the two ranges do not overlap.
        self.ptr = unsafe { self.ptr.add(at) };
        self.len -= at;
        head
    }

    /// Forgets what lies behind the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes the buffer shareable and read-only, without a copy.
    pub fn freeze(self) -> Bytes {
        Bytes {
            ptr: self.ptr,
            len: self.len,
            owner: self.owner,
        }
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the constructor's promise.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the constructor's promise; `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len) }
    }
}

impl std::fmt::Debug for Buf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buf({})", self.len)
    }
}

/// A piece of a mapped file, to be handed to a system call and to nothing else.
///
/// Loading from it in user space could be a SIGBUS when the file is cut or its disk fails; the
/// kernel answers `EFAULT` instead. That is why there is no `Deref` here. A backend lends mapped
/// pieces only to a caller that asked with [`ReadFlags::LEND_MAPPED`](crate::ReadFlags::LEND_MAPPED).
#[repr(C)]
#[derive(StableAbi, Clone)]
pub struct Mapped {
    ptr: *const u8,
    len: usize,
    owner: Owner,
}

// SAFETY: the address range stays mapped while the owner lives; nobody loads from it here.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// `len` bytes at `ptr`, mapped as long as `owner` lives.
    ///
    /// # Safety
    /// The address range must stay mapped while `owner` lives.
    pub unsafe fn from_raw_parts<T: Send + Sync + 'static>(
        ptr: *const u8,
        len: usize,
        owner: Arc<T>,
    ) -> Self {
        Self {
            ptr,
            len,
            owner: Owner::of(owner),
        }
    }

    /// Where the mapping begins; for system calls only.
    pub fn as_ptr(&self) -> *const u8 {
        self.ptr
    }

    /// The piece as an argument of a system call. Its bytes must not be looked at.
    pub fn as_io_slice(&self) -> std::io::IoSlice<'_> {
        // SAFETY: the range is mapped while the owner lives, which `self` keeps. The slice only
        // carries the address to the kernel, which copies with its own fault handling.
        std::io::IoSlice::new(unsafe { std::slice::from_raw_parts(self.ptr, self.len) })
    }

    /// Bytes in this piece.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the piece is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl std::fmt::Debug for Mapped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mapped({})", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_share_and_the_last_one_frees() {
        let owner = Arc::new(vec![1u8, 2, 3, 4]);
        let all = Bytes::from_arc(owner.clone());
        let part = all.clone().slice(1..3);
        drop(all);
        assert_eq!(&part[..], [2, 3]);
        assert_eq!(Arc::strong_count(&owner), 2);
        drop(part);
        assert_eq!(Arc::strong_count(&owner), 1);
    }

    #[test]
    fn split_buffers_are_disjoint() {
        let mut memory = vec![0u8; 8].into_boxed_slice();
        let ptr = memory.as_mut_ptr();
        // SAFETY: the box moves into the owner, which keeps its heap memory in place.
        let mut tail = unsafe { Buf::from_raw_parts(ptr, 8, Arc::new(memory)) };
        let mut head = tail.split_to(3);
        head.fill(1);
        tail.fill(2);
        assert_eq!(&head.freeze()[..], [1, 1, 1]);
        assert_eq!(&tail.freeze()[..], [2, 2, 2, 2, 2]);
    }
}
