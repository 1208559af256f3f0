//! The inner part of products: some rows of one matrix by a panel of 32 columns of the other.

#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

/// Columns of a panel: two registers of AVX-512, four of AVX2.
pub(super) const PANEL: usize = 32;

/// What becomes of the elements of a result.
#[derive(Clone, Copy)]
pub(super) enum Mode {
    /// `out ← out + a b`
    Add,
    /// `out ← a b`
    Set,
    /// `out ← a b + bias`
    Bias(*const f32),
}

impl Mode {
    /// Of a result of its own with `columns` columns.
    pub(super) fn result(bias: Option<&[f32]>, columns: usize) -> Self {
        match bias {
            Some(bias) => {
                assert_eq!(bias.len(), columns, "product: bias and columns disagree");
                Mode::Bias(bias.as_ptr())
            }
            None => Mode::Set,
        }
    }

    /// The same from column `first` on.
    ///
    /// # Safety
    /// A bias has at least so many elements.
    pub(super) unsafe fn at_column(self, first: usize) -> Self {
        match self {
            Mode::Bias(bias) => Mode::Bias(bias.add(first)),
            other => other,
        }
    }
}

/// `panel[p * 32 + j] ← data[j * stride + p]` for `p` below `depth` and `j` below `count`; zero for the
/// other `j` of a panel.
pub(super) fn transpose(
    data: &[f32],
    stride: usize,
    depth: usize,
    count: usize,
    panel: &mut [f32],
) {
    assert!(count <= PANEL && panel.len() >= depth * PANEL);
    assert!(count == 0 || (count - 1) * stride + depth <= data.len());
    let mut whole = (0, 0);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        whole = (depth / 16 * 16, count / 16 * 16);
        for p in (0..whole.0).step_by(16) {
            for j in (0..whole.1).step_by(16) {
                // SAFETY: the processor has AVX-512, and both blocks of 16 by 16 lie in their slices, by
                // the assertions above.
                unsafe {
                    x86::transpose_16(
                        data.as_ptr().add(j * stride + p),
                        stride,
                        panel.as_mut_ptr().add(p * PANEL + j),
                        PANEL,
                    );
                }
            }
        }
    }
    for (p, row) in panel.chunks_exact_mut(PANEL).enumerate().take(depth) {
        let done = if p < whole.0 { whole.1 } else { 0 };
        for (j, place) in row.iter_mut().enumerate().skip(done) {
            *place = if j < count { data[j * stride + p] } else { 0.0 };
        }
    }
}

/// Rows of a tile at most.
pub(super) const MOST_ROWS: usize = 12;

/// What one call of a kernel works on.
pub(super) struct Tile {
    pub(super) depth: usize,
    pub(super) a: *const f32,
    pub(super) a_strides: (usize, usize),
    pub(super) panel: *const f32,
    /// What is first to be written to the panel, if it is not there yet.
    pub(super) difference: Option<Difference>,
    /// What will soon be needed and is to be brought into the second-level cache meanwhile:
    /// [`coming_elements`] from here on. It is never read.
    pub(super) coming: *const f32,
    /// Where the sums go.
    pub(super) target: Target,
    /// Where the same sums go as well.
    pub(super) second: Option<Target>,
}

/// Steps of a product for each line of 16 elements of what is coming that is asked for.
const STEPS_PER_LINE: usize = 4;

/// How many elements a kernel asks for beside a product of `depth`.
pub(super) fn coming_elements(depth: usize) -> usize {
    depth.div_ceil(STEPS_PER_LINE) * 16
}

/// Asks for `count` elements, which are to be in the second-level cache soon. They are never read.
pub(super) fn ask_for(from: *const f32, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..count).step_by(16) {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T1};
        // SAFETY: all of x86-64 has the instruction, and it touches nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(line).cast()) };
    }
}

/// Two panels, the second to be subtracted from the first.
#[derive(Clone, Copy)]
pub(super) struct Difference {
    pub(super) minuend: *const f32,
    pub(super) subtrahend: *const f32,
}

/// The part of a result that a tile's sums are written to.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub(super) out: *mut f32,
    /// Elements from one row to the next.
    pub(super) stride: usize,
    /// Columns, at most those of a panel.
    pub(super) width: usize,
    pub(super) mode: Mode,
    /// Rows of 32 elements that are added as well.
    pub(super) addend: Option<*const f32>,
}

pub(super) type Kernel = unsafe fn(&Tile, usize);

/// The kernel for this processor, if it has one.
pub(super) fn kernel() -> Option<Kernel> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
            return Some(x86::rows_avx512);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Some(x86::rows_avx2);
        }
    }
    None
}

impl Tile {
    /// The tile of the next rows; the panel is there by then.
    pub(super) fn below(self) -> Self {
        Tile {
            a: self.a.wrapping_add(MOST_ROWS * self.a_strides.0),
            difference: None,
            target: self.target.at_row(MOST_ROWS),
            second: self.second.map(|second| second.at_row(MOST_ROWS)),
            ..self
        }
    }

    fn targets(&self) -> impl Iterator<Item = &Target> {
        std::iter::once(&self.target).chain(&self.second)
    }

    fn widest(&self) -> usize {
        self.targets()
            .fold(0, |most, target| most.max(target.width))
    }
}

impl Target {
    /// The same from row `first` on.
    pub(super) fn at_row(self, first: usize) -> Self {
        Target {
            out: self.out.wrapping_add(first * self.stride),
            addend: self.addend.map(|addend| addend.wrapping_add(first * PANEL)),
            ..self
        }
    }

    /// Writes sums to row `i`, from column `first` on.
    ///
    /// # Safety
    /// The target has that row.
    unsafe fn write(&self, i: usize, first: usize, sums: &[f32]) {
        let place = self.out.add(i * self.stride + first);
        let width = self.width.saturating_sub(first).min(sums.len());
        for (j, sum) in sums[..width].iter().enumerate() {
            let sum = match self.addend {
                Some(addend) => *addend.add(i * PANEL + first + j) + sum,
                None => *sum,
            };
            let value = match self.mode {
                Mode::Add => *place.add(j) + sum,
                Mode::Set => sum,
                Mode::Bias(bias) => *bias.add(first + j) + sum,
            };
            place.add(j).write(value);
        }
    }
}
