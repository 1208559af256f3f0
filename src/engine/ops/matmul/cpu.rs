//! Products of two variables on the CPU.

use crate::cpu::products::{multiply, View};
use crate::gradient::record_kernel;
use crate::{profile, Matrix};

/// See [`super::matmul`].
pub(super) fn matmul(x: &Matrix, y: &Matrix) -> Matrix {
    let ((n, k), (_, m)) = (x.shape(), y.shape());
    let mut values = vec![0.0; n * m];
    let [x_view, y_view] = [View::new(x.data(), k), View::new(y.data(), m)];
    multiply(&mut values, m, x_view, y_view, 1.0, false);
    let (x_slot, y_slot) = (x.slot(), y.slot());
    // Each operand is needed for the gradient of the other.
    let kept_x = y_slot.is_some().then(|| x.value.clone());
    let kept_y = x_slot.is_some().then(|| y.value.clone());
    let kept = [&kept_x, &kept_y].into_iter().flatten();
    profile::kept(kept.map(|kept| kept.count()).sum());
    let trace = x.trace().or(&y.trace());
    record_kernel(values, (n, m), trace, move |upstream| {
        let dy = View::new(&upstream, m);
        if let (Some(slot), Some(y)) = (&x_slot, &kept_y) {
            let y = View::new(y.data(), m).t();
            slot.add_in_place(|sum| multiply(sum, k, dy, y, 1.0, true)); // (n, k)
        }
        if let (Some(slot), Some(x)) = (&y_slot, &kept_x) {
            let x = View::new(x.data(), k).t();
            slot.add_in_place(|sum| multiply(sum, m, x, dy, 1.0, true)); // (k, m)
        }
    })
}
