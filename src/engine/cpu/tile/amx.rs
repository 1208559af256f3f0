//! Tile registers for bfloat16 (Intel's AMX): sums in f32 of 16 rows by 16 columns, to each of which one
//! instruction adds 32 products. Rust has no stable names for these instructions, so they are written out. The
//! compiler never uses tile registers: what is in them stays from one block of instructions to the next.

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::{Mode, Target, PANEL};

/// Depth of the products that one instruction adds up.
pub(in super::super) const DEPTH: usize = 32;

/// Rows of a tile.
pub(in super::super) const ROWS: usize = 16;

/// What a tile register is loaded from: 16 rows of 16 pairs.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in super::super) struct Tile([u16; ROWS * DEPTH]);

impl Tile {
    pub(in super::super) const ZEROS: Tile = Tile([0; ROWS * DEPTH]);
}

/// Bytes from one row of a [`Tile`] to the next.
const STRIDE: usize = 2 * DEPTH;

/// Whether this processor has such registers, and the system lets this process use them.
pub(in super::super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && has_tiles()
            && is_permitted()
    })
}

/// By leaf 7 of `cpuid`: AMX-BF16 and AMX-TILE.
fn has_tiles() -> bool {
    const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
    #[allow(unused_unsafe)] // safe from Rust 1.94 on
    // SAFETY: every processor with AVX-512 has both leaves.
    let leaf = unsafe { __cpuid_count(7, 0) };
    leaf.edx & BF16_AND_TILES == BF16_AND_TILES
}

/// Asks Linux for room for the registers' contents, once for all threads (`ARCH_REQ_XCOMP_PERM`).
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const REQUEST: libc::c_ulong = 0x1023;
    const TILE_DATA: libc::c_ulong = 18;
    // SAFETY: the call reads and writes no memory of ours; a kernel that does not know it says so.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_of_a_row: [u16; 16],
    rows: [u8; 16],
}

/// This thread's tile registers, while they are in use: each has 16 rows of 64 bytes.
pub(in super::super) struct Registers(());

impl Registers {
    /// # Safety
    /// They are available, and nobody else has them on this thread.
    pub(in super::super) unsafe fn new() -> Self {
        const WHOLE: Configuration = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            bytes_of_a_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
            rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
        };
        asm!("ldtilecfg [{}]", in(reg) &WHOLE, options(nostack, preserves_flags, readonly));
        Registers(())
    }

    /// `target ← …` the products of up to 32 rows, one or two tiles of them, by a panel of 32 columns: what
    /// `left` and `right` were split from into one piece or three, see [`split_row`] and [`split_pair_of_rows`].
    /// `beside` is called once for each block of the depth, while the registers are at work.
    ///
    /// # Safety
    /// Each of `left` has as many tiles for each block as there are pieces, `right` twice as many; the target has
    /// `rows` rows.
    #[inline(always)]
    pub(in super::super) unsafe fn multiply<const PIECES: usize>(
        &mut self,
        target: &Target,
        rows: usize,
        left: [&[Tile]; 2],
        right: &[Tile],
        beside: impl FnMut(usize),
    ) {
        if rows.is_multiple_of(ROWS) && target.width == PANEL {
            return self.multiply_whole::<PIECES>(target, rows, left, right, beside);
        }
        // What is not whole goes through a place that is.
        let mut place = [[0.0f32; PANEL]; 2 * ROWS];
        let width = target.width;
        for (row, sums) in place.iter_mut().enumerate().take(rows) {
            let from = match target.mode {
                Mode::Set => continue,
                Mode::Add => target.out.add(row * target.stride).cast_const(),
                Mode::Bias(bias) => bias,
            };
            std::ptr::copy_nonoverlapping(from, sums.as_mut_ptr(), width);
        }
        let whole = Target {
            out: place.as_mut_ptr().cast(),
            stride: PANEL,
            width: PANEL,
            mode: Mode::Add,
        };
        self.multiply_whole::<PIECES>(&whole, rows.next_multiple_of(ROWS), left, right, beside);
        for (row, sums) in place.iter().enumerate().take(rows) {
            let to = target.out.add(row * target.stride);
            std::ptr::copy_nonoverlapping(sums.as_ptr(), to, width);
        }
    }

    /// The same for 16 or 32 rows of 32 columns. The sums are in registers 0 and 1, below them in 2 and 3; 4 and
    /// 5 have rows, 6 and 7 columns.
    #[inline(always)]
    unsafe fn multiply_whole<const PIECES: usize>(
        &mut self,
        target: &Target,
        rows: usize,
        [above, below]: [&[Tile]; 2],
        right: &[Tile],
        mut beside: impl FnMut(usize),
    ) {
        let has_below = rows > ROWS;
        let stride = 4 * target.stride;
        let out_below = target.out.wrapping_add(ROWS * target.stride);
        let base = match target.mode {
            Mode::Set => None,
            Mode::Add => Some((target.out.cast_const(), out_below.cast_const(), stride)),
            // One row again and again.
            Mode::Bias(bias) => Some((bias, bias, 0)),
        };
        match base {
            None => asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nostack, preserves_flags, nomem),
            ),
            Some((above, below, stride)) => {
                asm!(
                    "tileloadd tmm0, [{0} + {1}]", "tileloadd tmm1, [{0} + {1} + 64]",
                    in(reg) above, in(reg) stride, options(nostack, preserves_flags, readonly),
                );
                if has_below {
                    asm!(
                        "tileloadd tmm2, [{0} + {1}]", "tileloadd tmm3, [{0} + {1} + 64]",
                        in(reg) below, in(reg) stride, options(nostack, preserves_flags, readonly),
                    );
                }
            }
        }
        let blocks = above.len() / PIECES;
        debug_assert!(right.len() >= 2 * PIECES * blocks);
        debug_assert!(!has_below || below.len() >= PIECES * blocks);
        for block in 0..blocks {
            let above = above.as_ptr().wrapping_add(PIECES * block);
            let right = right.as_ptr().wrapping_add(2 * PIECES * block);
            let below = below.as_ptr().wrapping_add(PIECES * block);
            match (PIECES, has_below) {
                (1, _) => rounded(above, if has_below { below } else { above }, right),
                (_, true) => two_tiles(above, below, right),
                (_, false) => one_tile(above, right),
            }
            beside(block);
        }
        asm!(
            "tilestored [{0} + {1}], tmm0", "tilestored [{0} + {1} + 64], tmm1",
            in(reg) target.out, in(reg) stride, options(nostack, preserves_flags),
        );
        if has_below {
            asm!(
                "tilestored [{0} + {1}], tmm2", "tilestored [{0} + {1} + 64], tmm3",
                in(reg) out_below, in(reg) stride, options(nostack, preserves_flags),
            );
        }
    }
}

