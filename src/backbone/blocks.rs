//! Blocks that differ from each other: those that attend within a window, and those that rotate by other angles.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::family::Key;
use super::keys::Keys;
use super::rotary::Rotary;

/// What may differ between the attentions of a backbone's blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockKind {
    /// A position sees only keys that are fewer positions away than this, itself included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// How it rotates queries and keys.
    #[serde(default)]
    pub rotation: Rotation,
}

/// How a block rotates queries and keys, in a family with rotary embeddings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rotation {
    /// By the backbone's frequencies.
    #[default]
    Usual,
    /// By the frequencies of blocks with a window.
    Local,
    /// Not at all.
    Off,
}

/// A family's description of the blocks that attend within a window.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Windows {
    /// The window. `null`, or absent without a default: no block has one.
    pub size: Key,
    /// Whether the window covers both sides: a position then sees half of it on each.
    #[serde(default)]
    pub is_two_sided: bool,
    /// Whether the backbone has windows at all. Without this key, it has.
    pub switch: Option<Key>,
    /// A list with `sliding_attention` or `full_attention` for each block. It counts before the next three keys.
    pub types: Option<Key>,
    /// Blocks below this number have no window.
    pub full_below: Option<Key>,
    /// The first of every so many blocks has no window.
    pub full_first_of: Option<Count>,
    /// The last of every so many blocks has no window.
    pub full_last_of: Option<Count>,
    /// The base of the rotary frequencies of blocks with a window, if it is not that of the others.
    pub rope_theta: Option<Key>,
}

/// A family's description of the blocks that do not rotate queries and keys.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unrotated {
    /// A list with 0 for each block that does not, and 1 for the others. It counts before the next key.
    pub rotated: Key,
    /// The last of every so many blocks does not.
    pub last_of: Count,
}

/// A number that is the same for the whole family, or one that `config.json` states.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Count {
    /// The family's own.
    Fixed(usize),
    /// Read from `config.json`.
    Stated(Key),
}

impl Count {
    fn read(&self, keys: &Keys) -> Result<usize, String> {
        match self {
            Count::Fixed(count) => Ok(*count),
            Count::Stated(key) => keys.count(key),
        }
    }

    fn key(&self) -> Option<&Key> {
        match self {
            Count::Fixed(_) => None,
            Count::Stated(key) => Some(key),
        }
    }
}

impl Windows {
    /// The keys that it reads.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        let cycles = [&self.full_first_of, &self.full_last_of];
        let cycles = cycles.into_iter().flatten().filter_map(Count::key);
        let keys = [
            &self.switch,
            &self.types,
            &self.full_below,
            &self.rope_theta,
        ];
        let keys = keys.into_iter().flatten();
        std::iter::once(&self.size).chain(keys).chain(cycles)
    }

    /// The window of each block.
    fn read(&self, keys: &Keys, blocks: usize) -> Result<Vec<Option<usize>>, String> {
        if !keys.switch_or(&self.switch, true)? {
            return Ok(vec![None; blocks]);
        }
        let Some(size) = keys.optional_count(&self.size)? else {
            return match self.rope_theta {
                None => Ok(vec![None; blocks]),
                Some(_) => Err(format!(
                    "its `{}` is null, but its blocks with a window rotate by angles of their own",
                    self.size.key
                )),
            };
        };
        let window = match self.is_two_sided {
            true => size / 2 + 1,
            false => size,
        };
        let is_full: Vec<bool> = match &self.types {
            Some(key) if keys.find(key)?.is_some() => {
                let word = |entry: &Value| match entry.as_str() {
                    Some("full_attention") => Some(true),
                    Some("sliding_attention") => Some(false),
                    _ => None,
                };
                keys.list(key, blocks, "`sliding_attention` or `full_attention`", word)?
            }
            _ => {
                let below = match &self.full_below {
                    Some(key) => keys.count_or_zero(key)?,
                    None => 0,
                };
                let cycle = |count: &Option<Count>| match count {
                    Some(count) => count.read(keys).map(Some),
                    None => Ok(None),
                };
                let (first, last) = (cycle(&self.full_first_of)?, cycle(&self.full_last_of)?);
                let is_full = |block: usize| {
                    block < below
                        || first.is_some_and(|count| block.is_multiple_of(count))
                        || last.is_some_and(|count| (block + 1).is_multiple_of(count))
                };
                (0..blocks).map(is_full).collect()
            }
        };
        let of_block = |is_full: bool| (!is_full).then_some(window);
        Ok(is_full.into_iter().map(of_block).collect())
    }
}

impl Unrotated {
    /// The keys that it reads.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.rotated).chain(self.last_of.key())
    }

    fn read(&self, keys: &Keys, blocks: usize) -> Result<Vec<bool>, String> {
        if keys.find(&self.rotated)?.is_some() {
            let word = |entry: &Value| match entry.as_u64() {
                Some(rotated @ (0 | 1)) => Some(rotated == 0),
                _ => None,
            };
            return keys.list(&self.rotated, blocks, "0 or 1", word);
        }
        let count = self.last_of.read(keys)?;
        let is_last = |block: usize| (block + 1).is_multiple_of(count);
        Ok((0..blocks).map(is_last).collect())
    }
}

/// The kinds of all blocks, empty if none differs from [`BlockKind::default`]; and the rotary embeddings of the blocks
/// that have other frequencies.
pub(super) fn read_blocks(
    keys: &Keys,
    (windows, unrotated): (Option<&Windows>, Option<&Unrotated>),
    (blocks, positions): (usize, usize),
) -> Result<(Vec<BlockKind>, Option<Rotary>), String> {
    let mut kinds = vec![BlockKind::default(); blocks];
    let mut local = None;
    if let Some(windows) = windows {
        let sizes = windows.read(keys, blocks)?;
        if let Some(key) = &windows.rope_theta {
            let theta = keys.positive(key)?;
            local = Some(Rotary::parse(
                keys.0,
                theta,
                positions,
                Some("sliding_attention"),
            )?);
        }
        for (kind, window) in kinds.iter_mut().zip(sizes) {
            kind.window = window;
            if window.is_some() && local.is_some() {
                kind.rotation = Rotation::Local;
            }
        }
    }
    if let Some(unrotated) = unrotated {
        for (kind, is_off) in kinds.iter_mut().zip(unrotated.read(keys, blocks)?) {
            if is_off {
                kind.rotation = Rotation::Off;
            }
        }
    }
    let is_usual = |kind: &BlockKind| *kind == BlockKind::default();
    if kinds.iter().all(is_usual) {
        kinds.clear();
    }
    let is_local = |kind: &BlockKind| kind.rotation == Rotation::Local;
    let local = local.filter(|_| kinds.iter().any(is_local));
    Ok((kinds, local))
}
