//! exp, erf and tanh as short polynomials without branches, which the compiler vectorizes. `mul_add` is one instruction
//! on ARM and on x86 with AVX2; on older processors it is correct but slow.

use crate::ops::ERFC;

/// `eˣ` to about 1 unit in the last place (Cephes' polynomial). Below −87.3 the result is at most 1.2e-38; above 88.7
/// it is 3.4e38. NaN stays NaN.
#[inline(always)]
#[allow(clippy::manual_clamp)] // `clamp` keeps a NaN too, but does not vectorize as well.
pub(crate) fn exp(x: f32) -> f32 {
    let x = if x < -87.336_54 { -87.336_54 } else { x };
    let x = if x > 88.722_83 { 88.722_83 } else { x };
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to an integer
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x)); // x − n ln 2, in two parts
    let mut p = 1.987_569_1e-4f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 5e-1);
    let value = (p * r).mul_add(r, r) + 1.0;
    // The low bits of `shifted` hold n as an integer. 2ⁿ is applied in two factors, because n = 128 would overflow the
    // exponent.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    value * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// GELU and its derivative: `x Φ(x)` and `Φ(x) + x φ(x)`.
#[inline(always)]
pub(crate) fn gelu(x: f32) -> (f32, f32) {
    let [p, a] = ERFC;
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / p[0].mul_add(z, 1.0);
    let gauss = exp(-z * z);
    let erfc = a[4]
        .mul_add(t, a[3])
        .mul_add(t, a[2])
        .mul_add(t, a[1])
        .mul_add(t, a[0])
        * t
        * gauss;
    let phi = if x < 0.0 {
        0.5 * erfc
    } else {
        1.0 - 0.5 * erfc
    };
    const INVERSE_SQRT_TAU: f32 = 0.398_942_3; // 1/√(2π)
    (x * phi, (x * gauss).mul_add(INVERSE_SQRT_TAU, phi))
}

/// The hyperbolic tangent, by `1 − 2 / (e²ˣ + 1)` and a series near zero.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let size = x.abs();
    let large = 1.0 - 2.0 / (exp(2.0 * size) + 1.0);
    let s = x * x;
    let small = size * (1.0 + s * (-1.0 / 3.0 + s * (2.0 / 15.0 + s * (-17.0 / 315.0))));
    let value = if size < 0.1 { small } else { large };
    if x < 0.0 {
        -value
    } else {
        value
    }
}

/// GELU with tanh, and its derivative.
#[inline(always)]
pub(crate) fn gelu_tanh(x: f32) -> (f32, f32) {
    const SCALE: f32 = 0.797_884_6; // √(2/π)
    let t = tanh(SCALE * (x + 0.044_715 * x * x * x));
    let inner = SCALE * (1.0 + 3.0 * 0.044_715 * x * x);
    (
        0.5 * x * (1.0 + t),
        0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner,
    )
}

/// Swish and its derivative: `x σ(x)` and `σ(x) (1 + x (1 − σ(x)))`.
#[inline(always)]
pub(crate) fn swish(x: f32) -> (f32, f32) {
    let (sigmoid, _) = sigmoid(x);
    (x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid)))
}

/// σ and its derivative: `1 / (1 + exp(−x))` and `σ(x) (1 − σ(x))`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> (f32, f32) {
    let sigmoid = 1.0 / (1.0 + exp(-x));
    (sigmoid, sigmoid * (1.0 - sigmoid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_standard_library() {
        for i in -8700..8860 {
            let x = i as f32 * 0.01;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 3e-7, "exp({x}): relative error {error}");
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-1e30) < 1.2e-38 && exp(1e30) > 3.3e38);
    }

    #[test]
    fn tanh_agrees_with_the_standard_library() {
        for i in -2000..2000 {
            let x = i as f32 * 0.005;
            let error = (f64::from(tanh(x)) - f64::from(x).tanh()).abs();
            assert!(error < 3e-7, "tanh({x}): error {error}");
        }
        assert!(tanh(f32::NAN).is_nan());
        assert_eq!(tanh(1e30), 1.0);
    }
}
