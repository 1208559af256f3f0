//! Reads parts of a `config.json` that follow from several keys.

use super::architecture::Distances;
use super::config_keys::ConfigKeys;
use super::family::{Family, FeedForwardEntry};
use super::keys::Keys;
use super::rotary::Rotary;
use crate::text::quoted_list;

/// The name of an activation, and whether it stands for a gated feed-forward.
pub(super) fn gating<'n>(family: &Family, name: &'n str) -> (&'n str, bool) {
    match name.strip_prefix("gated-") {
        Some(gated) if family.feed_forward == FeedForwardEntry::Named => (gated, true),
        _ => (name, false),
    }
}

/// The padding token; `None` for -1, unless positions are counted from its id.
pub(super) fn pad_token(keys: &Keys, family: &Family) -> Result<Option<u32>, String> {
    let key = &family.config.pad_token;
    let token = keys.token(key)?;
    match (family.positions_follow_padding, token, keys.find(key)?) {
        (true, None, Some(stated)) => Err(format!(
            "its `{}` must be a token id, found {stated}",
            key.key
        )),
        _ => Ok(token),
    }
}

/// The rotary embeddings, if the family has them.
pub(super) fn rotary(
    keys: &Keys,
    family: &Family,
    positions: usize,
) -> Result<Option<Rotary>, String> {
    let Some(key) = &family.config.rope_theta else {
        return Ok(None);
    };
    let windows = family.windows.as_ref();
    let has_two = windows.is_some_and(|windows| windows.rope_theta.is_some());
    let layers = has_two.then_some("full_attention");
    let rotary = Rotary::parse(keys.0, keys.positive(key)?, positions, layers)?;
    let (kind, kinds) = (rotary.scaling.name(), &family.rope_types);
    if !kinds.is_empty() && kinds.iter().all(|own| own != kind) {
        return Err(format!(
            "its rotary scaling (`rope_scaling` or `rope_parameters`) is `{kind}`, but a {} has {}",
            family.model_types[0],
            quoted_list(kinds.iter().map(String::as_str))
        ));
    }
    if rotary.share != 1.0 && !family.partial_rotary {
        return Err(format!(
            "its `partial_rotary_factor` is {}, but a {} rotates all columns of a head",
            rotary.share, family.model_types[0]
        ));
    }
    Ok(Some(rotary))
}

pub(super) fn distances(keys: &Keys, stated: &ConfigKeys) -> Result<Option<Distances>, String> {
    let (Some(buckets), Some(longest)) = (&stated.distance_buckets, &stated.longest_distance)
    else {
        return Ok(None);
    };
    Ok(Some(Distances {
        buckets: keys.count(buckets)?,
        longest: keys.count(longest)?,
    }))
}

pub(super) fn initializer_range(keys: &Keys, stated: &ConfigKeys) -> Result<f32, String> {
    // transformers treats a range of 0 as absent.
    const USUAL: f32 = 0.02;
    match (&stated.initializer_range, &stated.initializer_factor) {
        (Some(key), _) => keys.fraction(key).map(|range| match range {
            0.0 => USUAL,
            range => range,
        }),
        (None, Some(key)) => keys.positive(key).map(|factor| factor as f32),
        (None, None) => Ok(USUAL),
    }
}
