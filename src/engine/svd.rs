//! The largest singular values of a matrix and their vectors.
//!
//! Subspace iteration from a random start (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4), with Chebyshev
//! polynomials of the Gram matrix in place of its powers (Saad, *Numerical Methods for Large Eigenvalue Problems*, 2nd
//! ed., section 5.3). Methods that are initialized from a decomposition need only a few directions of a weight, and a
//! complete decomposition would take many times the work. All arithmetic is in f64 and on one thread, so a machine always
//! gives the same bits.

use gemm::{gemm, Parallelism};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// A truncated decomposition `W ≈ U S Vᵀ`, with the singular values in descending order.
pub struct Svd {
    /// `U (rows, rank)`
    left: Columns,
    values: Vec<f64>,
    /// `V (columns, rank)`
    right: Columns,
}

/// The least number of directions that the iteration follows beyond those that are wanted. More of them make the wanted
/// ones converge faster.
const LEAST_EXTRA: usize = 8;
/// The highest degree of a polynomial between two tests of the residual.
const HIGHEST_DEGREE: usize = 12;
/// The largest factor by which a polynomial may amplify the first direction relative to the last. Beyond 1 / ε, the
/// rounding error of the first direction would swamp the others.
const MOST_RAISED: f64 = 1e8;
/// The largest `‖Wᵀ W v - s² v‖`, relative to the largest `s²`, at which a pair counts as found.
const TOLERANCE: f64 = 1e-10;
/// The largest number of polynomials. Singular values that this many do not separate are as good as equal, and any of
/// their directions is right.
const MOST_POLYNOMIALS: usize = 200;

impl Svd {
    /// The `rank` largest singular values of `weight (rows, columns)`, given row by row, and their vectors; fewer if
    /// the shorter side is below `rank`. `None` if an element is not finite.
    pub fn of(weight: &[f32], columns: usize, rank: usize) -> Option<Self> {
        if weight.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let rows = weight.len() / columns;
        let weight = Columns {
            data: weight.iter().map(|value| f64::from(*value)).collect(),
            rows: columns,
            count: rows,
        }
        .transposed();
        let least = rows.min(columns);
        let rank = rank.min(least);
        let width = (2 * rank).max(rank + LEAST_EXTRA);
        let (left, values, right) = match 3 * width >= 2 * least {
            // The iteration would follow most directions, and rotate them in every round. One-sided rotations of the
            // shorter side's columns decompose the matrix directly.
            true if rows < columns => {
                let (right, values, left) = rotated(weight.transposed());
                (left, values, right)
            }
            true => rotated(weight),
            false => iterated(&weight, rank, width),
        };
        let cut = |mut side: Columns| {
            side.data.truncate(rank * side.rows);
            side.count = rank;
            side
        };
        Some(Svd {
            left: cut(left),
            values,
            right: cut(right),
        })
    }

    /// `√(S / scale) Vᵀ (rank, columns)` (PiSSA: Meng et al., arXiv 2404.02948, eq. 2).
    pub fn rows(&self, scale: f32) -> Vec<f32> {
        let scaled = |rank: usize| {
            let root = self.root(rank, scale);
            let column = self.right.column(rank).iter();
            column.map(move |value| (root * value) as f32)
        };
        (0..self.right.count).flat_map(scaled).collect()
    }

    /// `U √(S / scale) (rows, rank)` (eq. 3).
    pub fn columns(&self, scale: f32) -> Vec<f32> {
        let left = &self.left;
        let places = (0..left.rows).flat_map(|row| (0..left.count).map(move |rank| (row, rank)));
        let element = |(row, rank)| (self.root(rank, scale) * left.column(rank)[row]) as f32;
        places.map(element).collect()
    }

    fn root(&self, rank: usize, scale: f32) -> f64 {
        (self.values[rank] / f64::from(scale)).sqrt()
    }
}

/// A matrix `(rows, count)`, column after column.
#[derive(Clone)]
struct Columns {
    data: Vec<f64>,
    rows: usize,
    count: usize,
}

impl Columns {
    fn column(&self, number: usize) -> &[f64] {
        &self.data[number * self.rows..(number + 1) * self.rows]
    }

    /// Columns `first` and `second`; `second` is the higher number.
    fn pair(&mut self, first: usize, second: usize) -> (&mut [f64], &mut [f64]) {
        let (before, behind) = self.data.split_at_mut(second * self.rows);
        let first = &mut before[first * self.rows..][..self.rows];
        (first, &mut behind[..self.rows])
    }

    fn transposed(&self) -> Columns {
        let places =
            (0..self.rows).flat_map(|row| (0..self.count).map(move |column| (row, column)));
        Columns {
            data: places
                .map(|(row, column)| self.column(column)[row])
                .collect(),
            rows: self.count,
            count: self.rows,
        }
    }

