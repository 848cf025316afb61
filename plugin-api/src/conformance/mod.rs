//! What every backend must show, as a suite to run on it: in its own tests, on a chain, or on a
//! library that was loaded.
//!
//! The behaviours are those of [`Backend`](crate::Backend) and [`Object`](crate::Object); which of
//! them are asked for follows from the backend's [`Capabilities`]. Nothing here needs a runtime:
//! [`run`] is a future for whatever executor the caller has, and [`host`] brings one of threads.
//!
//! ```no_run
//! # async fn example(next: nbd_rs_plugin::Next) {
//! use nbd_rs_plugin::conformance::{run, Options};
//! let report = run(next, &Options::named("conformance/", 1)).await;
//! assert!(report.passed(), "{report}");
//! # }
//! ```

mod calls;
mod check;
pub mod host;
mod list;
pub mod memory;
mod object;
mod put;
mod read;

use crate::{Capabilities, CapabilityFlags, Next};

/// What to run on.
#[derive(Debug, Clone)]
pub struct Options {
    /// All names begin with this; nothing else in the store is touched. With
    /// [`single`](Self::single) it is not used.
    pub prefix: String,
    /// The store is one object, with the empty name. **What it holds is lost.**
    pub single: bool,
    /// Of all that is random.
    pub seed: u64,
    /// Objects in the listing of several pages.
    pub many_objects: usize,
    /// Steps of the random script on an opened object.
    pub script_steps: usize,
    /// How often eight writers race for one object, under a condition that one of them can meet.
    /// Some servers let them in one by one, a second apart.
    pub race_rounds: u8,
    /// The names of the checks to run ([`CHECKS`]); if there is none, all are run.
    pub only: Vec<String>,
}

impl Options {
    /// A store of objects by name.
    pub fn named(prefix: &str, seed: u64) -> Self {
        Self {
            prefix: prefix.to_owned(),
            single: false,
            seed,
            many_objects: 1050,
            script_steps: 400,
            race_rounds: 10,
            only: Vec::new(),
        }
    }

    /// A store that is one object. What it holds is lost.
    pub fn single(seed: u64) -> Self {
        Self {
            single: true,
            ..Self::named("", seed)
        }
    }
}

/// How a check went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As promised.
    Passed,
    /// Not as promised: what was seen.
    Failed(String),
    /// Not asked for: why.
    Skipped(String),
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Its name, for lists and filters.
    pub name: &'static str,
    /// What a backend promises here.
    pub promise: &'static str,
    /// How it went.
    pub outcome: Outcome,
}

/// All checks, in the order in which they ran.
#[derive(Debug, Clone)]
pub struct Report {
    /// The seed, to have the same run again.
    pub seed: u64,
    /// The checks.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether no check failed.
    pub fn passed(&self) -> bool {
        let failed = |check: &Check| matches!(check.outcome, Outcome::Failed(_));
        !self.checks.iter().any(failed)
    }

    /// How many were run and went well.
    pub fn passes(&self) -> usize {
        let passed = |check: &&Check| check.outcome == Outcome::Passed;
        self.checks.iter().filter(passed).count()
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "seed {}", self.seed)?;
        for check in &self.checks {
            let name = check.name;
            match &check.outcome {
                Outcome::Passed => writeln!(f, "passed   {name}")?,
                Outcome::Skipped(why) => writeln!(f, "skipped  {name}: {why}")?,
                Outcome::Failed(why) => {
                    writeln!(
                        f,
                        "FAILED   {name}: {why}\n         promised: {}",
                        check.promise
                    )?;
                }
            }
        }
        Ok(())
    }
}

/// What a check works with.
struct Subject<'a> {
    next: Next,
    options: &'a Options,
    capabilities: Capabilities,
    /// The prefix of this check alone.
    prefix: String,
}

/// What a check needs; what is missing makes it skipped.
#[derive(Clone, Copy)]
struct Needs {
    flags: CapabilityFlags,
    named: bool,
    single: bool,
}

const fn named(flags: CapabilityFlags) -> Needs {
    Needs {
        named: true,
        ..any(flags)
    }
}

const fn single(flags: CapabilityFlags) -> Needs {
    Needs {
        single: true,
        ..any(flags)
    }
}

const fn any(flags: CapabilityFlags) -> Needs {
    Needs {
        flags,
        named: false,
        single: false,
    }
}

const fn opened(flags: CapabilityFlags) -> Needs {
    any(flags.with(CapabilityFlags::IN_PLACE))
}

impl Needs {
    fn missing(self, subject: &Subject<'_>) -> Option<String> {
        if self.named && subject.options.single {
            return Some("the store is one object".to_owned());
        }
        if self.single && !subject.options.single {
            return Some("the store is many objects".to_owned());
        }
        let missing = self.flags.without(subject.capabilities.flags);
        (!missing.is_empty()).then(|| format!("not offered: {missing:?}"))
    }
}

