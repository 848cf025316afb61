//! Whether objects that are asked for once are asked for again. Pure.

/// So many are opened before anything is concluded.
const LEAST: u32 = 4;
/// What was learned longer ago than this many counts half.
const MEMORY: u32 = 32;
/// One in so many is opened with what was asked for, to go on learning.
const TRIAL: u32 = 16;

/// Learned from objects that were opened with just what was asked for.
#[derive(Debug, Default)]
pub struct Habit {
    opened: u32,
    again: u32,
    turn: u32,
}

impl Habit {
    /// An object is opened: whether it is likely to be asked for again, so that its next fetch may
    /// as well be this one. If not, it is one to learn from.
    pub fn expects_more(&mut self) -> bool {
        self.turn = self.turn.wrapping_add(1);
        // Three of four.
        let is_likely = self.opened >= LEAST && self.again * 4 >= self.opened * 3;
        if is_likely && !self.turn.is_multiple_of(TRIAL) {
            return true;
        }
        if self.opened >= MEMORY {
            (self.opened, self.again) = (self.opened / 2, self.again / 2);
        }
        self.opened += 1;
        false
    }

    /// An object that was opened with just what was asked for is asked for again.
    pub fn came_again(&mut self) {
        self.again = self.opened.min(self.again + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `count` objects that are opened, each asked for again if `again` says so: how many are
    /// expected to be.
    fn expected(habit: &mut Habit, count: u32, again: impl Fn(u32) -> bool) -> u32 {
        let mut expected = 0;
        for at in 0..count {
            match habit.expects_more() {
                true => expected += 1,
                false if again(at) => habit.came_again(),
                false => {}
            }
        }
        expected
    }

    #[test]
    fn what_comes_again_is_soon_expected_and_what_does_not_never() {
        let mut habit = Habit::default();
        let always = expected(&mut habit, 64, |_| true);
        assert!(always >= 64 - LEAST - 64 / TRIAL, "{always}");
        assert_eq!(expected(&mut Habit::default(), 1000, |_| false), 0);
        assert_eq!(expected(&mut Habit::default(), 1000, |at| at % 2 == 0), 0);
    }

    #[test]
    fn a_change_of_habit_is_noticed() {
        let mut habit = Habit::default();
        expected(&mut habit, 10_000, |_| true);
        let wrongly = expected(&mut habit, 100_000, |_| false);
        assert!(wrongly <= MEMORY * TRIAL, "{wrongly}");
        let rightly = expected(&mut habit, 1000, |_| true);
        assert!(rightly >= 800, "{rightly}");
    }
}
