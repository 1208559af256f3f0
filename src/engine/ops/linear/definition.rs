//! The linear layer in dfdx operations, the definition that the kernel is compared with.

use dfdx::prelude::*;

use crate::definition::{run_definition, DfdxDevice, DfdxMatrix, DfdxResult, DfdxVector};
use crate::gradient::Slot;
use crate::{ops, Device, Matrix, Outcome, Tensor};

/// See [`super::linear`].
pub(super) fn linear<D: DfdxDevice>(
    x: DfdxMatrix<D>,
    weight: DfdxMatrix<D>,
    bias: Option<DfdxVector<D>>,
) -> DfdxResult<DfdxMatrix<D>, D> {
    let shape = (x.shape().0, weight.shape().0);
    let product = x.try_matmul(weight.try_permute::<_, Axes2<1, 0>>()?)?;
    match bias {
        Some(bias) => product.try_add(bias.try_broadcast_like::<_, Axis<0>>(&shape)?),
        None => Ok(product),
    }
}

/// `x Wᵀ` for a weight that gets no gradient. Its backward pass is one product; dfdx's `matmul` always computes two.
pub(super) fn of_frozen(x: &Matrix, weight: &Matrix) -> Outcome<Matrix> {
    let plain = &x.detached();
    let product = run_definition!(x.device(), |plain, weight| linear(plain, weight, None))?;
    let Some(x_slot) = x.slot() else {
        return Ok(product);
    };
    let (weight, slot) = (weight.clone(), Slot::new(product.count()));
    let (own, shape) = (slot.clone(), product.shape());
    x.trace().record(move || {
        let Some(upstream) = own.take_storage() else {
            return Ok(());
        };
        let upstream = Tensor::of(upstream, shape).constant();
        let gradient = ops::matmul(&upstream, &weight)?; // (rows, in)
        x_slot.add_storage(gradient.value.storage)
    });
    Ok(Matrix::result(product.value, x.trace(), slot))
}
