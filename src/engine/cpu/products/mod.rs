//! Products with weights. A weight is packed once, in the form that this processor multiplies fastest. The code for an
//! instruction set is in a file or folder of its own.

#[cfg_attr(not(target_arch = "x86_64"), path = "amx/absent.rs")]
mod amx;
mod coded;
mod half;
mod operand;
mod packed;
mod tile;
mod view;

use std::sync::OnceLock;

use self::half::{HalfOperand, HalfPacked};
use super::is_wide;
use crate::gradient::Slot;
use crate::{Elements, Precision};

pub use self::amx::pays as uses_amx;
pub(crate) use self::operand::{multiply_add_once, PackedOperand};
pub(crate) use self::packed::Packed;
pub(crate) use self::tile::{exchange, Destination, WriteMode};
pub(crate) use self::view::{multiply, View};

/// The memory that the packed forms of a frozen weight take, as a multiple of its size in f32. `least_side` is the
/// smaller side of the weight. `is_passed` says whether a gradient passes through it, which needs the other orientation
/// too.
pub fn copies_of_a_weight(precision: Precision, least_side: usize, is_passed: bool) -> f64 {
    let directions = if is_passed { 2.0 } else { 1.0 };
    let forms = match is_wide(least_side) {
        true => 1.0,
        false => directions,
    };
    let size = match precision {
        Precision::Bf16 => 0.5,
        Precision::F32 if amx::pays(least_side, least_side) => 0.75,
        Precision::F32 => 1.0,
    };
    forms * size
}

/// The packed forms of a weight, for `x Wᵀ` and for `dy W`, each made when it is first needed. A wide weight is packed
/// once for both, in half the memory or less; `dy W` then takes a tenth longer (Zen 3) or a sixth (AMX).
#[derive(Default)]
pub struct Prepared {
    forward: Forms,
    backward: Forms,
}

/// The form for each precision, once it has been made.
#[derive(Default)]
struct Forms {
    f32: OnceLock<WeightForm>,
    bf16: OnceLock<WeightForm>,
}

impl Forms {
    fn of(&self, precision: Precision) -> &OnceLock<WeightForm> {
        match precision {
            Precision::F32 => &self.f32,
            Precision::Bf16 => &self.bf16,
        }
    }
}

impl Prepared {
    /// `Wᵀ (in, out)`, to multiply with in `x Wᵀ`. Packed at the first call.
    pub(crate) fn forward<'w>(&'w self, precision: Precision, weight: &'w Elements) -> Operand<'w> {
        let (out, input) = weight.shape();
        if let Some(coded) = coded(weight) {
            return coded.t();
        }
        let pack = || match weight {
            Elements::Stored(stored) if stored.source().has_rows() => {
                let source = stored.source();
                let packed =
                    Packed::transposed_by(|range, rows| source.read(range, rows), input, out);
                source.release();
                packed
            }
            _ => once(weight, |w| Packed::transposed(w, input, input, out)),
        };
        let form = self.forward.of(precision);
        form.get_or_init(|| WeightForm::new(precision, pack()))
            .operand()
    }

    /// `W (out, in)`, to multiply with in `dy W`. Packed at the first call.
    pub(crate) fn backward<'w>(
        &'w self,
        precision: Precision,
        weight: &'w Elements,
    ) -> Operand<'w> {
        let (out, input) = weight.shape();
        if let Some(coded) = coded(weight) {
            return coded;
        }
        if is_wide(out.min(input)) {
            return self.forward(precision, weight).t();
        }
        let pack = |w: &[f32]| WeightForm::new(precision, Packed::rows(w, input, out, input));
        let form = self.backward.of(precision);
        form.get_or_init(|| once(weight, pack)).operand()
    }
}

/// A matrix in the form that this processor multiplies with.
pub(crate) enum WeightForm {
    Packed(Packed),
    Half(HalfPacked),
    Tiled(amx::Tiled),
}

impl WeightForm {
    /// The form of a packed matrix for products in `precision`.
    pub(crate) fn new(precision: Precision, packed: Packed) -> Self {
        let (depth, columns) = packed.plain().shape();
        let is_tiled = match precision {
            Precision::F32 => amx::pays(depth, columns),
            Precision::Bf16 => amx::is_available(),
        };
        match precision {
            _ if is_tiled => WeightForm::Tiled(amx::Tiled::new(&packed, precision)),
            Precision::F32 => WeightForm::Packed(packed),
            Precision::Bf16 => WeightForm::Half(HalfPacked::new(packed.plain())),
        }
    }

