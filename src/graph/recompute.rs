//! Blocks that keep only their input for the backward pass, which computes everything else again (gradient checkpointing:
//! Chen et al., arXiv 1604.06174). A block gives the same elements both times, because its dropout depends on places
//! alone, and its operations add to gradients in the same order: the gradients are the same to the bit.

use super::forward::{BlockRows, Pass};
use crate::engine::{Gradients, Matrix, Outcome, Scalar};

/// A block of a pass whose operations the tape has forgotten.
pub(super) struct Forgotten {
    /// Its number.
    block: usize,
    rows: BlockRows,
    input: Matrix,
    output: Matrix,
    /// The number of operations on the tape before the block.
    before: usize,
}

impl Pass<'_> {
    /// Runs a block and keeps only its input, if a backward pass needs the block at all.
    pub(super) fn forget_block(
        &self,
        block: usize,
        input: Matrix,
        rows: BlockRows,
    ) -> Outcome<Matrix> {
        let before = self.trace.recorded();
        let output = self.block(&self.layers.blocks[block], input.clone(), &rows)?;
        if !output.is_traced() {
            return Ok(output);
        }
        self.trace.forget(before);
        let output = output.apart();
        self.forgotten.borrow_mut().push(Forgotten {
            block,
            rows,
            input,
            output: output.clone(),
            before,
        });
        Ok(output)
    }

    /// The gradients of a loss that this pass computed.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub(super) fn backward(&self, loss: Scalar) -> Outcome<Gradients> {
        loss.start_backward()?;
        drop(loss);
        while let Some(forgotten) = self.next_forgotten() {
            self.trace.run_back(forgotten.before)?;
            let block = &self.layers.blocks[forgotten.block];
            let output = self.block(block, forgotten.input, &forgotten.rows)?;
            output.take_gradient(&forgotten.output)?;
        }
        self.trace.run_back(0)?;
        Ok(self.trace.gradients())
    }

    /// The last of the forgotten blocks that the backward pass has not reached yet.
    fn next_forgotten(&self) -> Option<Forgotten> {
        self.forgotten.borrow_mut().pop()
    }
}
