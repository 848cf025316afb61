//! One opened file: read and written in place.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nbd_rs_plugin::{
    Body, Capabilities, CapabilityFlags, Data, Error, Extent, Host, Mapped, Object, Piece,
    ReadFlags, Result, WriteFlags, ZeroFlags,
};
use rustix::fs::{fadvise, seek, Advice, SeekFrom};

use crate::mapping::Mapping;
use crate::{io, lock};

/// Reads from this size on are lent, and looked at for holes, in bytes.
const LARGE_READ_BYTES: u64 = 64 << 10;
/// Writes up to this size go to the page cache on the spot, in bytes.
const INLINE_WRITE_BYTES: u64 = 1 << 20;
/// Writes from this size on are system calls: they cost less for each page than faults in a mapping
/// do, and the fixed price of a call on large folios is spread, in bytes.
const LARGE_WRITE_BYTES: usize = 128 << 10;
/// Whole pages can be written without reading them first, in bytes.
const PAGE_BYTES: u64 = 4096;

/// An opened file or block device.
#[derive(Debug)]
pub struct FileObject {
    host: Host,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    size: AtomicU64,
    capabilities: Capabilities,
    lend: bool,
    regular: bool,
    writable: bool,
    /// There may be holes.
    sparse: AtomicBool,
    mapping: OnceLock<Option<Arc<Mapping>>>,
    pace: Pace,
}

/// Notices when writing on the spot takes its time, and leaves it to other threads for a while.
#[derive(Debug)]
struct Pace {
    start: Instant,
    /// Until then, in milliseconds since `start`.
    slow_until_ms: AtomicU64,
}

impl Pace {
    const SLOW: Duration = Duration::from_millis(1);
    const REST_MS: u64 = 100;

    fn new() -> Self {
        Self {
            start: Instant::now(),
            slow_until_ms: AtomicU64::new(0),
        }
    }

    fn is_fast(&self) -> bool {
        let until = self.slow_until_ms.load(Ordering::Relaxed);
        until == 0 || self.start.elapsed().as_millis() as u64 >= until
    }

    fn measured<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = Instant::now();
        let result = work();
        let after = Instant::now();
        if after - before > Self::SLOW {
            let now = (after - self.start).as_millis() as u64;
            self.slow_until_ms
                .store(now + Self::REST_MS, Ordering::Relaxed);
        }
        result
    }
}

impl FileObject {
    /// Over a file that is open, for writing if `writable`.
    ///
    /// # Errors
    /// If it is neither a regular file nor a block device, or can't be asked.
    pub fn new(host: Host, file: File, path: &Path, writable: bool, lend: bool) -> Result<Self> {
        let failed = |error: std::io::Error| Error::os(&error, path.display());
        let metadata = file.metadata().map_err(failed)?;
        let regular = metadata.is_file();
        if !regular && !metadata.file_type().is_block_device() {
            return Err(Error::new(
                nbd_rs_plugin::Kind::Invalid,
                format!("{} is neither a file nor a block device", path.display()),
            ));
        }
        let size = match regular {
            true => metadata.len(),
            false => seek(&file, SeekFrom::End(0)).map_err(|error| failed(error.into()))?,
        };
        let inner = Inner {
            capabilities: capabilities(&file, &metadata, size, writable),
            sparse: AtomicBool::new(regular && metadata.blocks() * 512 < size),
            file,
            size: AtomicU64::new(size),
            lend: lend && regular,
            regular,
            writable,
            mapping: OnceLock::new(),
            pace: Pace::new(),
        };
        Ok(Self {
            host,
            inner: Arc::new(inner),
        })
    }

    /// Does work that may block, on a thread where it may.
    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> impl std::future::Future<Output = Result<T>> + Send {
        let inner = self.inner.clone();
        self.host.blocking(move || work(&inner))
    }
}

