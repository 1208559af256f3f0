//! Parameters that deltas add, and their initial values.

/// A parameter that a delta adds.
#[derive(Clone, Debug, PartialEq)]
pub struct NewParameter {
    /// Its name at the site: `A`.
    pub name: &'static str,
    /// `(out, in)`, or `(out)`.
    pub shape: Vec<usize>,
    /// Its initial values.
    pub init: Init,
    /// Whether it keeps its initial values in training.
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

    /// The same parameter, but never trained.
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

/// The initial values of a new parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// This value in every element.
    Constant(f32),
    /// A normal distribution of mean 0 and this standard deviation.
    Normal(f32),
    /// A uniform distribution from minus to plus this bound.
    Uniform(f32),
    /// The Euclidean norms of the rows of the module's own weight.
    RowNorms,
    /// Word embeddings as blocks read them, drawn uniformly.
    Vocabulary,
    /// Word embeddings of these tokens as blocks read them, repeated from the first if there are too few.
    Words(Vec<usize>),
    /// These rows of the table of word embeddings.
    Rows(Vec<usize>),
    /// `√(S / scale) Vᵀ (rank, in)` of the module's own weight `U S Vᵀ`, for the largest singular values.
    PrincipalRows {
        /// The factor by which the product of columns and rows is multiplied later.
        scale: f32,
    },
    /// `U √(S / scale) (out, rank)`
    PrincipalColumns {
        /// See [`Init::PrincipalRows`].
        scale: f32,
    },
}

impl Init {
    /// Whether it is computed from the module's own weight.
    pub fn reads_weight(&self) -> bool {
        matches!(
            self,
            Init::RowNorms | Init::PrincipalRows { .. } | Init::PrincipalColumns { .. }
        )
    }

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
