//! Tile registers (Intel's AMX): sums of 16 rows by 16 columns, to each of which one instruction adds the products of
//! 64 bytes, as integers or as bfloat16. Rust has no stable names for these instructions, so they are written out. The
//! compiler never uses tile registers: what is in them stays from one block of instructions to the next.

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::super::tile::{Target, PANEL};

/// Rows of a tile.
pub(super) const ROWS: usize = 16;

/// Bytes of a row of a tile.
pub(super) const ROW: usize = 64;

/// What a tile register is loaded from.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct TileRegister([[u8; ROW]; ROWS]);

impl TileRegister {
    pub(super) const ZEROS: TileRegister = TileRegister([[0; ROW]; ROWS]);

    /// # Safety
    /// The processor has AVX-512.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn set_row(&mut self, row: usize, bytes: __m512i) {
        _mm512_store_si512(self.0[row].as_mut_ptr().cast(), bytes);
    }

    /// Where a row lies.
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

/// How the elements of two matrices are written into tiles, and multiplied there. Tiles of the left matrix have 16 of
/// its rows, those of the right one 16 columns of a panel.
pub(super) trait Encoding: Sync {
    /// Elements of a row, or a column, that a tile has room for.
    const DEPTH: usize;

    /// Tiles that so many elements of 16 rows take.
    const PIECES: usize;

    /// Rows, and columns, that are multiplied at once: one tile's or two tiles'.
    const SIDE: usize;

    /// The largest depth that a row is written in one unit: a multiple of `DEPTH`.
    const MOST_DEPTH: usize;

    /// Writes a row of the left matrix, each element times its scale if there are any, into row `row` of its tiles,
    /// `PIECES` for each `DEPTH` elements; gives the unit that it is written in.
    ///
    /// # Safety
    /// The registers are available, which every processor has AVX-512 beside.
    unsafe fn write_row(
        elements: &[f32],
        scales: Option<&[f32]>,
        tiles: &mut [TileRegister],
        row: usize,
    ) -> f32;

    /// The units that the columns of a panel of the right matrix, `(depth, 32)`, are to be written in.
    ///
    /// # Safety
    /// As of [`Encoding::write_row`].
    unsafe fn units(panel: &[f32]) -> [f32; PANEL];

    /// Writes columns `first` to `first + SIDE` of a block of a panel, `DEPTH` rows of it or fewer, and zeros beyond.
    ///
    /// # Safety
    /// As of [`Encoding::write_row`].
    unsafe fn write_columns(
        block: &[f32],
        units: &[f32; PANEL],
        first: usize,
        tiles: &mut [TileRegister],
    );

    /// `target ← …` the products of up to `SIDE` rows and columns. `beside` is called once for each block of the
    /// depth, while the registers are at work.
    ///
    /// # Safety
    /// The left tiles, of 16 rows each, have a row for each of the target's, `PIECES` for each block; the right ones
    /// have its columns, which have units.
    unsafe fn multiply(
        registers: &mut Registers,
        target: &Target,
        rows: usize,
        left: [Side; 2],
        right: Side,
        beside: impl FnMut(usize),
    );
}

/// The 16 elements of a row from `first` on, zeros beyond its end, times their scales.
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

/// Some rows of the left matrix, or columns of the right one, in tiles, and the units that they are written in.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    pub(super) tiles: &'a [TileRegister],
    pub(super) units: &'a [f32],
}

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

/// By leaf 7 of `cpuid`: AMX-BF16, AMX-TILE and AMX-INT8.
fn has_tiles() -> bool {
    const ALL: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    #[allow(unused_unsafe)] // safe from Rust 1.94 on
    // SAFETY: every processor with AVX-512 has both leaves.
    let leaf = unsafe { __cpuid_count(7, 0) };
    leaf.edx & ALL == ALL
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
pub(super) struct Registers(());

impl Registers {
    /// # Safety
    /// They are available, and nobody else has them on this thread.
    pub(super) unsafe fn new() -> Self {
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
}

impl Drop for Registers {
    /// The system need not keep their contents any longer.
    fn drop(&mut self) {
        // SAFETY: who made this had them.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) }
    }
}
