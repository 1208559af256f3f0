//! Products with frozen weights in bfloat16, if the file sets `precision = bf16`.

use super::Optimization;
use crate::engine::Precision;

pub(super) const OPTIMIZATION: Optimization = Optimization {
    name: "products in 16 bits",
    check: |plan, _| match plan.backbone.precision {
        Precision::Bf16 => {
            Ok("frozen weights and what they multiply are rounded to bfloat16".to_owned())
        }
        Precision::F32 => {
            Err("not asked for: `precision = bf16` in `backbone`, with its error".to_owned())
        }
    },
};