/// What the file, its file system and the way it was opened allow.
fn capabilities(
    file: &File,
    metadata: &std::fs::Metadata,
    size: u64,
    writable: bool,
) -> Capabilities {
    use CapabilityFlags as Flags;
    let mut flags = Flags::IN_PLACE | Flags::RANGED_GET | Flags::STRONG_READ_AFTER_WRITE;
    flags = flags | Flags::PREFETCH;
    let mut when = |condition: bool, bits: Flags| {
        if condition {
            flags = flags | bits;
        }
    };
    when(writable, Flags::WRITABLE);
    let regular = metadata.is_file();
    let punches = match regular {
        true => writable && io::punches_holes(file, size),
        false => writable && zeroes_quickly(metadata.rdev()),
    };
    when(punches, Flags::PUNCH_HOLE | Flags::FAST_ZERO);
    when(regular && writable && punches, Flags::ALLOCATE);
    when(regular && io::finds_holes(file), Flags::EXTENTS);
    Capabilities {
        preferred_io_bytes: (metadata.blksize() as u32).clamp(4096, 1 << 20),
        min_io_bytes: 1,
        atomic_unit_bytes: 512,
        ..Capabilities::new(flags)
    }
}

/// Whether a block device zeroes without writing, as the kernel says.
fn zeroes_quickly(device: u64) -> bool {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let queue = format!("/sys/dev/block/{major}:{minor}/queue/write_zeroes_max_bytes");
    let text = std::fs::read_to_string(queue).unwrap_or_default();
    text.trim().parse::<u64>().is_ok_and(|most| most > 0)
}

impl Inner {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn mapping(&self) -> Option<&Arc<Mapping>> {
        if !self.lend {
            return None;
        }
        let map = || Mapping::new(&self.file, self.size(), self.writable);
        self.mapping.get_or_init(map).as_ref()
    }

    /// A hole, when the whole range is one.
    fn hole_now(&self, offset: u64, len: u64) -> Option<Data> {
        if len < LARGE_READ_BYTES || !self.sparse.load(Ordering::Relaxed) {
            return None;
        }
        let data = io::next_data(&self.file, offset).ok()?;
        // A file that was cut has no data behind its end either.
        let hole = data.is_none_or(|at| at >= offset + len);
        (hole && io::inside(&self.file, offset, len).is_ok()).then(|| Data::One(Piece::Hole(len)))
    }

    /// A range in memory, without a copy. Behind a cut in the middle of a page the mapping has zeros
    /// and gives no fault, so the size is looked at.
    fn lend(&self, offset: u64, len: u64) -> Option<Mapped> {
        let mapped = self.mapping()?.lend(offset, len as usize)?;
        io::inside(&self.file, offset, len).ok()?;
        Some(mapped)
    }

    /// Whether the pages at the edges of a range can be written without reading them from the disk.
    fn edges_at_hand(&self, offset: u64, len: u64) -> bool {
        let at_hand = |at: u64| {
            at.is_multiple_of(PAGE_BYTES)
                || self.mapping().is_some_and(|map| map.is_resident(at - 1, 1))
        };
        at_hand(offset) && at_hand(offset + len)
    }

    /// Writes to pages in memory through the mapping, the rest with a system call.
    fn write(&self, mut offset: u64, body: &Body) -> Result<()> {
        for piece in body.pieces() {
            let mut done = 0;
            if let Some(mapping) = self.mapping().filter(|_| piece.len() < LARGE_WRITE_BYTES) {
                if mapping.is_resident(offset, piece.len()) {
                    done = mapping.write(offset, piece);
                    // A page that a cut went through is mapped whole: what was stored behind the
                    // end is in no file. Looked at afterwards, so that no cut slips in between.
                    io::inside(&self.file, offset, done as u64)?;
                }
            }
            if done < piece.len() {
                io::write_full(&self.file, &piece[done..], offset + done as u64)?;
            }
            offset += piece.len() as u64;
        }
        Ok(())
    }
}

