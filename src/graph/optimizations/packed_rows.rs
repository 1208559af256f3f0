//! Sequences lie one after the other, without padding (`Layout` of the engine).

use super::Optimization;

pub(super) const OPTIMIZATION: Optimization = Optimization {
    name: "no padding",
    check: |_, _| Ok("sequences are packed, row after row, on the CPU".to_owned()),
};
