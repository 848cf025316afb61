//! F18, C13: power cuts under a volume in a directory. A disk that keeps every write and flush stands
//! under an ext4; what it may hold after a cut at any moment is mounted and served.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::{tempdir, TempDir};

use crate::client::Client;
use crate::disk::{Loop, Mount};
use crate::disks::{FuseDevice, FAILING_DISK};
use crate::places::kill;
use crate::rng::Rng;
use crate::server::{nbd_rs, text, Serve};
use crate::tools::{present_as_root, run};

const DISK_BYTES: u64 = 48 << 20;
const UNIT: usize = 4096;
const UNITS: usize = 1024;
/// What a disk writes as one: less is never torn.
const SECTOR: usize = 512;

/// A disk whose writes and flushes are kept in their order. Fields go in the order in which they must
/// be undone.
struct Recorder {
    device: FuseDevice,
    dir: TempDir,
}

/// What came to it.
enum Event {
    /// So many bytes of the data file, from there.
    Write {
        offset: u64,
        at: u64,
        len: usize,
    },
    Flush,
}

impl Recorder {
    fn new() -> Self {
        let dir = tempdir().expect("a temporary folder");
        let at = |name: &str| dir.path().join(name).display().to_string();
        let (disk, data, log) = (at("disk"), at("data"), at("log"));
        let made = File::create(&disk).and_then(|file| file.set_len(DISK_BYTES));
        made.expect("a sparse file");
        // One call at a time: that is how this plugin works.
        let words = [
            "eval".to_owned(),
            format!("get_size=echo {DISK_BYTES}"),
            "can_write=exit 0".to_owned(),
            "can_flush=exit 0".to_owned(),
            format!("pread=dd if={disk} iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none"),
            format!(
                "pwrite=tee -a {data} | dd of={disk} bs=1M iflag=fullblock oflag=seek_bytes \
                 seek=$4 conv=notrunc status=none && echo W $4 $3 >> {log}"
            ),
            format!("flush=echo F >> {log}"),
        ];
        let device = FuseDevice::new(dir.path(), &words);
        Self { device, dir }
    }

    /// How much has come so far, in bytes of the log.
    fn moment(&self) -> u64 {
        fs::metadata(self.dir.path().join("log")).map_or(0, |log| log.len())
    }

    /// All that has come, each with the moment after it.
    fn events(&self) -> Vec<(u64, Event)> {
        let log = fs::read_to_string(self.dir.path().join("log")).expect("a log");
        let (mut moment, mut at) = (0, 0);
        let mut event = |line: &str| {
            moment += line.len() as u64 + 1;
            let mut words = line.split(' ').skip(1).map(|word| word.parse::<u64>());
            let event = match (words.next(), words.next()) {
                (Some(Ok(offset)), Some(Ok(len))) => {
                    at += len;
                    Event::Write {
                        offset,
                        at: at - len,
                        len: len as usize,
                    }
                }
                _ => Event::Flush,
            };
            (moment, event)
        };
        log.lines().map(&mut event).collect()
    }

    /// The disk after a cut at that moment: all that a flush covers, and of the rest any part.
    fn cut(&self, events: &[(u64, Event)], moment: u64, rng: &mut Rng) -> PathBuf {
        let path = self.dir.path().join("cut");
        let image = File::create(&path).expect("an image");
        image.set_len(DISK_BYTES).expect("its size");
        let data = File::open(self.dir.path().join("data")).expect("the data");
        let before = events.iter().filter(|(at, _)| *at <= moment);
        let flushes = before
            .clone()
            .filter(|(_, event)| matches!(event, Event::Flush));
        let covered = flushes.map(|(at, _)| *at).max().unwrap_or(0);
        for (when, event) in before {
            let Event::Write { offset, at, len } = event else {
                continue;
            };
            let mut bytes = vec![0; *len];
            data.read_exact_at(&mut bytes, *at).expect("the data");
            for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                // Whole writes mostly, and some of them torn.
                let torn = *when > covered && rng.next().is_multiple_of(4);
                let lost = *when > covered && number == 0 && rng.next().is_multiple_of(2);
                if lost {
                    break;
                }
                if torn {
                    continue;
                }
                let to = offset + (number * SECTOR) as u64;
                image.write_all_at(sector, to).expect("written");
            }
        }
        path
    }
}

/// A write of one unit, or a flush, with the moments before and after it.
struct Call {
    /// The unit and its new byte; nothing for a flush.
    write: Option<(usize, u8)>,
    sent: u64,
    answered: u64,
}

