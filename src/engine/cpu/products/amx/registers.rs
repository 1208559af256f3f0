//! Tile registers (Intel's AMX) hold sums of 16 rows by 16 columns. One instruction adds the products of 64 bytes to
//! each sum, as integers or as bfloat16. Rust has no stable intrinsics for these instructions, so they are written in
//! assembly. The compiler never uses tile registers, so their content survives from one block of assembly to the next.

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::super::tile::{Target, PANEL};
use super::Tiled;

/// Rows of a tile.
pub(super) const ROWS: usize = 16;

/// Bytes of a row of a tile.
pub(super) const ROW: usize = 64;

/// The content of a tile register in memory.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct TileRegister(pub(super) [[u8; ROW]; ROWS]);

impl TileRegister {
    pub(super) const ZEROS: TileRegister = TileRegister([[0; ROW]; ROWS]);

    /// # Safety
    /// The processor has AVX-512.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn set_row(&mut self, row: usize, bytes: __m512i) {
        _mm512_store_si512(self.0[row].as_mut_ptr().cast(), bytes);
    }

    /// A pointer to a row.
    pub(super) fn line(&self, row: usize) -> *const f32 {
        self.0[row].as_ptr().cast()
    }

    /// # Safety
    /// The processor has AVX-512.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn row(&self, row: usize) -> __m512i {
        _mm512_load_si512(self.0[row].as_ptr().cast())
    }
}

/// How the elements of two matrices are written into tiles and multiplied there. A tile of the left matrix has 16 of
/// its rows; a tile of the right matrix has 16 columns of a panel.
pub(super) trait Encoding: Sync {
    /// The number of elements of a row or a column that a tile holds.
    const DEPTH: usize;

    /// The number of tiles that `DEPTH` elements of 16 rows take.
    const PIECES: usize;

    /// The number of rows, and of columns, that are multiplied at once: one tile's or two tiles'.
    const SIDE: usize;

    /// The largest depth over which a row has a single unit; a multiple of `DEPTH`.
    const MOST_DEPTH: usize;

    /// Writes a row of the left matrix into row `row` of its tiles, `PIECES` tiles for each `DEPTH` elements. Each
    /// element is multiplied by its scale first, if there are scales. Returns the unit in which the row is written.
    ///
    /// # Safety
    /// The registers are available. Every processor that has them has AVX-512 as well.
    unsafe fn write_row(
        elements: &[f32],
        scales: Option<&[f32]>,
        tiles: &mut [TileRegister],
        row: usize,
    ) -> f32;

    /// The units in which the columns of a panel of the right matrix, `(depth, 32)`, are written.
    ///
    /// # Safety
    /// As for [`Encoding::write_row`].
    unsafe fn units(panel: &[f32]) -> [f32; PANEL];

    /// Writes columns `first` to `first + SIDE` of a block of a panel. The block has at most `DEPTH` rows; rows beyond
    /// its end are zeros.
    ///
    /// # Safety
    /// As for [`Encoding::write_row`].
    unsafe fn write_columns(
        block: &[f32],
        units: &[f32; PANEL],
        first: usize,
        tiles: &mut [TileRegister],
    );

    /// The number of shares in which the tiles of a block of a transpose are made.
    const SHARES: usize;

    /// Makes one share of the tiles of a block of the transpose of `tiled`: `DEPTH` of the depth from `depth` on, and
    /// `SIDE` columns from `column` on. Prefetches that share of the next panel's block.
    ///
    /// # Safety
    /// As for [`Encoding::write_row`].
    unsafe fn turn(
        tiled: &Tiled,
        column: usize,
        depth: usize,
        share: usize,
        to: &mut [TileRegister],
    );

    /// Writes the products of up to `SIDE` rows and columns to `target`, in its mode. `beside` is called once for each
    /// block of the depth, while the registers are busy.
    ///
    /// # Safety
    /// Each left side has the tiles of 16 rows, `PIECES` for each block; together they have a row for each row of the
    /// target. The right side has tiles and units for the target's columns.
    unsafe fn multiply(
        registers: &mut Registers,
        target: &Target,
        rows: usize,
        left: [Side; 2],
        right: Side,
        beside: impl FnMut(usize),
    );
}