impl Drop for Registers {
    /// The system need not keep their contents any longer.
    fn drop(&mut self) {
        // SAFETY: who made this had them.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) }
    }
}

/// Loads a piece of the rows above, and adds its products; then of those below. The registers of one pair of
/// products are loaded while the other's are multiplied.
macro_rules! by_rows {
    ($piece:literal) => {
        concat!(
            "tileloadd tmm4, [{above} + {stride} + 1024 * ",
            $piece,
            "]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm1, tmm4, tmm7\n",
            "tileloadd tmm5, [{below} + {stride} + 1024 * ",
            $piece,
            "]\n",
            "tdpbf16ps tmm2, tmm5, tmm6\ntdpbf16ps tmm3, tmm5, tmm7",
        )
    };
}

/// The same with the left columns and the right.
macro_rules! by_columns {
    ($piece:literal) => {
        concat!(
            "tileloadd tmm6, [{right} + {stride} + 2048 * ",
            $piece,
            "]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm2, tmm5, tmm6\n",
            "tileloadd tmm7, [{right} + {stride} + 2048 * ",
            $piece,
            " + 1024]\n",
            "tdpbf16ps tmm1, tmm4, tmm7\ntdpbf16ps tmm3, tmm5, tmm7",
        )
    };
}

/// Loads a piece of the columns, left and right.
macro_rules! load_columns {
    ($piece:literal) => {
        concat!(
            "tileloadd tmm6, [{right} + {stride} + 2048 * ",
            $piece,
            "]\n",
            "tileloadd tmm7, [{right} + {stride} + 2048 * ",
            $piece,
            " + 1024]",
        )
    };
}

/// The products of elements that are rounded to one piece.
#[inline(always)]
unsafe fn rounded(above: *const Tile, below: *const Tile, right: *const Tile) {
    asm!(
        load_columns!(0), by_rows!(0),
        above = in(reg) above, below = in(reg) below, right = in(reg) right, stride = in(reg) STRIDE,
        options(nostack, preserves_flags, readonly),
    );
}

/// Six of the nine products of pieces, in an order that loads few of them twice.
#[inline(always)]
unsafe fn two_tiles(above: *const Tile, below: *const Tile, right: *const Tile) {
    asm!(
        load_columns!(2), by_rows!(0), by_columns!(1), by_rows!(1), by_columns!(0), by_rows!(2), by_rows!(0),
        above = in(reg) above, below = in(reg) below, right = in(reg) right, stride = in(reg) STRIDE,
        options(nostack, preserves_flags, readonly),
    );
}