    pub(crate) fn operand(&self) -> Operand<'_> {
        match self {
            WeightForm::Packed(packed) => Operand::Plain(packed.plain()),
            WeightForm::Half(packed) => Operand::Half(packed.plain()),
            WeightForm::Tiled(tiled) => Operand::Tiled(tiled.plain()),
        }
    }
}

/// Whether this processor has AMX's tile registers.
pub(crate) fn has_amx() -> bool {
    amx::is_available()
}

/// Whether this processor computes products in this precision.
pub(crate) fn has(precision: Precision) -> bool {
    precision == Precision::F32 || half::is_available() || amx::is_available()
}

/// A matrix to multiply with.
#[derive(Clone, Copy)]
pub(crate) enum Operand<'a> {
    Plain(PackedOperand<'a>),
    Half(HalfOperand<'a>),
    Tiled(amx::TiledOperand<'a>),
}

impl Operand<'_> {
    /// The transpose.
    fn t(self) -> Self {
        match self {
            Operand::Plain(b) => Operand::Plain(b.t()),
            Operand::Tiled(b) => Operand::Tiled(b.t()),
            Operand::Half(b) => Operand::Half(b.t()),
        }
    }

    /// Whether the elements of each row of `a` have to be contiguous.
    pub(crate) fn takes_rows(self) -> bool {
        match self {
            Operand::Plain(_) => false,
            Operand::Half(_) | Operand::Tiled(_) => true,
        }
    }

    /// `a b`, and `bias` added to each row.
    pub(crate) fn product(self, a: View, bias: Option<&[f32]>) -> Vec<f32> {
        match self {
            Operand::Plain(b) => b.product(a, bias),
            Operand::Half(b) => b.product(a, bias),
            Operand::Tiled(b) => b.product(a, bias),
        }
    }

    /// `out ← out + a b`, `out (rows, columns)`.
    pub(crate) fn multiply_add(self, out: &mut [f32], a: View) {
        match self {
            Operand::Plain(b) => b.multiply_add(out, b.shape().1, a),
            Operand::Half(b) => b.multiply_add(out, a),
            Operand::Tiled(b) => b.multiply_add(out, a),
        }
    }

    /// Adds `a b` to the gradient `(rows, columns)` in `slot`.
    pub(crate) fn add_product(self, a: View, slot: &Slot) {
        let make = || self.product(a, None);
        slot.make_or_add(make, |sum| self.multiply_add(sum, a));
    }
}

/// A weight `(out, in)` that is kept in codes.
fn coded(weight: &Elements) -> Option<Operand<'_>> {
    match weight {
        Elements::Stored(stored) if stored.source().is_coded() => {
            let shape = weight.shape();
            Some(Operand::Plain(PackedOperand::coded(stored.source(), shape)))
        }
        _ => None,
    }
}

/// Calls `read` with the elements, which are not needed afterwards: a stored weight's source may free them.
fn once<T>(weight: &Elements, read: impl FnOnce(&[f32]) -> T) -> T {
    match weight {
        Elements::Held(tensor) => read(tensor.data()),
        Elements::Stored(stored) => {
            let result = read(&stored.source().elements());
            stored.source().release();
            result
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::helpers::tests::pool;
    use super::amx::Tiled;
    use super::*;

    /// Covers vector registers and, if the processor has them, tile registers, with several parts of the depth and a
    /// last panel that is not full.
    #[test]
    fn helpers_change_no_bit() {
        let (rows, depth, columns) = (203, 800, 1000);
        let a: Vec<f32> = (0..rows * depth).map(|i| (i % 97) as f32 / 97.0).collect();
        let b: Vec<f32> = (0..depth * columns)
            .map(|i| (i % 89) as f32 / 89.0)
            .collect();
        let packed = Packed::rows(&b, columns, depth, columns);
        let view = View::new(&a, depth);
        let turned = Packed::transposed(&b, columns, columns, depth);
        let tiled = amx::is_available()
            .then(|| [&packed, &turned].map(|packed| Tiled::new(packed, Precision::F32)));
        let mut ways: Vec<Box<dyn Fn() -> Vec<f32> + Sync>> =
            vec![Box::new(|| packed.plain().product(view, None))];
        if let Some([plain, turned]) = &tiled {
            ways.push(Box::new(|| plain.plain().product(view, None)));
            ways.push(Box::new(|| turned.plain().t().product(view, None)));
        }
        for product in &ways {
            let alone = product();
            for _ in 0..20 {
                let together = pool(4).install(product);
                let mut pairs = alone.iter().zip(&together);
                assert!(pairs.all(|(x, y)| x.to_bits() == y.to_bits()));
            }
        }
    }
}
