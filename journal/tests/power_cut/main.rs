//! The journal on a disk that loses power, at any moment and with any part of what was not
//! synced, also while it recovers, three times over (F2, F3, F18, F70).

#[path = "../common/mod.rs"]
mod common;

mod world;

use common::rng::Rng;
use world::World;

/// Images in one run.
const IMAGES: usize = 3000;

/// Lives, loses power, recovers, and so on.
fn live_and_die(world: World, depth: u32, images: &mut usize, rng: &mut Rng) {
    let crashes = if depth == 0 { 12 } else { 2 };
    for _ in 0..crashes {
        let (moment, cut) = world.any_moment(rng);
        *images += 1;
        let mut next = world.crash(moment, cut, rng);
        if depth < 3 {
            let steps = rng.next() % 12;
            next.live(steps, rng);
            live_and_die(next, depth + 1, images, rng);
        }
    }
}

#[test]
fn c12_c13_what_was_acknowledged_survives_the_process_and_what_was_synced_the_machine() {
    let mut rng = Rng::for_test("power_cut");
    let mut images = 0;
    while images < IMAGES {
        let mut world = World::new(&mut rng);
        let steps = 20 + rng.next() % 60;
        world.live(steps, &mut rng);
        live_and_die(world, 0, &mut images, &mut rng);
    }
    println!("{images} images");
}