/// The same for the rows above alone.
#[inline(always)]
unsafe fn one_tile(above: *const Tile, right: *const Tile) {
    /// Registers 4 and 5 have two pieces of the rows.
    macro_rules! add_products {
        ($rows:literal) => {
            concat!(
                "tdpbf16ps tmm0, ",
                $rows,
                ", tmm6\ntdpbf16ps tmm1, ",
                $rows,
                ", tmm7"
            )
        };
    }
    asm!(
        "tileloadd tmm4, [{above} + {stride}]",
        load_columns!(2), add_products!("tmm4"),
        "tileloadd tmm5, [{above} + {stride} + 1024]",
        load_columns!(1), add_products!("tmm4"), add_products!("tmm5"),
        load_columns!(0), add_products!("tmm5"),
        "tileloadd tmm5, [{above} + {stride} + 2048]",
        add_products!("tmm5"), add_products!("tmm4"),
        above = in(reg) above, right = in(reg) right, stride = in(reg) STRIDE,
        options(nostack, preserves_flags, readonly),
    );
}

/// Splits 16 elements of `x` and of `y`, in pairs. Into three bfloat16, whose sum they are: the upper 8 bits of the
/// mantissa, the rest's 8 upper bits rounded, and what is then left, of either sign. Into one: the nearest, of two
/// the even one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn split<const PIECES: usize>(x: __m512, y: __m512) -> [__m512i; PIECES] {
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let one_half = _mm512_set1_epi32(0x8000);
    let bits = |x: __m512| _mm512_castps_si512(x);
    let without = |x: __m512, bits: __m512i| {
        _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_and_si512(bits, upper)))
    };
    let rounded = |x: __m512| _mm512_add_epi32(bits(x), one_half);
    let mut pieces = [_mm512_setzero_si512(); PIECES];
    if PIECES == 1 {
        pieces[0] = pairs(nearest(x), nearest(y));
        return pieces;
    }
    let (x_rest, y_rest) = (without(x, bits(x)), without(y, bits(y)));
    let (x_middle, y_middle) = (rounded(x_rest), rounded(y_rest));
    let (x_last, y_last) = (without(x_rest, x_middle), without(y_rest, y_middle));
    pieces[0] = pairs(bits(x), bits(y));
    pieces[1] = pairs(x_middle, y_middle);
    pieces[2] = pairs(bits(x_last), bits(y_last));
    pieces
}

/// The upper halves of the elements of both, side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn pairs(x: __m512i, y: __m512i) -> __m512i {
    _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_srli_epi32::<16>(x), y)
}

/// Bits whose upper halves are the nearest bfloat16, as `half::bf16::from_f32`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn nearest(x: __m512) -> __m512i {
    let bits = _mm512_castps_si512(x);
    let is_odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let below_half = _mm512_add_epi32(is_odd, _mm512_set1_epi32(0x7fff));
    let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
    let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    _mm512_mask_mov_epi32(_mm512_add_epi32(bits, below_half), is_nan, quiet)
}

/// Splits `elements` of a row, at most 32, zeros beyond them, into row `row` of as many tiles as there are pieces.
///
/// # Safety
/// The processor has AVX-512 with its instructions for words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(in super::super) unsafe fn split_row<const PIECES: usize>(
    elements: &[f32],
    tiles: &mut [Tile],
    row: usize,
) {
    let load = |first: usize| {
        let count = elements.len().saturating_sub(first).min(16);
        let mask = ((1u32 << count) - 1) as __mmask16;
        _mm512_maskz_loadu_ps(mask, elements.as_ptr().wrapping_add(first))
    };
    let pieces = split::<PIECES>(load(0), load(16));
    for (tile, piece) in tiles[..PIECES].iter_mut().zip(pieces) {
        let place = &mut tile.0[row * DEPTH..][..DEPTH];
        _mm512_storeu_si512(place.as_mut_ptr().cast(), piece);
    }
}

/// Splits rows `row` and `row + 16` of a block of 32 rows of a panel, zeros beyond those that are there, into row
/// `row` of its tiles: the left and the right of each piece.
///
/// # Safety
/// The processor has AVX-512 with its instructions for words; `row` is below 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(in super::super) unsafe fn split_pair_of_rows<const PIECES: usize>(
    block: &[f32],
    tiles: &mut [Tile],
    row: usize,
) {
    let rows = block.len() / PANEL;
    let load = |row: usize, half: usize| match row < rows {
        true => _mm512_loadu_ps(block.as_ptr().wrapping_add(row * PANEL + half * 16)),
        false => _mm512_setzero_ps(),
    };
    let tiles = &mut tiles[..2 * PIECES];
    for half in 0..2 {
        let pieces = split::<PIECES>(load(row, half), load(row + ROWS, half));
        for (number, piece) in pieces.into_iter().enumerate() {
            let place = &mut tiles[2 * number + half].0[row * DEPTH..][..DEPTH];
            _mm512_storeu_si512(place.as_mut_ptr().cast(), piece);
        }
    }
}
