//! f32 products composed of int8 products, on processors that multiply bytes in tiles (AMX).

use super::Optimization;
use crate::engine::{uses_amx, Precision};

pub(super) const OPTIMIZATION: Optimization = Optimization {
    name: "products in f32 on AMX",
    check: |plan, _| {
        let hidden = plan.backbone.config.hidden;
        match plan.backbone.precision {
            Precision::Bf16 => Err("products are in 16 bits".to_owned()),
            _ if uses_amx(hidden, hidden) => Ok("elements are whole numbers of 24 bits".to_owned()),
            _ => Err("the processor has none, or the backbone is too narrow".to_owned()),
        }
    },
};