/// What is checked: the table of promises, and the function that goes through it.
macro_rules! checks {
    ($($needs:expr => $module:ident::$check:ident, $promise:literal;)*) => {
        /// The name of every check, and what a backend promises there.
        pub const CHECKS: &[(&str, &str)] = &[$((stringify!($check), $promise),)*];

        impl Run<'_> {
            async fn all(&mut self) {
                use CapabilityFlags as C;
                $(
                    if self.wants(stringify!($check)) {
                        let mut subject = self.subject(stringify!($check));
                        let outcome = match $needs.missing(&subject) {
                            Some(why) => Outcome::Skipped(why),
                            None => match $module::$check(&mut subject).await {
                                Ok(()) => Outcome::Passed,
                                Err(why) => Outcome::Failed(why),
                            },
                        };
                        if outcome == Outcome::Passed && !subject.options.single {
                            check::clean(&subject).await;
                        }
                        self.checks.push(Check { name: stringify!($check), promise: $promise, outcome });
                    }
                )*
            }
        }
    };
}

struct Run<'a> {
    next: Next,
    options: &'a Options,
    checks: Vec<Check>,
}

impl Run<'_> {
    fn wants(&self, check: &str) -> bool {
        let only = &self.options.only;
        only.is_empty() || only.iter().any(|wanted| wanted == check)
    }

    fn subject(&self, check: &str) -> Subject<'_> {
        Subject {
            next: self.next.clone(),
            options: self.options,
            capabilities: self.next.capabilities(),
            prefix: format!("{}{check}/", self.options.prefix),
        }
    }
}

checks! {
    any(C::NONE) => calls::capabilities, "capabilities stay the same, and do not contradict each other";
    named(C::WRITABLE) => read::what_was_put_is_read, "get and head give what put stored";
    named(C::WRITABLE) => read::ranges, "a range inside the object gives just that; one outside is Invalid";
    named(C::NONE) => read::missing_objects, "get and head of what is not there are NotFound";
    named(C::WRITABLE) => read::meta_goes_with_the_data, "WANT_META gives name, size and ETag of what was read";
    named(C::WRITABLE) => read::etags_change, "another content has another ETag";
    named(C::WRITABLE | C::STRONG_READ_AFTER_WRITE) => read::overwrites_are_seen_at_once, "a read after an acknowledged put gives it";
    named(C::WRITABLE) => read::fresh_is_obeyed, "FRESH reads what the store has";
    named(C::WRITABLE) => put::many_pieces, "a body of many pieces is stored in order";
    named(C::WRITABLE) => put::names, "names are any UTF-8 of up to 1024 bytes, and kept apart";
    named(C::WRITABLE) => put::replaced_whole, "readers see the old object or the new one";
    named(C::WRITABLE | C::IF_ABSENT) => put::if_absent, "IfAbsent stores once, then Exists";
    named(C::WRITABLE | C::IF_ABSENT) => put::one_creator_wins, "of eight creators at once just one succeeds";
    named(C::WRITABLE | C::IF_MATCH) => put::if_match, "IfMatch with a stale ETag is Precondition and changes nothing";
    named(C::WRITABLE | C::IF_MATCH) => put::one_updater_wins, "of eight updates of one ETag just one succeeds";
    named(C::WRITABLE) => list::deletes, "delete answers for each key, missing ones too, and they are gone";
    named(C::WRITABLE) => list::deletes_beside_puts, "a delete takes nothing along that is put meanwhile";
    named(C::WRITABLE) => list::order, "names are listed in byte order, below a prefix, behind a name";
    named(C::WRITABLE) => list::pages, "pages come without gaps or repetitions, and end";
    named(C::NONE) => list::nothing, "a prefix that no name has lists nothing";
    named(C::WRITABLE) => calls::flush, "flush answers after puts and deletes";
    named(C::WRITABLE) => calls::not_polled, "a call that was never polled has no effect";
    named(C::WRITABLE) => calls::dropped_reads, "a read may be dropped at every await";
    named(C::WRITABLE) => calls::at_once, "many calls at once are each answered rightly";
    named(C::IN_PLACE) => object::missing, "opening what is not there is NotFound";
    opened(C::WRITABLE) => object::modes, "CREATE, CREATE_NEW and TRUNCATE do what they say";
    opened(C::WRITABLE) => object::locks, "LOCK keeps a second one out until close";
    opened(C::WRITABLE) => object::read_only, "an object opened without WRITE is not changed";
    opened(C::WRITABLE) => object::script, "reads, writes, zeros, extents and sizes are those of plain memory";
    opened(C::WRITABLE) => object::writes_at_once, "writes beside each other at once are all kept";
    opened(C::WRITABLE) => object::write_not_polled, "a write that was never polled has no effect";
    single(C::IN_PLACE) => object::reads_agree, "what reads alone gives the same again, and parts are those of the whole";
    opened(C::WRITABLE) => object::dropped_object_reads, "a read in place may be dropped at every await";
    opened(C::WRITABLE | C::FAST_ZERO) => object::fast_zero, "FAST succeeds where FAST_ZERO is offered";
    named(C::WRITABLE | C::IN_PLACE) => object::seen_by_name, "what was written in place is read by name";
}

/// Runs every check that is asked for and that the backend's capabilities ask for.
pub async fn run(next: Next, options: &Options) -> Report {
    let mut run = Run {
        next,
        options,
        checks: Vec::new(),
    };
    run.all().await;
    Report {
        seed: options.seed,
        checks: run.checks,
    }
}
