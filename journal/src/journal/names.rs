//! What the files of a volume's journal are called.

use crate::uuid::Uuid;

const FILE: &str = ".journal";
const NEW: &str = ".new";

/// Keeps other processes out.
pub(super) fn lock(volume: Uuid) -> String {
    format!("{volume}.lock")
}

/// A file that counts.
pub(super) fn file(volume: Uuid, generation: u64) -> String {
    format!("{volume}.{generation}{FILE}")
}

/// The same before it counts.
pub(super) fn new_file(volume: Uuid, generation: u64) -> String {
    format!("{}{NEW}", file(volume, generation))
}

/// Of these names, the generations that count, oldest first, and the files that do not yet.
pub(super) fn of_volume(volume: Uuid, names: &[String]) -> (Vec<u64>, Vec<String>) {
    let generation = |name: &str| {
        name.parse()
            .ok()
            .filter(|&found| file(volume, found) == file_of(volume, name))
    };
    let start = format!("{volume}.");
    let middles = names
        .iter()
        .filter_map(|name| name.strip_prefix(&start)?.strip_suffix(FILE));
    let mut generations: Vec<u64> = middles.filter_map(generation).collect();
    generations.sort_unstable();
    let end = format!("{FILE}{NEW}");
    let unfinished = |name: &&String| name.starts_with(&start) && name.ends_with(&end);
    (
        generations,
        names.iter().filter(unfinished).cloned().collect(),
    )
}

/// The volumes that have files among these names.
pub(super) fn volumes(names: &[String]) -> Vec<Uuid> {
    let volume = |name: &String| {
        let volume = Uuid::parse(name.split('.').next()?)?;
        let (generations, unfinished) = of_volume(volume, std::slice::from_ref(name));
        (!generations.is_empty() || !unfinished.is_empty()).then_some(volume)
    };
    let mut volumes: Vec<Uuid> = names.iter().filter_map(volume).collect();
    volumes.sort_unstable();
    volumes.dedup();
    volumes
}

fn file_of(volume: Uuid, generation: &str) -> String {
    format!("{volume}.{generation}{FILE}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_volume_and_only_as_they_are_written_count() {
        let (mine, other) = (Uuid([1; 16]), Uuid([2; 16]));
        let names = [
            file(mine, 10),
            file(mine, 9),
            file(other, 11),
            new_file(mine, 11),
            new_file(other, 3),
            lock(mine),
            format!("{mine}.+4.journal"),
            format!("{mine}.05.journal"),
            format!("{mine}.journal"),
        ];
        let (generations, unfinished) = of_volume(mine, &names);
        assert_eq!(generations, [9, 10]);
        assert_eq!(unfinished, [new_file(mine, 11)]);
        assert_eq!(volumes(&names), [mine, other]);
        assert_eq!(volumes(&[lock(mine), "1.journal".to_owned()]), []);
    }
}
