//! The seven products of Strassen's scheme with AVX-512 and with AVX2: Winograd's form by the names of
//! Higham, eq. 23.6, but for `T4`, whose sign is the other, so that its product is added.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::{array, ptr};

use super::register::Register;
use super::x86::{
    ask_for_rows, by_rows, every_third_row, plus, write, zeros, Coming, Product, Sums,
    MOST_ROWS_AVX2,
};
use super::{Mode, Seven, Target, GAP, LEAST_ROWS_OF_SEVEN, MOST_ROWS, PANEL};

/// All seven products for one tile after the other.
#[target_feature(enable = "avx512f,avx512vl")]
pub(super) unsafe fn seven_avx512(seven: &Seven, rows: usize) {
    #[target_feature(enable = "avx512f,avx512vl")]
    unsafe fn kernel<const ROWS: usize, const MAKES: bool>(seven: &Seven, coming: PlacesAskedFor) {
        multiply_together::<__m512, ROWS, MAKES>(seven, coming);
    }
    type Rows = [unsafe fn(&Seven, PlacesAskedFor); MOST_ROWS];
    const PLAIN: Rows = by_rows!(kernel, false: 1 2 3 4 5 6 7 8 9 10 11 12);
    const MAKING: Rows = by_rows!(kernel, true: 1 2 3 4 5 6 7 8 9 10 11 12);
    let mut places = seven.places();
    for row in (0..rows).step_by(MOST_ROWS) {
        let kernels = if row == 0 { MAKING } else { PLAIN };
        let coming = array::from_fn(|_| places.next().unwrap_or(seven.coming[0].first));
        kernels[(rows - row).min(MOST_ROWS) - 1](&seven.at(row, 0), coming);
    }
}

/// What is asked for beside each of seven products.
type PlacesAskedFor = [*const f32; 7];

/// The products for `ROWS` rows of each half. What products have in common stays in the registers from one to
/// the next; the first tile makes `T1 … T4`.
#[inline(always)]
unsafe fn multiply_together<R: Register, const ROWS: usize, const MAKES: bool>(
    seven: &Seven,
    coming: PlacesAskedFor,
) {
    let [a11, a12, a22, s1, s2, s3, s4] = seven.left;
    let [b11, b12, b21, b22] = seven.right;
    let [t1, t2, t3, t4] = [0, 1, 2, 3].map(|sum| {
        let place = seven.made.wrapping_add(sum * (seven.depth * PANEL + GAP));
        place.cast_const()
    });
    let [upper_left, upper_right, lower_left, lower_right] = &seven.targets;
    for target in &seven.targets {
        ask_for_rows::<_MM_HINT_T1>(target, 0..ROWS, PANEL);
    }
    let product = |number: usize, (a, stride), panel, made_of: Option<_>, written_next| Product {
        depth: seven.depth,
        a: every_third_row(a, stride),
        strides: (stride, 1),
        panel,
        panel_columns: PANEL,
        made_of: match made_of {
            Some((minuend, subtrahend)) if MAKES => [Some(minuend), Some(subtrahend), None, None],
            _ => [None; 4],
        },
        coming: Coming {
            panel: Some(coming[number]),
            rows: None,
        },
        written_next,
    };
    let m5 = product(0, s1, t1, Some((b12, b11)), None).add_to(zeros::<R, ROWS, 2>());
    let m2 = product(1, a11, b11, None, None).add_to(zeros::<R, ROWS, 2>());
    let m2_m1 = product(2, s2, t2, Some((b22, t1)), None).add_to(m2);
    let m2_m1_m6 = product(3, s3, t3, Some((b22, b12)), Some(lower_right)).add_to(m2_m1);
    write(lower_right, &plus(m2_m1_m6, m5));
    let sums = product(4, a22, t4, Some((b21, t2)), Some(lower_left)).add_to(m2_m1_m6);
    write(lower_left, &sums);
    let sums = product(5, s4, b22, None, Some(upper_right)).add_to(plus(m2_m1, m5));
    write(upper_right, &sums);
    let sums = product(6, a12, b21, None, Some(upper_left)).add_to(m2);
    write(upper_left, &sums);
}

