//! Element-wise sums and products on the CPU.

use dfdx::prelude::Shape;
use multiversion::multiversion;

use crate::cpu::elementwise::{add_product, add_to, multiply_by, scale_by};
use crate::cpu::helpers::share_elements;
use crate::gradient::{record_kernel, InPlace};
use crate::{Matrix, Variable, Vector};

/// See [`super::add`].
pub(super) fn add(x: Matrix, y: &Matrix) -> Matrix {
    let mut sum = InPlace::new(x);
    share_elements(sum.values(), y.data(), add_to);
    let y_slot = y.slot();
    sum.finish(&y.trace(), move |gradient| {
        if let Some(slot) = &y_slot {
            slot.make_or_add(
                || gradient.to_vec(),
                |sum| share_elements(sum, gradient, add_to),
            );
        }
    })
}

/// See [`super::scale`].
pub(super) fn scale<S: Shape>(x: &Variable<S>, factor: f32) -> Variable<S> {
    let values = x.data().iter().map(|x| factor * x).collect();
    let x_slot = x.slot();
    record_kernel(values, x.shape(), x.trace(), move |mut upstream| {
        if let Some(slot) = &x_slot {
            scale_by(&mut upstream, factor);
            slot.add(upstream);
        }
    })
}

/// See [`super::multiply`].
pub(super) fn multiply<S: Shape>(x: &Variable<S>, y: &Variable<S>) -> Variable<S> {
    let mut values = x.read();
    share_elements(&mut values, y.data(), multiply_by);
    let (x_slot, y_slot) = (x.slot(), y.slot());
    // Each operand is needed for the gradient of the other.
    let kept_x = y_slot.is_some().then(|| x.value.clone());
    let kept_y = x_slot.is_some().then(|| y.value.clone());
    let trace = x.trace().or(&y.trace());
    record_kernel(values, x.shape(), trace, move |upstream| {
        for (slot, other) in [(&x_slot, &kept_y), (&y_slot, &kept_x)] {
            if let (Some(slot), Some(other)) = (slot, other) {
                let mut gradient = upstream.clone();
                share_elements(&mut gradient, other.data(), multiply_by);
                slot.add(gradient);
            }
        }
    })
}

/// See [`super::scale_columns`].
pub(super) fn scale_columns(x: &Matrix, factors: &Vector) -> Matrix {
    let (_, columns) = x.shape();
    let mut values = vec![0.0; x.count()];
    add_scaled_rows(&mut values, x.data(), factors.data());
    let (x_slot, factor_slot) = (x.slot(), factors.slot());
    let kept_x = factor_slot.is_some().then(|| x.value.clone());
    let trace = x.trace().or(&factors.trace());
    let factors = factors.value.clone();
    record_kernel(values, x.shape(), trace, move |upstream| {
        if let Some(slot) = &x_slot {
            slot.add_in_place(|sum| add_scaled_rows(sum, &upstream, factors.data()));
        }
        if let (Some(slot), Some(x)) = (&factor_slot, &kept_x) {
            let rows = x.data().chunks_exact(columns);
            slot.add_in_place(|sum| {
                for (x, row) in rows.zip(upstream.chunks_exact(columns)) {
                    add_product(sum, x, row);
                }
            });
        }
    })
}

/// `out += factors ⊙ input`, row by row.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn add_scaled_rows(out: &mut [f32], input: &[f32], factors: &[f32]) {
    let rows = out.chunks_exact_mut(factors.len());
    for (out, input) in rows.zip(input.chunks_exact(factors.len())) {
        add_product(out, input, factors);
    }
}

/// See [`super::add_row`].
pub(super) fn add_row(x: Matrix, row: &Vector) -> Matrix {
    let columns = row.count();
    let mut sum = InPlace::new(x);
    let rows = sum.values().chunks_exact_mut(columns);
    rows.for_each(|sum| add_to(sum, row.data()));
    let row_slot = row.slot();
    sum.finish(&row.trace(), move |gradient| {
        if let Some(slot) = &row_slot {
            let rows = gradient.chunks_exact(columns);
            slot.add_in_place(|sum| rows.for_each(|row| add_to(sum, row)));
        }
    })
}
