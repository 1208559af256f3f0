//! The singular value decomposition of a weight.

use faer::Mat;

/// `W = U S Vᵀ`, singular values falling.
pub(crate) struct Svd {
    left: Mat<f64>,
    values: Vec<f64>,
    right: Mat<f64>,
}

impl Svd {
    /// Decomposes `weight (rows, columns)`, given row by row. Nothing if it is not finite.
    pub fn of(weight: &[f32], columns: usize) -> Option<Self> {
        if weight.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let rows = weight.len() / columns;
        let matrix = Mat::from_fn(rows, columns, |row, column| {
            f64::from(weight[row * columns + column])
        });
        let svd = matrix.thin_svd().ok()?;
        Some(Svd {
            left: svd.U().to_owned(),
            values: svd.S().column_vector().iter().copied().collect(),
            right: svd.V().to_owned(),
        })
    }

    /// `√(S / scale) Vᵀ (rank, columns)` of the largest singular values
    /// (PiSSA: Meng et al., arXiv 2404.02948, eq. 2).
    pub fn rows(&self, rank: usize, scale: f32) -> Vec<f32> {
        let columns = self.right.nrows();
        let places = (0..rank).flat_map(|rank| (0..columns).map(move |column| (rank, column)));
        places
            .map(|(rank, column)| (self.root(rank, scale) * self.right[(column, rank)]) as f32)
            .collect()
    }

    /// `U √(S / scale) (rows, rank)` (eq. 3).
    pub fn columns(&self, rank: usize, scale: f32) -> Vec<f32> {
        let rows = self.left.nrows();
        let places = (0..rows).flat_map(|row| (0..rank).map(move |rank| (row, rank)));
        places
            .map(|(row, rank)| (self.root(rank, scale) * self.left[(row, rank)]) as f32)
            .collect()
    }

    fn root(&self, rank: usize, scale: f32) -> f64 {
        (self.values[rank] / f64::from(scale)).sqrt()
    }
}