/// Columns that are multiplied at once with AVX2.
const HALF: usize = 16;

/// Rows of a tile that makes its panel: that takes registers too.
const ROWS_MAKING: usize = LEAST_ROWS_OF_SEVEN;

/// Rows of which sums are kept from one product to the next.
pub(super) const MOST_ROWS_KEPT: usize = 128;

/// Of the seven products, the last beside which the next panels are asked for.
const PRODUCTS_ASKING: usize = 2;

#[repr(align(64))]
struct Kept([f32; MOST_ROWS_KEPT * HALF]);

/// One product over all rows after the other: its half panel stays in the first-level cache, which has no room
/// for those of seven. It is copied for that, 16 columns side by side, or made there.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn seven_avx2(seven: &Seven, rows: usize) {
    let mut kept = [const { MaybeUninit::<Kept>::uninit() }; 4];
    let [left_running, left_fifth, right_running, right_fifth] = kept
        .each_mut()
        .map(|kept| (&raw mut (*kept.as_mut_ptr()).0).cast::<f32>());
    let left = steps(seven, left_running, left_fifth);
    let right = steps(&seven.at(0, HALF), right_running, right_fifth);
    let mut places = seven.places();
    for number in 0..left.len() {
        // The next panels are asked for beside the last products: sooner, and the rows would displace them.
        let asks = number + PRODUCTS_ASKING >= left.len();
        let following = &left[(number + 1) % left.len()];
        left[number].multiply(rows, right[number].a, asks.then_some(&mut places));
        right[number].multiply(rows, following.a, asks.then_some(&mut places));
    }
}

/// The products in their order. `running` and `fifth` are where sums are kept: the running one, and M5, which
/// two quarters have in common.
fn steps(seven: &Seven, running: *mut f32, fifth: *mut f32) -> [Step; 7] {
    let [a11, a12, a22, s1, s2, s3, s4] = seven.left;
    let [b11, b12, b21, b22] = seven.right.map(Some);
    let [upper_left, upper_right, lower_left, lower_right] = seven.targets.map(Some);
    let [sum, m5] = [running, fifth].map(Some);
    let step = |a, made_of, adds_to, kept, (target, beside)| Step {
        depth: seven.depth,
        a,
        panel: seven.made,
        made_of,
        adds_to,
        kept,
        target,
        beside,
    };
    let nowhere = (None, None);
    let copy = |b| [b, None, None, None];
    let t1 = [b12, b11, None, None];
    let t2 = [b22, b12, b11, None];
    let t3 = [b22, b12, None, None];
    let t4 = [b21, b22, b12, b11];
    [
        step(s1, t1, None, m5, nowhere),
        step(a11, copy(b11), None, sum, nowhere),
        step(a12, copy(b21), sum, None, (upper_left, None)),
        step(s2, t2, sum, sum, nowhere),
        step(s4, copy(b22), sum, None, (upper_right, m5)),
        step(s3, t3, sum, sum, (lower_right, m5)),
        step(a22, t4, sum, None, (lower_left, None)),
    ]
}

/// One of the seven products for some rows. Sums that are kept have rows of 16 elements.
#[derive(Clone, Copy)]
struct Step {
    depth: usize,
    /// Its rows, and the elements from one to the next.
    a: (*const f32, usize),
    /// Where its half panel is made, and what of, as in [`Product`].
    panel: *mut f32,
    made_of: [Option<*const f32>; 4],
    /// Sums that the product is added to.
    adds_to: Option<*mut f32>,
    /// Where they are kept then.
    kept: Option<*mut f32>,
    /// Where they are written,
    target: Option<Target>,
    /// and what is added to them there.
    beside: Option<*mut f32>,
}

