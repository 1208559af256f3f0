//! Parameters in a pass: as variables on its tape where they are trained, and as constants otherwise.

use super::forward::Pass;
use super::layers::{Handle, ParameterIndex};
use super::ParameterValue;
use crate::engine::{Precision, Trace, Vector, Weight};

impl Pass<'_> {
    fn value(&self, handle: Handle) -> (&ParameterValue, Trace) {
        let trace = match handle.is_trained {
            true => self.trace.clone(),
            false => Trace::off(),
        };
        let value = match handle.index {
            ParameterIndex::Backbone(index) => &self.graph.base[index],
            ParameterIndex::Added(index) => &self.graph.values[index],
        };
        (value, trace)
    }

    pub(super) fn weight(&self, handle: Handle) -> Weight {
        let (ParameterValue::Matrix(elements, prepared), trace) = self.value(handle) else {
            unreachable!("a weight is a matrix");
        };
        Weight::new(elements, prepared, &trace).in_precision(match handle.index {
            ParameterIndex::Backbone(_) => self.graph.precision,
            ParameterIndex::Added(_) => Precision::F32,
        })
    }

    pub(super) fn vector(&self, handle: Handle) -> Vector {
        let (ParameterValue::Vector(tensor), trace) = self.value(handle) else {
            unreachable!("a bias, or the weight of a norm, is a vector");
        };
        tensor.on(&trace)
    }
}
