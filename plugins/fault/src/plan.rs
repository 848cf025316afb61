//! Which call meets which fault: decided by the seed, the call's name and its number alone, so that
//! the tenth put of a run is the tenth put of the next, whatever else goes on beside it. Pure.

/// Rates are parts of this.
pub const MILLION: u64 = 1_000_000;

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$one:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$one])* $variant,)*
        }
        impl $name {
            /// All there are.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];
            /// Its name in options and in the log.
            pub fn name(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)*
                }
            }
        }
    };
}

named! {
    /// The calls that can meet a fault.
    #[allow(missing_docs)]
    Op {
        Get = "get",
        Put = "put",
        Head = "head",
        Delete = "delete",
        List = "list",
        Flush = "flush",
        Open = "open",
        Size = "size",
        Read = "read",
        Write = "write",
        Zero = "zero",
        Extents = "extents",
        Resize = "resize",
        Sync = "sync",
    }
}

named! {
    /// What happens to a call.
    Fault {
        /// It fails, and nothing was done.
        Before = "before",
        /// It is carried out, and its answer is an error.
        After = "after",
        /// A change is not carried out, and the answer is that nobody knows.
        Unsure = "unsure",
        /// A change is not carried out, and acknowledged: a store that lies.
        Lost = "lost",
        /// It takes longer.
        Delay = "delay",
        /// It is never answered.
        Hang = "hang",
        /// A read gives a byte less.
        Short = "short",
        /// A read gives a bit that is wrong.
        Flip = "flip",
        /// A read by name gives what was there before the last put.
        Stale = "stale",
        /// A change fails for want of space, and nothing was done.
        NoSpace = "nospace",
    }
}

impl Op {
    /// Whether it changes something, or makes a change last.
    pub fn changes(self) -> bool {
        use Op::{Delete, Flush, Put, Resize, Sync, Write, Zero};
        matches!(self, Put | Delete | Flush | Write | Zero | Resize | Sync)
    }
}

impl Fault {
    /// Whether it can happen to that call.
    pub fn suits(self, op: Op) -> bool {
        match self {
            Fault::Before | Fault::After | Fault::Delay | Fault::Hang => true,
            Fault::Unsure | Fault::Lost => op.changes(),
            Fault::Short | Fault::Flip => matches!(op, Op::Get | Op::Read),
            Fault::Stale => matches!(op, Op::Get | Op::Head),
            Fault::NoSpace => matches!(op, Op::Put | Op::Write | Op::Zero | Op::Resize),
        }
    }
}

/// What happens to which call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Of all that is chance.
    pub seed: u64,
    /// How many calls in a million.
    pub per_million: u64,
    /// The calls that can fail.
    pub ops: Vec<Op>,
    /// What can happen.
    pub faults: Vec<Fault>,
    /// So many calls of each sort go well first.
    pub skip: u64,
}

/// The fault of one call, and a number that was drawn with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fate {
    /// What happens.
    pub fault: Fault,
    /// For whatever is to be chosen besides.
    pub drawn: u64,
}

impl Plan {
    /// What happens to the call number `number` (from 0) of that name.
    pub fn fate(&self, op: Op, number: u64) -> Option<Fate> {
        if number < self.skip || !self.ops.contains(&op) {
            return None;
        }
        let mut rng = Rng(mixed(mixed(self.seed) ^ op as u64) ^ number);
        if rng.next() % MILLION >= self.per_million {
            return None;
        }
        let suiting = self.faults.iter().filter(|fault| fault.suits(op));
        let suiting: Vec<Fault> = suiting.copied().collect();
        let fault = *suiting.get(rng.next() as usize % suiting.len().max(1))?;
        let drawn = rng.next();
        Some(Fate { fault, drawn })
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed(self.0)
    }
}

fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan(seed: u64, per_million: u64, faults: &[Fault]) -> Plan {
        Plan {
            seed,
            per_million,
            ops: Op::ALL.to_vec(),
            faults: faults.to_vec(),
            skip: 0,
        }
    }

    proptest! {
        #[test]
        fn a_seed_gives_the_same_faults_again_and_only_those_that_suit(
            seed: u64,
            number in 0..u64::MAX / 2,
            rate in 0..=MILLION,
        ) {
            let plan = plan(seed, rate, Fault::ALL);
            for op in Op::ALL {
                let fate = plan.fate(*op, number);
                prop_assert_eq!(fate, plan.clone().fate(*op, number));
                if let Some(fate) = fate {
                    prop_assert!(fate.fault.suits(*op));
                }
            }
        }

        #[test]
        fn the_rate_is_about_what_was_asked_for(seed: u64) {
            let plan = plan(seed, 100_000, &[Fault::Before]);
            let met = (0..10_000).filter(|number| plan.fate(Op::Get, *number).is_some());
            let met = met.count();
            // Ten standard deviations of a fair draw on either side.
            prop_assert!((700..1300).contains(&met), "{} of 10000", met);
        }
    }

    #[test]
    fn nothing_and_everything_can_be_asked_for() {
        let always = plan(1, MILLION, &[Fault::Lost]);
        let never = plan(1, 0, &[Fault::Lost]);
        for number in 0..1000 {
            assert!(never.fate(Op::Put, number).is_none());
            let fate = always.fate(Op::Put, number).unwrap();
            assert_eq!(fate.fault, Fault::Lost);
            assert!(always.fate(Op::Get, number).is_none());
        }
        let later = Plan { skip: 5, ..always };
        assert!(later.fate(Op::Put, 4).is_none() && later.fate(Op::Put, 5).is_some());
    }

    #[test]
    fn every_fault_suits_some_call() {
        for fault in Fault::ALL {
            assert!(Op::ALL.iter().any(|op| fault.suits(*op)), "{fault:?}");
        }
    }
}
