//! Which values a 4 KiB unit may have, given what was sent and what was answered.
//!
//! Every write carries {seed, unit, id} in every one of its units. A value may be read when its
//! write was sent, and no other write of the unit was *sent after this one was answered* and
//! itself answered before the read was sent (or before the server was killed).

/// Bytes of a unit.
pub(crate) const UNIT: usize = 4096;

/// The id of a write that leaves zeros.
const ZEROS: u64 = 0;

/// When something happened, in the order in which the test saw it.
pub(crate) type Moment = u64;

/// One write of one unit.
struct Write {
    /// What it leaves: the id in the unit, or zeros.
    leaves: u64,
    sent: Moment,
    answered: Option<Moment>,
}

/// All units of one volume.
pub(crate) struct Model {
    seed: u64,
    now: Moment,
    ids: u64,
    units: Vec<Vec<Write>>,
}

/// The bytes of a unit that this write leaves.
fn pattern(seed: u64, unit: usize, id: u64) -> Vec<u8> {
    if id == ZEROS {
        return vec![0; UNIT];
    }
    // The whole unit says the same 32 bytes: a torn unit is none of the legal values.
    let tag = [
        seed,
        unit as u64,
        id,
        id.wrapping_mul(0x9e37_79b9_7f4a_7c15),
    ];
    let tag: Vec<u8> = tag.iter().flat_map(|word| word.to_le_bytes()).collect();
    tag.repeat(UNIT / tag.len())
}

impl Model {
    /// A volume of that many units of zeros.
    pub(crate) fn zeros(seed: u64, units: usize) -> Self {
        let zeros = || {
            vec![Write {
                leaves: ZEROS,
                sent: 0,
                answered: Some(0),
            }]
        };
        Self {
            seed,
            now: 0,
            ids: ZEROS,
            units: (0..units).map(|_| zeros()).collect(),
        }
    }

    /// A moment later than all others.
    pub(crate) fn moment(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    /// A write of these units is about to be sent: its id, and its payload when it has one.
    pub(crate) fn send(&mut self, first: usize, count: usize, zeros: bool) -> (u64, Vec<u8>) {
        let sent = self.moment();
        self.ids += 1;
        let id = self.ids;
        let leaves = if zeros { ZEROS } else { id };
        let mut payload = Vec::new();
        for unit in first..first + count {
            self.units[unit].push(Write {
                leaves,
                sent,
                answered: None,
            });
            if !zeros {
                payload.extend(pattern(self.seed, unit, id));
            }
        }
        (sent, payload)
    }

    /// The write that was sent at that moment was answered without error.
    pub(crate) fn answer(&mut self, first: usize, count: usize, sent: Moment) {
        let now = self.moment();
        for unit in first..first + count {
            let write = self.units[unit].iter_mut().find(|write| write.sent == sent);
            write.expect("a write that was sent").answered = Some(now);
        }
    }

    /// Checks a unit that was read; `asked` is when the READ was sent. Gives what is wrong.
    pub(crate) fn check(&self, unit: usize, bytes: &[u8], asked: Moment) -> Result<(), String> {
        let writes = &self.units[unit];
        // The newest sending time among writes that were answered before we asked: whatever was
        // answered before that has been replaced.
        let replaced = writes
            .iter()
            .filter(|write| write.answered.is_some_and(|at| at < asked))
            .map(|write| write.sent)
            .max()
            .unwrap_or(0);
        let legal = |write: &&Write| write.answered.is_none_or(|at| at >= replaced);
        if writes
            .iter()
            .filter(legal)
            .any(|write| bytes == pattern(self.seed, unit, write.leaves))
        {
            return Ok(());
        }
        let word =
            |n: usize| u64::from_le_bytes(bytes[n * 8..n * 8 + 8].try_into().expect("8 bytes"));
        let known: Vec<String> = writes
            .iter()
            .map(|write| {
                format!(
                    "{}: sent {} answered {:?}",
                    write.leaves, write.sent, write.answered
                )
            })
            .collect();
        let whole = bytes == bytes[..32].repeat(UNIT / 32);
        Err(format!(
            "unit {unit} holds seed {} unit {} write {}{}; its writes: {}",
            word(0),
            word(1),
            word(2),
            if whole { "" } else { " and is torn" },
            known.join(", ")
        ))
    }

    /// After a crash: checks all units, then takes what is there as the only truth.
    pub(crate) fn check_after_crash(&mut self, volume: &[u8]) {
        let now = self.moment();
        let mut wrong = Vec::new();
        for (unit, bytes) in volume.chunks(UNIT).enumerate() {
            if let Err(why) = self.check(unit, bytes, now) {
                wrong.push(why);
                continue;
            }
            let seed = self.seed;
            let writes = &mut self.units[unit];
            writes.retain(|write| bytes == pattern(seed, unit, write.leaves));
            writes.truncate(1);
            writes[0].answered = Some(now);
        }
        assert!(
            wrong.is_empty(),
            "{} units are wrong: {:#?}",
            wrong.len(),
            &wrong[..wrong.len().min(5)]
        );
    }
}
