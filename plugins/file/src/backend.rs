//! The store: one short method per operation.

use std::path::PathBuf;

use nbd_rs_plugin::{
    Backend, Body, Capabilities, CapabilityFlags, Condition, Error, GetFlags, Got, Host, Kind,
    Meta, ObjectMode, OpenFlags, OpenRequest, Page, Put, Range, Result,
};

use crate::config::Config;
use crate::object::FileObject;
use crate::single;

/// A file, or a directory of objects.
#[derive(Debug)]
pub struct FileBackend {
    host: Host,
    config: Config,
}

impl FileBackend {
    /// Opens the store.
    ///
    /// # Errors
    /// What is wrong with the location.
    pub async fn open(host: Host, request: OpenRequest) -> Result<Self> {
        let config = Config::new(&request)?;
        if !config.flags.has(OpenFlags::SINGLE_OBJECT) {
            return Err(Error::unsupported("a directory of objects"));
        }
        Ok(Self { host, config })
    }

    fn writable(&self) -> bool {
        self.config.flags.has(OpenFlags::WRITE)
    }

    /// The path of the one object.
    fn single(&self, key: &str) -> Result<PathBuf> {
        match key {
            "" => Ok(self.config.path.clone()),
            _ => Err(Error::new(
                Kind::Invalid,
                "this location is one file: it has no names",
            )),
        }
    }
}

impl Backend for FileBackend {
    type Object = FileObject;

    fn capabilities(&self) -> Capabilities {
        use CapabilityFlags as Flags;
        let mut flags = Flags::IN_PLACE | Flags::STRONG_READ_AFTER_WRITE | Flags::RANGED_GET;
        if self.writable() {
            flags = flags | Flags::WRITABLE;
        }
        Capabilities::new(flags)
    }

    async fn get(&self, _: &str, _: Range, _: GetFlags) -> Result<Got> {
        Err(Error::unsupported("get"))
    }

    async fn put(&self, _: &str, _: Body, _: Condition) -> Result<Put> {
        Err(Error::unsupported("put"))
    }

    async fn head(&self, _: &str, _: GetFlags) -> Result<Meta> {
        Err(Error::unsupported("head"))
    }

    async fn delete(&self, keys: Vec<String>) -> Result<Vec<Result<()>>> {
        let paths: Vec<Result<PathBuf>> = keys.iter().map(|key| self.single(key)).collect();
        let remove = move || {
            Ok(paths
                .into_iter()
                .map(|path| single::remove(&path?))
                .collect())
        };
        self.host.blocking(remove).await
    }

    async fn list(&self, _: &str, _: Option<&str>) -> Result<Page> {
        Err(Error::unsupported("list"))
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn open_object(&self, key: &str, mode: ObjectMode) -> Result<FileObject> {
        let path = self.single(key)?;
        let make_dirs = self.config.flags.has(OpenFlags::CREATE);
        let (host, lend) = (self.host, self.config.lend);
        self.host
            .blocking(move || {
                let file = single::open(&path, mode, make_dirs)?;
                let writable = mode.flags.has(nbd_rs_plugin::ObjectFlags::WRITE);
                FileObject::new(host, file, &path, writable, lend)
            })
            .await
    }
}