/// A quarter of the bytes of each row of a tile, in 4 registers: register `j` has them of rows `j`, `4 + j`, `8 + j` and
/// `12 + j`.
///
/// # Safety
/// The processor has AVX-512.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn quarters(tile: &TileRegister, quarter: usize) -> [__m512i; 4] {
    let of = |row: usize| _mm_load_si128(tile.0[row][16 * quarter..].as_ptr().cast());
    std::array::from_fn(|j| {
        let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(of(j)), of(4 + j));
        let high = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(of(8 + j)), of(12 + j));
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
    })
}

/// The 16 elements of a row from `first` on, times their scales. Elements beyond the row's end are zeros.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn load(elements: &[f32], scales: Option<&[f32]>, first: usize) -> __m512 {
    let count = elements.len().saturating_sub(first).min(16);
    let mask = ((1u32 << count) - 1) as __mmask16;
    let read = |row: &[f32]| _mm512_maskz_loadu_ps(mask, row.as_ptr().wrapping_add(first));
    match scales {
        None => read(elements),
        Some(scales) => _mm512_mul_ps(read(elements), read(scales)),
    }
}

/// Some rows of the left matrix, or columns of the right one, in tiles, with the units in which they are written.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    pub(super) tiles: &'a [TileRegister],
    pub(super) units: &'a [f32],
}

/// Whether this processor has tile registers and the system lets this process use them.
pub(in super::super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && has_tiles()
            && is_permitted()
    })
}

/// Whether leaf 7 of `cpuid` reports AMX-BF16, AMX-TILE and AMX-INT8.
fn has_tiles() -> bool {
    const ALL: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    #[allow(unused_unsafe)] // safe from Rust 1.94 on
    // SAFETY: every processor with AVX-512 has both leaves.
    let leaf = unsafe { __cpuid_count(7, 0) };
    leaf.edx & ALL == ALL
}

/// Asks Linux for permission to use the registers, once for all threads (`ARCH_REQ_XCOMP_PERM`). Linux needs room to
/// save their contents.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const REQUEST: libc::c_ulong = 0x1023;
    const TILE_DATA: libc::c_ulong = 18;
    // SAFETY: the call reads and writes no memory of ours. A kernel that does not know it returns an error.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_of_a_row: [u16; 16],
    rows: [u8; 16],
}

/// The number of registers that hold sums: registers 0 to 3.
pub(super) const SUMS: usize = 4;

/// Whether [`Registers`] can be used: the processor's or, in tests, a model of them, for which the processor still
/// needs AVX-512.
pub(super) fn can_run() -> bool {
    is_available() || cfg!(test) && is_x86_feature_detected!("avx512bw")
}

/// This thread's tile registers, while they are in use. Each has 16 rows of 64 bytes.
pub(super) enum Registers {
    /// The processor's.
    Processor,
    #[cfg(test)]
    Model(Box<super::model::Model>),
}