    /// `self · other`, or `selfᵀ · other`.
    fn times(&self, other: &Columns, is_transposed: bool) -> Columns {
        let (rows, depth, strides) = match is_transposed {
            false => (self.rows, self.count, (self.rows, 1)),
            true => (self.count, self.rows, (1, self.rows)),
        };
        assert_eq!(depth, other.rows);
        let mut data = vec![0.0; rows * other.count];
        let [across, along] = [strides.0 as isize, strides.1 as isize];
        // SAFETY: each matrix has as many elements as its shape says, and `data` overlaps neither operand.
        unsafe {
            gemm(
                rows,
                other.count,
                depth,
                data.as_mut_ptr(),
                rows as isize,
                1,
                false,
                self.data.as_ptr(),
                across,
                along,
                other.data.as_ptr(),
                other.rows as isize,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
        Columns {
            data,
            rows,
            count: other.count,
        }
    }

    /// Makes the columns orthonormal (Gram and Schmidt). Done twice, because rounding errors leave the columns of a
    /// single pass not quite orthogonal.
    fn orthonormalize(&mut self) {
        for _ in 0..2 {
            for number in 0..self.count {
                let rows = self.rows;
                let (before, own) = self.data.split_at_mut(number * rows);
                let own = &mut own[..rows];
                for other in before.chunks_exact(rows) {
                    let shared = dot(other, own);
                    own.iter_mut()
                        .zip(other)
                        .for_each(|(own, other)| *own -= shared * other);
                }
                let length = dot(own, own).sqrt();
                if length > 0.0 {
                    own.iter_mut().for_each(|value| *value /= length);
                }
            }
        }
    }
}

/// With several sums side by side, which the compiler makes vectors of.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    const SUMS: usize = 16;
    let mut sums = [0.0; SUMS];
    let (parts, others) = (a.chunks_exact(SUMS), b.chunks_exact(SUMS));
    let rest = parts.remainder().iter().zip(others.remainder());
    let rest: f64 = rest.map(|(a, b)| a * b).sum();
    for (a, b) in parts.zip(others) {
        for place in 0..SUMS {
            sums[place] += a[place] * b[place];
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// The decomposition of a matrix that is not wide, by rotations that make its columns orthogonal (Hestenes; Golub and
/// Van Loan, *Matrix Computations*, 4th ed., section 8.6.3).
fn rotated(mut matrix: Columns) -> (Columns, Vec<f64>, Columns) {
    const MOST_SWEEPS: usize = 40;
    let count = matrix.count;
    let mut turns = Columns {
        data: vec![0.0; count * count],
        rows: count,
        count,
    };
    (0..count).for_each(|place| turns.data[place * (count + 1)] = 1.0);
    for _ in 0..MOST_SWEEPS {
        let mut is_done = true;
        // A rotation says how it changes the squared lengths; measured anew in every sweep, as the errors add up.
        let mut squared: Vec<f64> = (0..count)
            .map(|place| dot(matrix.column(place), matrix.column(place)))
            .collect();
        for (first, second) in (0..count).flat_map(|i| (i + 1..count).map(move |j| (i, j))) {
            let (one, other) = matrix.pair(first, second);
            let [a, b, c] = [squared[first], squared[second], dot(one, other)];
            if c == 0.0 || c.abs() <= f64::EPSILON * (a * b).sqrt() {
                continue;
            }
            is_done = false;
            let tau = (b - a) / (2.0 * c);
            let tangent = tau.signum() / (tau.abs() + (1.0 + tau * tau).sqrt());
            let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
            let sine = cosine * tangent;
            squared[first] = (a - tangent * c).max(0.0);
            squared[second] = b + tangent * c;
            for (one, other) in [(one, other), turns.pair(first, second)] {
                for (x, y) in one.iter_mut().zip(other) {
                    (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
                }
            }
        }
        if is_done {
            break;
        }
    }
    let lengths: Vec<f64> = (0..count)
        .map(|i| dot(matrix.column(i), matrix.column(i)).sqrt())
        .collect();
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|a, b| lengths[*b].total_cmp(&lengths[*a]));
    let sorted = |side: &Columns, is_scaled: bool| {
        let column = |place: &usize| {
            let length = match is_scaled && lengths[*place] > 0.0 {
                true => lengths[*place],
                false => 1.0,
            };
            side.column(*place).iter().map(move |value| value / length)
        };
        Columns {
            data: order.iter().flat_map(column).collect(),
            ..*side
        }
    };
    let values = order.iter().map(|place| lengths[*place]).collect();
    (sorted(&matrix, true), values, sorted(&turns, false))
}

/// The first `rank` singular triplets of a large matrix, by applying polynomials of `Wᵀ W` to `width` directions.
fn iterated(weight: &Columns, rank: usize, width: usize) -> (Columns, Vec<f64>, Columns) {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut right = Columns {
        data: (0..weight.count * width)
            .map(|_| StandardNormal.sample(&mut random))
            .collect(),
        rows: weight.count,
        count: width,
    };
    right.orthonormalize();
    let mut tried = 0;
    loop {
        // Compute the best pairs within the present directions (Rayleigh and Ritz).
        let image = weight.times(&right, false);
        let (_, squares, turns) = rotated(image.times(&image, true));
        right = right.times(&turns, false);
        let image = image.times(&turns, false);
        let back = weight.times(&image, true);
        let residual = |place: usize| {
            let pairs = back.column(place).iter().zip(right.column(place));
            let squared = pairs.map(|(back, own)| (back - squares[place] * own).powi(2));
            squared.sum::<f64>().sqrt()
        };
        let worst = (0..rank).map(residual).fold(0.0, f64::max);
        if worst <= TOLERANCE * squares[0] || tried == MOST_POLYNOMIALS {
            let values: Vec<f64> = squares.iter().map(|square| square.sqrt()).collect();
            let mut left = image;
            for (column, value) in left.data.chunks_exact_mut(left.rows).zip(&values) {
                let scale = if *value > 0.0 { 1.0 / value } else { 0.0 };
                column.iter_mut().for_each(|element| *element *= scale);
            }
            return (left, values, right);
        }
        tried += 1;
        right = raised(weight, right, back, &squares);
        right.orthonormalize();
    }
}

/// `T(Wᵀ W) V` for a Chebyshev polynomial that stays within ±1 up to the last of the `squares` and grows fast beyond.
/// `back` is `Wᵀ W V`.
fn raised(weight: &Columns, right: Columns, back: Columns, squares: &[f64]) -> Columns {
    let last = squares[squares.len() - 1].max(f64::EPSILON * squares[0]);
    let middle = last / 2.0;
    let first = ((squares[0] - middle) / middle).max(1.0);
    let degree = ((2.0 * MOST_RAISED).ln() / first.acosh().max(f64::EPSILON)) as usize;
    let degree = degree.clamp(1, HIGHEST_DEGREE);
    // T(n + 1) = 2 x T(n) - T(n - 1), where x is `Wᵀ W` with its lower part mapped to -1 .. 1.
    let next = |gram: Columns, own: &Columns, before: Option<&Columns>| {
        let factor = if before.is_some() { 2.0 } else { 1.0 };
        let mut next = gram;
        for (place, value) in next.data.iter_mut().enumerate() {
            let mapped = (*value - middle * own.data[place]) / middle;
            *value = factor * mapped - before.map_or(0.0, |before| before.data[place]);
        }
        next
    };
    let mut now = next(back, &right, None);
    let mut before = right;
    for _ in 1..degree {
        let gram = weight.times(&weight.times(&now, false), true);
        let coming = next(gram, &now, Some(&before));
        before = std::mem::replace(&mut now, coming);
    }
    now
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A random matrix `(rows, columns)` whose singular values fall by `factor` from one to the next.
    fn matrix(rows: usize, columns: usize, factor: f64) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut side = |rows: usize, count: usize| {
            let data = (0..rows * count).map(|_| StandardNormal.sample(&mut random));
            let mut side = Columns {
                data: data.collect(),
                rows,
                count,
            };
            side.orthonormalize();
            side
        };
        let least = rows.min(columns);
        let (mut left, right) = (side(rows, least), side(columns, least));
        for (number, column) in left.data.chunks_exact_mut(rows).enumerate() {
            let value = factor.powi(number as i32);
            column.iter_mut().for_each(|element| *element *= value);
        }
        let product = left.times(&right.transposed(), false).transposed();
        product.data.iter().map(|value| *value as f32).collect()
    }

    /// The decomposition of a matrix with known singular values finds them, with orthonormal vectors.
    #[test]
    fn what_a_matrix_is_made_of_is_found() {
        for (rows, columns, factor) in [
            (12, 7, 0.8),
            (7, 12, 0.8),
            (200, 150, 0.99),
            (150, 200, 0.9),
            (120, 120, 0.5),
        ] {
            let rank = 5;
            let svd = Svd::of(&matrix(rows, columns, factor), columns, rank).unwrap();
            for (number, value) in svd.values.iter().take(rank).enumerate() {
                let exact = factor.powi(number as i32);
                assert!(
                    (value - exact).abs() < 1e-6,
                    "{rows}x{columns}: {value} for {exact}"
                );
            }
            for side in [&svd.left, &svd.right] {
                for (i, j) in (0..rank).flat_map(|i| (0..rank).map(move |j| (i, j))) {
                    let exact = if i == j { 1.0 } else { 0.0 };
                    assert!((dot(side.column(i), side.column(j)) - exact).abs() < 1e-9);
                }
            }
        }
    }

    #[test]
    fn low_ranks_zeros_and_equal_values_end() {
        let zeros = Svd::of(&vec![0.0; 900], 30, 4).unwrap();
        assert!(zeros.rows(1.0).iter().all(|value| *value == 0.0));
        let unit: Vec<f32> = (0..3600)
            .map(|i| f32::from(u8::from(i / 60 == i % 60)))
            .collect();
        assert!((Svd::of(&unit, 60, 4).unwrap().values[3] - 1.0).abs() < 1e-9);
        assert!(Svd::of(&[f32::NAN; 4], 2, 1).is_none());
    }
}
