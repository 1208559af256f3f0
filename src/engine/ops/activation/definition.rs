//! Non-linearities in dfdx operations, the definitions that kernels are compared with.

use dfdx::prelude::*;

use crate::definition::{DfdxDevice, DfdxMatrix, DfdxResult};
use crate::Activation;

/// See [`super::activate`].
pub(super) fn activate<D: DfdxDevice>(
    x: &DfdxMatrix<D>,
    activation: Activation,
) -> DfdxResult<DfdxMatrix<D>, D> {
    match activation {
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => {
            let cube = x.clone().try_powi(3)?.try_mul(0.044715f32)?;
            let inner = cube.try_add(x.clone())?.try_mul(0.797_884_6f32)?; // √(2/π)
            inner
                .try_tanh()?
                .try_add(1.0f32)?
                .try_mul(0.5f32)?
                .try_mul(x.clone())
        }
        Activation::Relu => x.clone().try_relu(),
        Activation::Swish => x.clone().try_sigmoid()?.try_mul(x.clone()),
        Activation::Tanh => x.clone().try_tanh(),
        Activation::Sigmoid => x.clone().try_sigmoid(),
    }
}

/// `x Φ(x) = max(x, 0) − ½ |x| erfc(|x| / √2)`, with erfc by Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7).
/// max(x, 0) is computed as ½ (x + |x|): dfdx takes the derivatives of `relu` and `abs` at 0 as 0, so this form has the
/// right derivative Φ(0) = ½ there. dfdx's own `accurate_gelu` has a wrong derivative.
fn gelu<D: DfdxDevice>(x: &DfdxMatrix<D>) -> DfdxResult<DfdxMatrix<D>, D> {
    let [p, a] = ERFC;
    let size = x.clone().try_abs()?;
    let z = size.clone().try_mul(std::f32::consts::FRAC_1_SQRT_2)?;
    let t = z.clone().try_mul(p[0])?.try_add(1.0f32)?.try_recip()?;
    let mut polynomial = t.clone().try_mul(a[4])?.try_add(a[3])?;
    for coefficient in [a[2], a[1], a[0]] {
        polynomial = polynomial.try_mul(t.clone())?.try_add(coefficient)?;
    }
    let gauss = z.try_square()?.try_negate()?.try_exp()?;
    let erfc = polynomial.try_mul(t)?.try_mul(gauss)?;
    let tail = erfc.try_mul(size.clone())?.try_mul(0.5f32)?;
    let positive_part = size.try_add(x.clone())?.try_mul(0.5f32)?;
    positive_part.try_sub(tail)
}

/// Abramowitz and Stegun 7.1.26: p, and the polynomial's coefficients a₁ … a₅.
pub(crate) const ERFC: [[f32; 5]; 2] = [
    [0.327_591_1, 0.0, 0.0, 0.0, 0.0],
    [
        0.254_829_6,
        -0.284_496_72,
        1.421_413_8,
        -1.453_152_1,
        1.061_405_4,
    ],
];