impl Step {
    /// The step for `rows` rows, at least four, tile by tile. The rows that come after them are asked for, and
    /// what else is coming, at a place beside each tile.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn multiply(
        &self,
        rows: usize,
        coming: (*const f32, usize),
        mut places: Option<&mut impl Iterator<Item = *const f32>>,
    ) {
        /// Its arguments are the first row, the rows that come and the panel.
        type Kernel = unsafe fn(&Step, usize, (*const f32, usize), *const f32);
        #[target_feature(enable = "avx2,fma")]
        unsafe fn kernel<const ROWS: usize, const ASKS: bool>(
            step: &Step,
            row: usize,
            coming: (*const f32, usize),
            panel: *const f32,
        ) {
            let coming = Coming {
                rows: Some(coming),
                panel: ASKS.then_some(panel),
            };
            step.multiply_tile::<__m256, ROWS>(row, coming, [None; 4]);
        }
        #[target_feature(enable = "avx2,fma")]
        unsafe fn making<const COUNT: usize>(
            step: &Step,
            row: usize,
            coming: (*const f32, usize),
            _: *const f32,
        ) {
            let coming = Coming {
                rows: Some(coming),
                panel: None,
            };
            let mut made_of = [None; 4];
            for (place, panel) in made_of.iter_mut().zip(step.made_of).take(COUNT) {
                // A number that is known takes no instruction.
                *place = Some(panel.unwrap_unchecked());
            }
            step.multiply_tile::<__m256, ROWS_MAKING>(row, coming, made_of);
        }
        type Rows = [Kernel; MOST_ROWS_AVX2];
        const PLAIN: Rows = by_rows!(kernel, false: 1 2 3 4 5 6);
        const ASKING: Rows = by_rows!(kernel, true: 1 2 3 4 5 6);
        const MAKING: [Kernel; 4] = by_rows!(making: 1 2 3 4);
        let (a, stride) = self.a;
        let rows_from = |row: usize| match row < rows {
            true => (a.wrapping_add(row * stride), stride),
            false => coming,
        };
        let terms = self.made_of.iter().flatten().count();
        MAKING[terms - 1](self, 0, rows_from(ROWS_MAKING), ptr::null());
        let mut row = ROWS_MAKING;
        while row < rows {
            // The last two tiles alike: with two rows the processor would wait for each sum.
            let left = rows - row;
            let count = match left.div_ceil(MOST_ROWS_AVX2) {
                2 => left.div_ceil(2),
                _ => left.min(MOST_ROWS_AVX2),
            };
            match places.as_mut().and_then(|places| places.next()) {
                Some(place) => ASKING[count - 1](self, row, rows_from(row + count), place),
                None => PLAIN[count - 1](self, row, rows_from(row + count), ptr::null()),
            }
            row += count;
        }
    }

    /// `ROWS` rows from `row` on.
    #[inline(always)]
    unsafe fn multiply_tile<R: Register, const ROWS: usize>(
        &self,
        row: usize,
        coming: Coming,
        made_of: [Option<*const f32>; 4],
    ) {
        let target = self.target.map(|target| target.at(row, 0));
        if let Some(target) = &target {
            ask_for_rows::<_MM_HINT_T1>(target, 0..ROWS, HALF);
        }
        let (a, stride) = self.a;
        let product = Product {
            depth: self.depth,
            a: every_third_row(a.wrapping_add(row * stride), stride),
            strides: (stride, 1),
            panel: self.panel,
            panel_columns: HALF,
            made_of,
            coming,
            written_next: target.as_ref(),
        };
        let kept = |sums: *mut f32| sums.wrapping_add(row * HALF);
        let start = match self.adds_to {
            Some(sums) => load::<R, ROWS>(kept(sums)),
            None => zeros(),
        };
        let sums = product.add_to(start);
        if let Some(out) = self.kept {
            let target = Target {
                out: kept(out),
                stride: HALF,
                width: HALF,
                mode: Mode::Set,
            };
            write(&target, &sums);
        }
        if let Some(target) = &target {
            let sums = match self.beside {
                Some(beside) => plus(sums, load(kept(beside))),
                None => sums,
            };
            write(target, &sums);
        }
    }
}

/// Sums that were kept.
#[inline(always)]
unsafe fn load<R: Register, const ROWS: usize>(sums: *const f32) -> Sums<R, ROWS, 2> {
    let mut loaded = zeros::<R, ROWS, 2>();
    for (row, sums_of_row) in loaded.iter_mut().enumerate() {
        for (half, sum) in sums_of_row.iter_mut().enumerate() {
            *sum = R::load(sums.add(row * HALF + half * R::LANES));
        }
    }
    loaded
}
