//! The methods of delta tuning, one file each: its settings, where it may sit, its parameters and
//! their init, its forward pass in engine operations, its form in PEFT.
//!
//! In: typed settings, activations. Out: parameters to train, activations. It knows nothing of
//! training. A new method is a file beside [`lora`] and a line in the list below.

mod houlsby;
mod lora;

use serde::{Deserialize, Serialize};

use crate::backbone::{Config, Module, Site};
use crate::engine::{Backend, Matrix, Vector, Weight};
use crate::plan::Fields;

pub use houlsby::Houlsby;
pub use lora::Lora;

/// Writes the enum of all methods and the calls that go to each.
macro_rules! methods {
    ($($method:ident,)*) => {
        /// A method with its settings.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "name", rename_all = "snake_case")]
        #[allow(missing_docs)]
        pub enum Method {
            $($method($method),)*
        }

        impl Method {
            /// The names of all methods that a statement can place.
            pub fn names(placement: Placement) -> Vec<&'static str> {
                let all = [$(($method::NAME, $method::STATEMENT),)*];
                all.into_iter().filter(|(_, s)| *s == placement).map(|(name, _)| name).collect()
            }

            /// The statement that places the method of this name.
            pub fn placement(name: &str) -> Option<Placement> {
                $(if name == $method::NAME {
                    return Some($method::STATEMENT);
                })*
                None
            }

            /// Reads the settings of the method of this name.
            pub fn read(name: &str, fields: &Fields, config: &Config) -> Option<Self> {
                $(if name == $method::NAME {
                    return Some(Method::$method($method::read(fields, config)));
                })*
                None
            }

            /// The method's name in the language.
            pub fn name(&self) -> &'static str {
                match self { $(Method::$method(_) => $method::NAME,)* }
            }

            /// The paper that the method is from.
            pub fn paper(&self) -> &'static str {
                match self { $(Method::$method(_) => $method::PAPER,)* }
            }

            /// See [`DeltaMethod::PEFT_TENSORS`].
            pub fn peft_tensors(&self) -> &'static [(&'static str, &'static str)] {
                match self { $(Method::$method(_) => $method::PEFT_TENSORS,)* }
            }

            /// See [`DeltaMethod::accepts`].
            pub fn accepts(&self, site: Site) -> bool {
                match self { $(Method::$method(_) => $method::accepts(site),)* }
            }

            /// See [`DeltaMethod::check`].
            ///
            /// # Errors
            /// What is wrong, in one sentence.
            pub fn check(&self, module: &Module) -> Result<(), String> {
                match self { $(Method::$method(method) => method.check(module),)* }
            }

            /// See [`DeltaMethod::parameters`].
            pub fn parameters(&self, module: &Module) -> Vec<NewParameter> {
                match self { $(Method::$method(method) => method.parameters(module),)* }
            }

            /// See [`DeltaMethod::forward`].
            ///
            /// # Errors
            /// What the device reports.
            pub fn forward<D: Backend>(
                &self,
                at: &impl AtSite<D>,
                x: &Matrix<D>,
                y: Matrix<D>,
            ) -> Result<Matrix<D>, D::Err> {
                match self { $(Method::$method(method) => method.forward(at, x, y),)* }
            }

            /// See [`DeltaMethod::merged`].
            pub fn merged(
                &self,
                module: &Module,
                tensor: &dyn Fn(&str) -> Vec<f32>,
            ) -> Option<Vec<f32>> {
                match self { $(Method::$method(method) => method.merged(module, tensor),)* }
            }
        }
    };
}

methods! {
    Lora,
    Houlsby,
}

/// What a method is.
pub trait DeltaMethod: Sized {
    /// Its name in the language.
    const NAME: &'static str;
    /// The statement that places it.
    const STATEMENT: Placement;
    /// The paper that it is from.
    const PAPER: &'static str;
    /// The tensors of one site: our name, and PEFT's suffix. Empty where PEFT has no such method.
    const PEFT_TENSORS: &'static [(&'static str, &'static str)] = &[];

    /// Reads its settings from a block; what is wrong is reported through `fields`.
    fn read(fields: &Fields, config: &Config) -> Self;

    /// Whether it can sit there.
    fn accepts(site: Site) -> bool;

    /// What is wrong with these settings on this module, in one sentence.
    ///
    /// # Errors
    /// The sentence.
    fn check(&self, module: &Module) -> Result<(), String>;

    /// The parameters that it adds at a module.
    fn parameters(&self, module: &Module) -> Vec<NewParameter>;

    /// The module's result with the delta: `x (rows, in)` is what the module reads, `y (rows, out)`
    /// what it gives, deltas that stand earlier in the file included.
    ///
    /// # Errors
    /// What the device reports.
    fn forward<D: Backend>(
        &self,
        at: &impl AtSite<D>,
        x: &Matrix<D>,
        y: Matrix<D>,
    ) -> Result<Matrix<D>, D::Err>;

    /// `ΔW (out, in)` to be added to the module's weight, where the method can be folded into it.
    /// `tensor` gives a parameter's elements.
    fn merged(&self, _module: &Module, _tensor: &dyn Fn(&str) -> Vec<f32>) -> Option<Vec<f32>> {
        None
    }
}

/// The statement that places a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// `insert … after`
    Insert,
    /// `reparam … on`
    Reparam,
}

impl Placement {
    /// The statement's keyword and preposition.
    pub fn words(self) -> (&'static str, &'static str) {
        match self {
            Placement::Insert => ("insert", "after"),
            Placement::Reparam => ("reparam", "on"),
        }
    }
}

/// A parameter that a delta adds.
#[derive(Clone, Debug, PartialEq)]
pub struct NewParameter {
    /// Its name at the site: `A`.
    pub name: &'static str,
    /// `(out, in)`, or `(out)`.
    pub shape: Vec<usize>,
    /// How it begins.
    pub init: Init,
}

/// How a new parameter begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// A normal distribution of mean 0 and this standard deviation.
    Normal(f32),
    /// A uniform distribution from minus to plus this bound.
    Uniform(f32),
}

/// What a method sees of the graph at one site.
pub trait AtSite<D: Backend> {
    /// A parameter of shape `(out, in)`.
    fn weight(&self, name: &str) -> Weight<D>;
    /// A parameter of shape `(out)`.
    fn vector(&self, name: &str) -> Vector<D>;
    /// Dropout, active in training only.
    ///
    /// # Errors
    /// What the device reports.
    fn dropout(&self, x: &Matrix<D>, probability: f32) -> Result<Matrix<D>, D::Err>;
}
