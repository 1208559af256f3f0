//! What the rows of a set are like, in words.

use std::path::Path;

use super::rows::RowFindings;
use crate::plan::{FilePlan, TaskPlan};
use crate::text::{counted, quoted_list};

/// What a plan's data is like; nothing of what cannot be read.
#[derive(Default)]
pub struct DataSummary {
    /// The mean number of tokens of each stage's training texts.
    pub lengths: Vec<Option<usize>>,
    /// Each set once: what it is for, and its rows, labels and lengths in words.
    pub sets: Vec<(&'static str, String)>,
}

/// The last part of a path.
fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}

impl RowFindings {
    /// The number of rows that a set takes of its file.
    pub fn count_of(&self, set: &FilePlan, task: &TaskPlan) -> usize {
        match (&set.few, &set.part) {
            (Some(few), _) => few.per_class * task.kind.labels().len(),
            (None, Some(part)) => part.of(self.all).len(),
            (None, None) => self.all,
        }
    }

    /// The rows of a set, the shares of its labels and the lengths of its texts, in words.
    pub fn summary(&self, file: &FilePlan, task: &TaskPlan) -> String {
        let rows = self.count_of(file, task);
        let names: Vec<String> = file.paths().iter().map(|path| name(path)).collect();
        let names = quoted_list(names.iter().map(String::as_str));
        let mut text = format!("{} of {names}", counted(rows, "row"));
        if file.few.is_none() {
            text += &self.shares(task);
        }
        let mut lengths = self.tokens.lengths.clone();
        lengths.sort_unstable();
        if let Some(longest) = lengths.last() {
            let at = |share: usize| lengths[(lengths.len() - 1) * share / 100];
            let of = match self.is_whole {
                true => String::new(),
                false => format!(" (of {} that were read)", counted(self.count, "row")),
            };
            text += &format!(
                "; {} tokens in the median, {} at 95 %, {longest} at most{of}",
                at(50),
                at(95)
            );
        }
        text
    }

    /// The shares of the most frequent labels.
    fn shares(&self, task: &TaskPlan) -> String {
        /// Labels that are shown.
        const MOST: usize = 4;
        let labels = task.kind.labels().iter().zip(&self.labels);
        let mut labels: Vec<(&str, usize)> = labels
            .map(|(label, count)| (label.name.as_str(), *count))
            .collect();
        let all: usize = labels.iter().map(|(_, count)| count).sum();
        if all == 0 {
            return String::new();
        }
        labels.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let share = |(name, count): &(&str, usize)| {
            format!("{name} {:.0} %", 100.0 * *count as f64 / all as f64)
        };
        let shown: Vec<String> = labels.iter().take(MOST).map(share).collect();
        let more = match labels.split_off(labels.len().min(MOST)).as_slice() {
            [] => String::new(),
            [rest @ .., rarest] => {
                format!(", {} more (the rarest: {})", rest.len() + 1, share(rarest))
            }
        };
        format!(": {}{more}", shown.join(", "))
    }
}