impl Object for FileObject {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities
    }

    async fn size(&self) -> Result<u64> {
        Ok(self.inner.size())
    }

    fn try_read(&self, offset: u64, len: u64, flags: ReadFlags) -> Option<Result<Data>> {
        if flags.has(ReadFlags::LEND_HOLES) {
            if let Some(hole) = self.inner.hole_now(offset, len) {
                return Some(Ok(hole));
            }
        }
        if flags.has(ReadFlags::LEND_MAPPED) && len >= LARGE_READ_BYTES {
            if let Some(mapped) = self.inner.lend(offset, len) {
                return Some(Ok(Data::One(Piece::Mapped(mapped))));
            }
        }
        let mut buf = self.host.buf(len as usize);
        io::read_now(&self.inner.file, &mut buf, offset)?;
        Some(Ok(buf.freeze().into()))
    }

    async fn read(&self, offset: u64, len: u64, _: ReadFlags) -> Result<Data> {
        let host = self.host;
        self.blocking(move |inner| {
            let mut buf = host.buf(len as usize);
            io::read_full(&inner.file, &mut buf, offset)?;
            Ok(buf.freeze().into())
        })
        .await
    }

    fn try_write(&self, offset: u64, body: &Body, flags: WriteFlags) -> Option<Result<()>> {
        let len = body.len();
        let inner = &self.inner;
        let inline = flags.is_empty() && len <= INLINE_WRITE_BYTES && inner.pace.is_fast();
        if !inline || !inner.edges_at_hand(offset, len) {
            return None;
        }
        Some(inner.pace.measured(|| inner.write(offset, body)))
    }

    async fn write(&self, offset: u64, body: Body, flags: WriteFlags) -> Result<()> {
        self.blocking(move |inner| {
            inner.write(offset, &body)?;
            match flags.has(WriteFlags::FUA) {
                true => io::sync(&inner.file),
                false => Ok(()),
            }
        })
        .await
    }

    async fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        self.blocking(move |inner| {
            inner.sparse.store(inner.regular, Ordering::Relaxed);
            io::zero(&inner.file, offset, len, flags)
        })
        .await
    }

    async fn extents(&self, offset: u64, len: u64, limit: u32) -> Result<Vec<Extent>> {
        if !self.inner.capabilities.has(CapabilityFlags::EXTENTS) {
            let flags = nbd_rs_plugin::ExtentFlags::NONE;
            return Ok(vec![Extent { len, flags }]);
        }
        self.blocking(move |inner| io::extents(&inner.file, offset, len, limit))
            .await
    }

    async fn prefetch(&self, offset: u64, len: u64) -> Result<()> {
        self.blocking(move |inner| {
            let len = std::num::NonZeroU64::new(len);
            let advised = fadvise(&inner.file, offset, len, Advice::WillNeed);
            advised.map_err(|error| Error::os(&error.into(), "reading ahead"))
        })
        .await
    }

    async fn resize(&self, size: u64) -> Result<()> {
        if !self.inner.regular {
            return Err(Error::unsupported("resizing a block device"));
        }
        self.blocking(move |inner| {
            let cut = inner.file.set_len(size);
            cut.map_err(|error| Error::os(&error, format_args!("resizing to {size} bytes")))?;
            inner.sparse.store(true, Ordering::Relaxed);
            inner.size.store(size, Ordering::Relaxed);
            io::sync(&inner.file)
        })
        .await
    }

    async fn sync(&self) -> Result<()> {
        self.blocking(|inner| io::sync(&inner.file)).await
    }

    async fn close(&self) -> Result<()> {
        self.blocking(|inner| match lock::release(&inner.file) {
            Err(error) if !lock::is_unsupported(&error) => {
                Err(Error::os(&error, "giving back the lock of the image"))
            }
            _ => Ok(()),
        })
        .await
    }
}