impl Registers {
    /// # Safety
    /// The registers are available, and nothing else uses them on this thread.
    pub(super) unsafe fn new() -> Self {
        const WHOLE: Configuration = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            bytes_of_a_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
            rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
        };
        #[cfg(test)]
        if !is_available() {
            return Registers::Model(Box::default());
        }
        asm!("ldtilecfg [{}]", in(reg) &WHOLE, options(nostack, preserves_flags, readonly));
        Registers::Processor
    }

    /// Sets the sums to zero.
    #[inline(always)]
    pub(super) unsafe fn clear(&mut self) {
        match self {
            Registers::Processor => asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nostack, preserves_flags, nomem),
            ),
            #[cfg(test)]
            Registers::Model(model) => model.clear(),
        }
    }

    /// Adds the products of a block in three digits, whose tiles begin with the most significant digit. Products of two
    /// first digits go to sum 0, those for the next powers of the base to sums 1, 2 and 3. The product of two last
    /// digits is left out.
    #[inline(always)]
    pub(super) unsafe fn add_split(
        &mut self,
        left: *const TileRegister,
        right: *const TileRegister,
    ) {
        match self {
            // Registers 4 and 5 hold rows, 6 and 7 hold columns.
            Registers::Processor => asm!(
                "tileloadd tmm4, [{left} + {stride} + 1024]",
                "tileloadd tmm6, [{right} + {stride} + 1024]",
                "tdpbssd tmm2, tmm4, tmm6",
                "tileloadd tmm5, [{left} + {stride}]",
                "tdpbssd tmm1, tmm5, tmm6",
                "tileloadd tmm7, [{right} + {stride} + 2048]",
                "tdpbssd tmm3, tmm4, tmm7",
                "tdpbssd tmm2, tmm5, tmm7",
                "tileloadd tmm7, [{right} + {stride}]",
                "tdpbssd tmm1, tmm4, tmm7",
                "tileloadd tmm4, [{left} + {stride} + 2048]",
                "tdpbssd tmm3, tmm4, tmm6",
                "tdpbssd tmm2, tmm4, tmm7",
                "tdpbssd tmm0, tmm5, tmm7",
                left = in(reg) left,
                right = in(reg) right,
                stride = in(reg) ROW,
                options(nostack, preserves_flags, readonly),
            ),
            #[cfg(test)]
            Registers::Model(model) => model.add_split(left, right),
        }
    }

    /// Stores the sums, one tile after the other.
    #[inline(always)]
    pub(super) unsafe fn store(&self, sums: *mut [TileRegister; SUMS]) {
        match self {
            Registers::Processor => asm!(
                "tilestored [{to} + {stride}], tmm0",
                "tilestored [{to} + {stride} + 1024], tmm1",
                "tilestored [{to} + {stride} + 2048], tmm2",
                "tilestored [{to} + {stride} + 3072], tmm3",
                to = in(reg) sums, stride = in(reg) ROW,
                options(nostack, preserves_flags),
            ),
            #[cfg(test)]
            Registers::Model(model) => sums.write(model.sums()),
        }
    }

    /// Loads 16 rows of 32 sums in f32, `stride` bytes apart: from `above` into registers 0 and 1, from `below` into 2
    /// and 3.
    #[inline(always)]
    pub(super) unsafe fn load_sums(
        &mut self,
        above: *const f32,
        below: Option<*const f32>,
        stride: usize,
    ) {
        match self {
            Registers::Processor => {
                asm!(
                    "tileloadd tmm0, [{0} + {1}]", "tileloadd tmm1, [{0} + {1} + 64]",
                    in(reg) above, in(reg) stride, options(nostack, preserves_flags, readonly),
                );
                if let Some(below) = below {
                    asm!(
                        "tileloadd tmm2, [{0} + {1}]", "tileloadd tmm3, [{0} + {1} + 64]",
                        in(reg) below, in(reg) stride, options(nostack, preserves_flags, readonly),
                    );
                }
            }
            #[cfg(test)]
            Registers::Model(model) => model.load_sums(above, below, stride),
        }
    }

    /// Adds the products of a block of bfloat16 elements: 16 rows in `above` and 16 in `below`, by two tiles of
    /// columns.
    #[inline(always)]
    pub(super) unsafe fn add_rounded(
        &mut self,
        above: *const TileRegister,
        below: *const TileRegister,
        right: *const TileRegister,
    ) {
        match self {
            // Registers 4 and 5 hold rows, 6 and 7 hold columns.
            Registers::Processor => asm!(
                "tileloadd tmm6, [{right} + {stride}]",
                "tileloadd tmm7, [{right} + {stride} + 1024]",
                "tileloadd tmm4, [{above} + {stride}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{below} + {stride}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                above = in(reg) above, below = in(reg) below,
                right = in(reg) right, stride = in(reg) ROW,
                options(nostack, preserves_flags, readonly),
            ),
            #[cfg(test)]
            Registers::Model(model) => model.add_rounded(above, below, right),
        }
    }

    /// Stores the sums as [`Registers::load_sums`] loads them.
    #[inline(always)]
    pub(super) unsafe fn store_sums(
        &self,
        above: *mut f32,
        below: Option<*mut f32>,
        stride: usize,
    ) {
        match self {
            Registers::Processor => {
                asm!(
                    "tilestored [{0} + {1}], tmm0", "tilestored [{0} + {1} + 64], tmm1",
                    in(reg) above, in(reg) stride, options(nostack, preserves_flags),
                );
                if let Some(below) = below {
                    asm!(
                        "tilestored [{0} + {1}], tmm2", "tilestored [{0} + {1} + 64], tmm3",
                        in(reg) below, in(reg) stride, options(nostack, preserves_flags),
                    );
                }
            }
            #[cfg(test)]
            Registers::Model(model) => model.store_sums(above, below, stride),
        }
    }
}

impl Drop for Registers {
    /// Releases the registers, so that the system need not save their contents any longer.
    fn drop(&mut self) {
        match self {
            // SAFETY: the caller of `new` guaranteed that this thread has the registers.
            Registers::Processor => unsafe {
                asm!("tilerelease", options(nostack, preserves_flags, nomem));
            },
            #[cfg(test)]
            Registers::Model(_) => {}
        }
    }
}
