//! Sums in an order that is the same on every instruction set.

/// The number of independent partial sums, which are joined at the end. It is fixed, so that the order of the additions
/// is the same on every instruction set.
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

/// Joins all lanes into one by halving their number. This makes a chain of four dependent operations, where joining
/// lane after lane would make one of sixteen.
#[inline(always)]
pub(crate) fn join_lanes(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [LANES / 2, LANES / 4, LANES / 8, LANES / 16] {
        for lane in 0..half {
            lanes[lane] = join(lanes[lane], lanes[lane + half]);
        }
    }
    lanes[0]
}
