//! The store: one short method per operation.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nbd_rs_plugin::{
    Backend, Body, Capabilities, CapabilityFlags, Condition, Error, GetFlags, Got, Host, Kind,
    Meta, ObjectFlags, ObjectMode, OpenFlags, OpenRequest, Page, Put, Range, Result,
};

use crate::config::Config;
use crate::directory::Directory;
use crate::names::Name;
use crate::object::FileObject;
use crate::single;

/// A file, or a directory of objects.
#[derive(Debug)]
pub struct FileBackend {
    host: Host,
    config: Config,
    store: Store,
}

#[derive(Debug, Clone)]
enum Store {
    /// One file: the object with the empty name.
    Single(Arc<Path>),
    /// Objects by name.
    Directory(Arc<Directory>),
}

impl FileBackend {
    /// Opens the store.
    ///
    /// # Errors
    /// What is wrong with the location.
    pub async fn open(host: Host, request: OpenRequest) -> Result<Self> {
        let config = Config::new(&request)?;
        let (path, flags) = (config.path.clone(), config.flags);
        let store = match flags.has(OpenFlags::SINGLE_OBJECT) {
            true => Store::Single(path.into()),
            false => {
                let open = move || Directory::open(&path, flags);
                Store::Directory(Arc::new(host.blocking(open).await?))
            }
        };
        Ok(Self {
            host,
            config,
            store,
        })
    }

    fn writable(&self) -> bool {
        self.config.flags.has(OpenFlags::WRITE)
    }

    /// Does work that may block, on a thread where it may.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = self.store.clone();
        self.host.blocking(move || work(&store)).await
    }
}

impl Store {
    /// The directory, and a name in it.
    fn named(&self, key: &str) -> Result<(&Directory, Name)> {
        match self {
            Store::Directory(directory) => Ok((directory, Name::new(key)?)),
            Store::Single(_) => Err(Error::unsupported("this on a location that is one file")),
        }
    }
}

/// Whether `key` is the one that a single file has.
fn check_single(key: &str) -> Result<()> {
    match key {
        "" => Ok(()),
        _ => Err(Error::new(
            Kind::Invalid,
            "this location is one file: it has no names",
        )),
    }
}

impl Backend for FileBackend {
    type Object = FileObject;

    fn capabilities(&self) -> Capabilities {
        use CapabilityFlags as Flags;
        let mut flags = Flags::IN_PLACE | Flags::STRONG_READ_AFTER_WRITE | Flags::RANGED_GET;
        match &self.store {
            Store::Directory(directory) => flags = directory.capabilities(),
            Store::Single(_) if self.writable() => flags = flags | Flags::WRITABLE,
            Store::Single(_) => {}
        }
        Capabilities::new(flags)
    }

    fn try_get(&self, key: &str, range: Range, flags: GetFlags) -> Option<Result<Got>> {
        let Store::Directory(directory) = &self.store else {
            return None;
        };
        match Name::new(key) {
            Ok(name) => directory.get_now(self.host, &name, range, flags),
            Err(error) => Some(Err(error)),
        }
    }

    async fn get(&self, key: &str, range: Range, flags: GetFlags) -> Result<Got> {
        let (host, key) = (self.host, key.to_owned());
        let get = move |store: &Store| match store {
            Store::Single(path) => {
                check_single(&key)?;
                single::get(host, path, range, flags)
            }
            Store::Directory(directory) => directory.get(host, &Name::new(&key)?, range, flags),
        };
        self.blocking(get).await
    }

    async fn put(&self, key: &str, body: Body, condition: Condition) -> Result<Put> {
        let key = key.to_owned();
        let put = move |store: &Store| {
            let (directory, name) = store.named(&key)?;
            directory.put(&name, &body, &condition)
        };
        self.blocking(put).await
    }

    async fn head(&self, key: &str, _: GetFlags) -> Result<Meta> {
        let key = key.to_owned();
        let head = move |store: &Store| match store {
            Store::Single(path) => {
                check_single(&key)?;
                single::head(path)
            }
            Store::Directory(directory) => directory.head(&Name::new(&key)?),
        };
        self.blocking(head).await
    }

    async fn delete(&self, keys: Vec<String>) -> Result<Vec<Result<()>>> {
        let remove = move |store: &Store| match store {
            Store::Directory(directory) => directory.delete(&keys),
            Store::Single(path) => {
                let remove = |key: &String| check_single(key).and_then(|()| single::remove(path));
                Ok(keys.iter().map(remove).collect())
            }
        };
        self.blocking(remove).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        let list = move |store: &Store| match store {
            Store::Directory(directory) => directory.list(&prefix, after.as_deref()),
            Store::Single(_) => Err(Error::unsupported("listing a location that is one file")),
        };
        self.blocking(list).await
    }

    async fn flush(&self) -> Result<()> {
        match &self.store {
            Store::Directory(directory) => directory.flush(),
            Store::Single(_) => Ok(()),
        }
    }

    async fn open_object(&self, key: &str, mode: ObjectMode) -> Result<FileObject> {
        let make_dirs = self.config.flags.has(OpenFlags::CREATE);
        let (host, lend, key) = (self.host, self.config.lend, key.to_owned());
        let open = move |store: &Store| {
            let (file, path): (_, PathBuf) = match store {
                Store::Directory(directory) => directory.open_in_place(&Name::new(&key)?, mode)?,
                Store::Single(path) => {
                    check_single(&key)?;
                    (single::open(path, mode, make_dirs)?, path.to_path_buf())
                }
            };
            let writable = mode.flags.has(ObjectFlags::WRITE);
            FileObject::new(host, file, &path, writable, lend)
        };
        self.blocking(open).await
    }

    async fn close(&self) -> Result<()> {
        self.blocking(|store| {
            if let Store::Directory(directory) = store {
                directory.close();
            }
            Ok(())
        })
        .await
    }
}