/// Writes and flushes, one after another.
fn load(recorder: &Recorder, client: &mut Client, rng: &mut Rng, count: usize) -> Vec<Call> {
    let mut calls = Vec::new();
    for number in 0..count {
        let sent = recorder.moment();
        let dice = rng.next();
        let write = (!dice.is_multiple_of(6)).then_some((
            (dice >> 32) as usize % UNITS,
            // Never the byte that this unit had last.
            (number % 250) as u8 + 1,
        ));
        let error = match write {
            Some((unit, byte)) => client.write(0, (unit * UNIT) as u64, &[byte; UNIT]),
            None => client.flush(),
        };
        assert_eq!(error, 0);
        calls.push(Call {
            write,
            sent,
            answered: recorder.moment(),
        });
    }
    calls
}

/// What each unit may be after a cut at that moment: the last write that a flush covers, or any
/// later one that was sent.
fn legal(calls: &[Call], moment: u64) -> Vec<Vec<u8>> {
    let flushed = |call: &Call| call.write.is_none() && call.answered <= moment;
    let covered = calls.iter().rposition(flushed).unwrap_or(0);
    let mut legal = vec![vec![0]; UNITS];
    for (number, call) in calls.iter().enumerate() {
        let Some((unit, byte)) = call.write.filter(|_| call.sent <= moment) else {
            continue;
        };
        match number < covered {
            true => legal[unit] = vec![byte],
            false => legal[unit].push(byte),
        }
    }
    legal
}

fn volume(mount: &Path, options: &str) -> String {
    format!("file:{}/chunks/{options}", mount.display())
}

/// Mounts what is left, serves it, and compares.
fn check(image: &Path, options: &str, legal: &[Vec<u8>], whole: bool, name: &str) {
    let dir = tempdir().expect("a temporary folder");
    let device = Loop::attach(image);
    let device_name = device.device().display().to_string();
    let mount = Mount::new(&["-t", "ext4", &device_name], &dir.path().join("mount"));
    let location = volume(&mount.path(""), options);
    let server = Serve::sharded("disk", &location).unix(&dir.path().join("sock"));
    let server = server.start();
    let found = Client::unix(&server).read(0, UNITS * UNIT);
    let found = found.unwrap_or_else(|error| panic!("{name}: a READ is error {error}"));
    let step = if whole { UNIT } else { SECTOR };
    for (at, part) in found.chunks(step).enumerate() {
        let unit = at * step / UNIT;
        let is_one = part.iter().all(|byte| *byte == part[0]);
        assert!(
            is_one && legal[unit].contains(&part[0]),
            "{name}: unit {unit} holds {} and may hold {:?}",
            part[0],
            legal[unit]
        );
    }
    server.stop();
    let output = nbd_rs(&["check", "--deep", "sharded", &location]);
    assert!(output.status.success(), "{name}: {}", text(&output));
    drop(mount);
}

fn power_cuts(options: &str, whole: bool, calls: usize, cuts: usize) {
    let mut rng = Rng::for_test(&format!("power {options}"));
    let recorder = Recorder::new();
    let device = recorder.device.name();
    run("mke2fs", &["-q", "-F", "-t", "ext4", "-m", "0", &device]);
    let dir = tempdir().expect("a temporary folder");
    let mount = Mount::new(&["-t", "ext4", &device], &dir.path().join("mount"));
    let location = volume(&mount.path(""), options);
    let size = (UNITS * UNIT).to_string();
    let words = ["init", "--size", &size, "--shard-size", "64Ki", "sharded"];
    let output = nbd_rs(&[&words[..], &[&location]].concat());
    assert!(output.status.success(), "{}", text(&output));
    let mut server = Serve::sharded("disk", &location)
        .unix(&dir.path().join("sock"))
        .start();
    let mut client = Client::unix(&server);
    client
        .line
        .receive_within(std::time::Duration::from_secs(60));
    let begin = recorder.moment();
    let calls = load(&recorder, &mut client, &mut rng, calls);
    let end = recorder.moment();
    drop(client);
    kill(&mut server);
    drop(mount);
    let events = recorder.events();
    let during = events.iter().filter(|(at, _)| (begin..=end).contains(at));
    let moments: Vec<u64> = during.map(|(at, _)| *at).collect();
    println!(
        "f18 {options}: {} events, {} calls",
        moments.len(),
        calls.len()
    );
    assert!(moments.len() > 50, "hardly anything came to the disk");
    for cut in 0..cuts {
        let moment = moments[rng.next() as usize % moments.len()];
        let image = recorder.cut(&events, moment, &mut rng);
        let name = format!("{options} cut {cut} at {moment}");
        check(&image, options, &legal(&calls, moment), whole, &name);
    }
}

#[test]
fn f18_c13_what_a_flush_covered_is_there_after_power_cuts_in_place() {
    if present_as_root(&FAILING_DISK) {
        power_cuts("", false, 150, 20);
    }
}

#[test]
fn f18_c13_what_a_flush_covered_is_there_after_power_cuts_with_whole_shards() {
    if present_as_root(&FAILING_DISK) {
        power_cuts("?way=whole", true, 60, 20);
    }
}
