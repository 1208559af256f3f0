//! The contribution of a group to the gradients of a batch, as processes send it.

use super::GroupGradients;
use crate::ranks::{taken, Portable};
use crate::task::Compared;

impl Portable for GroupGradients {
    /// All but deferred parts, which stay where they are.
    fn to_bytes(&self) -> Vec<u8> {
        let Compared {
            prompts,
            right,
            chosen,
            rejected,
        } = self.compared;
        let mut bytes = self.loss.to_le_bytes().to_vec();
        bytes.extend((prompts as u64).to_le_bytes());
        bytes.extend((right as u64).to_le_bytes());
        bytes.extend(chosen.to_le_bytes());
        bytes.extend(rejected.to_le_bytes());
        for (index, gradient) in &self.whole {
            bytes.extend((*index as u64).to_le_bytes());
            bytes.extend((gradient.len() as u64).to_le_bytes());
            bytes.extend(gradient.to_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let mut rest = bytes;
        let loss = f32::from_le_bytes(taken(&mut rest));
        let mut number = || u64::from_le_bytes(taken(&mut rest)) as usize;
        let (prompts, right) = (number(), number());
        let [chosen, rejected] = [0; 2].map(|_: i32| f64::from_le_bytes(taken(&mut rest)));
        let mut whole = Vec::new();
        while !rest.is_empty() {
            let [index, count] = [0; 2].map(|_: i32| u64::from_le_bytes(taken(&mut rest)) as usize);
            let (gradient, behind) = rest.split_at(4 * count);
            whole.push((index, Vec::from_bytes(gradient)));
            rest = behind;
        }
        GroupGradients {
            loss,
            compared: Compared {
                prompts,
                right,
                chosen,
                rejected,
            },
            whole,
            parts: Vec::new(),
        }
    }
}
