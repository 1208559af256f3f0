//! Sums in an order that is the same on every instruction set.

/// Independent sums that are joined at the end, so that the order is the same on every instruction
/// set.
pub(crate) const LANES: usize = 16;

/// `Σ term(x, y)` in lanes.
#[inline(always)]
pub(crate) fn sum_lanes(x: &[f32], y: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest = xs.remainder().iter().zip(ys.remainder());
    let rest = rest.fold(0.0, |sum, (x, y)| sum + term(*x, *y));
    for (x, y) in xs.zip(ys) {
        for ((sum, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *sum += term(*x, *y);
        }
    }
    rest + join_lanes(lanes, |a, b| a + b)
}

/// All lanes as one, half of them at a time: four operations wait for one another, where one lane after
/// the other would be sixteen.
#[inline(always)]
pub(crate) fn join_lanes(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [LANES / 2, LANES / 4, LANES / 8, LANES / 16] {
        for lane in 0..half {
            lanes[lane] = join(lanes[lane], lanes[lane + half]);
        }
    }
    lanes[0]
}
