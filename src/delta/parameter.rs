//! Parameters that deltas add, and how they begin.

/// A parameter that a delta adds.
#[derive(Clone, Debug, PartialEq)]
pub struct NewParameter {
    /// Its name at the site: `A`.
    pub name: &'static str,
    /// `(out, in)`, or `(out)`.
    pub shape: Vec<usize>,
    /// How it begins.
    pub init: Init,
    /// Whether it stays as it begins.
    pub is_frozen: bool,
}

impl NewParameter {
    /// A parameter that is trained.
    pub fn new(name: &'static str, shape: impl Into<Vec<usize>>, init: Init) -> Self {
        NewParameter {
            name,
            shape: shape.into(),
            init,
            is_frozen: false,
        }
    }

    /// The same, never trained.
    pub fn frozen(self) -> Self {
        NewParameter {
            is_frozen: true,
            ..self
        }
    }

    /// The number of elements.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// How a new parameter begins.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// All of this value.
    Constant(f32),
    /// A normal distribution of mean 0 and this standard deviation.
    Normal(f32),
    /// A uniform distribution from minus to plus this bound.
    Uniform(f32),
    /// The Euclidean norms of the rows of the module's own weight.
    RowNorms,
    /// Rows of the word embeddings, drawn without preference.
    Vocabulary,
    /// These rows of the word embeddings, from the first again where there are too few.
    Rows(Vec<usize>),
    /// `√(S / scale) Vᵀ (rank, in)` of the module's own weight `U S Vᵀ`, the largest singular values.
    PrincipalRows {
        /// What the product of rows and columns is multiplied with later.
        scale: f32,
    },
    /// `U √(S / scale) (out, rank)`
    PrincipalColumns {
        /// See above.
        scale: f32,
    },
}

impl Init {
    /// All zeros.
    pub const ZEROS: Init = Init::Constant(0.0);

    /// PyTorch's default for a linear layer of `input` inputs: Kaiming with a = √5, U(±1/√input).
    pub fn kaiming(input: usize) -> Init {
        Init::Uniform(1.0 / (input as f32).sqrt())
    }

    /// Glorot and Bengio 2010, eq. 16, with a gain: U(±gain · √(6 / (input + output))).
    pub fn glorot(input: usize, output: usize, gain: f32) -> Init {
        Init::Uniform(gain * (6.0 / (input + output) as f32).sqrt())
    }
}
