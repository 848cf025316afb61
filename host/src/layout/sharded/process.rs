//! Facts about processes of this machine, for the owner record.

use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{test_kill_process, Pid};
use rustix::time::{clock_gettime, ClockId};

use super::owner::{Life, Process};
use super::uuid::Uuid;
use crate::error::{Error, Result};

/// What the clock since the boot is ahead by in this process's time name space, in clock ticks
/// (time_namespaces(7)); /proc tells times by it.
fn boot_clock_ahead_ticks() -> i64 {
    static AHEAD: OnceLock<i64> = OnceLock::new();
    *AHEAD.get_or_init(|| {
        let offsets = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
        ahead_ticks(&offsets).unwrap_or(0)
    })
}

/// The line of the boot clock: its name or number, seconds, nanoseconds.
fn ahead_ticks(offsets: &str) -> Option<i64> {
    let mut lines = offsets.lines().map(str::split_ascii_whitespace);
    let mut fields =
        lines.find_map(|mut fields| (fields.next()? == "boottime").then_some(fields))?;
    let seconds: i64 = fields.next()?.parse().ok()?;
    let nanos: i64 = fields.next()?.parse().ok()?;
    let per_second = i64::try_from(rustix::param::clock_ticks_per_second()).ok()?;
    let part = nanos.checked_mul(per_second)? / 1_000_000_000;
    seconds.checked_mul(per_second)?.checked_add(part)
}

/// When process `pid` started, in clock ticks since the machine's boot (proc_pid_stat(5), field 22);
/// `None` if there is no such process, or a dead one that nobody has waited for.
fn started_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, also parentheses.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    let told: u64 = fields.nth(18)?.parse().ok()?;
    Some(told.saturating_add_signed(-boot_clock_ahead_ticks()))
}

/// What can be seen of process `pid`. What /proc does not show may be another user's, where it is
/// mounted so (proc(5), hidepid): then the kernel knows of it all the same.
pub(super) fn life(pid: u32) -> Life {
    if let Some(ticks) = started_ticks(pid) {
        return Life::Since(ticks);
    }
    let shown = fs::exists(format!("/proc/{pid}")).unwrap_or(false);
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let denied = number.is_some_and(|pid| test_kill_process(pid) == Err(Errno::PERM));
    match denied && !shown {
        true => Life::Hidden,
        false => Life::None,
    }
}

/// This process. Where the kernel says nothing of itself nobody else can pronounce it dead.
///
/// # Errors
/// If there are no random numbers.
pub(super) fn this() -> Result<Process> {
    static THIS: OnceLock<Process> = OnceLock::new();
    if let Some(this) = THIS.get() {
        return Ok(this.clone());
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let boot = boot.ok().and_then(|text| Uuid::parse(text.trim_end()));
    let pid = std::process::id();
    let made = Process {
        host: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        boot_id: match boot {
            Some(boot) => boot,
            None => Uuid::random()?,
        },
        pid_namespace: pid_namespace().unwrap_or(0),
        pid,
        started_ticks: started_ticks(pid).unwrap_or(0),
    };
    Ok(THIS.get_or_init(|| made).clone())
}

fn pid_namespace() -> Option<u64> {
    let link = fs::read_link("/proc/self/ns/pid").ok()?;
    let text = link.to_str()?.strip_prefix("pid:[")?.strip_suffix(']')?;
    text.parse().ok()
}

/// Time since the boot, also while the machine slept: a lease runs out then, too.
pub(in crate::layout) fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Seconds since 1970, UTC.
pub(in crate::layout) fn now_s() -> Result<u64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let before = |_| Error::new(crate::error::Kind::Invalid, "the clock stands before 1970");
    now.map(|now| now.as_secs()).map_err(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f28_the_offset_of_a_time_name_space_is_read_in_ticks() {
        let ticks = rustix::param::clock_ticks_per_second() as i64;
        for (text, expected) in [
            (
                "monotonic           0         0\nboottime         3600         0\n",
                Some(3600 * ticks),
            ),
            (
                "monotonic 5 0\nboottime -2 500000000\n",
                Some(-2 * ticks + ticks / 2),
            ),
            ("monotonic 5 0\n", None),
            ("boottime x 0\n", None),
            ("boottime 9223372036854775807 0\n", None),
            ("", None),
        ] {
            assert_eq!(ahead_ticks(text), expected, "{text:?}");
        }
    }

    #[test]
    fn c17_a_process_is_known_while_it_lives() {
        let this = this().unwrap();
        assert_eq!(life(this.pid), Life::Since(this.started_ticks));
        assert!(this.started_ticks > 0 && this.pid_namespace > 0 && !this.host.is_empty());
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        assert!(started_ticks(child.id()).is_some_and(|ticks| ticks >= this.started_ticks));
        child.kill().unwrap();
        // Dead, though its number is taken until it is waited for.
        let pid = child.id();
        for _ in 0..1000 {
            if started_ticks(pid).is_none() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(started_ticks(pid), None);
        assert_eq!(life(pid), Life::None);
        child.wait().unwrap();
        assert_eq!(life(pid), Life::None);
    }
}
