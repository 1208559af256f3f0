//! Reads the examples of a plan's stages, and each file only once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::reference::{check_final, reference};
use super::ROWS_AT_EACH_END;
use crate::data::{
    check_few, empty_part, nothing_to_predict, warn_of_overlap, DataSummary, Examples, Extent,
    Masking, Noising, RowFindings, Spans, TextEncoder,
};
use crate::diagnostic::{Problem, Span};
use crate::generate::{Decoding, Defaults, Writer};
use crate::graph::Graph;
use crate::plan::{
    DataPlan, Few, FileFormat, FilePlan, Keep, Part, Plan, StagePlan, TaskPlan, TextEncoding,
};
use crate::task::Noise;
use crate::train::{check_steps, evaluate, warn_of_warmup, Data, Evaluation, Measuring};

/// How a file is read for a task, whatever sets take of it. The task is identified by its place in the pipeline's text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Reading {
    paths: Vec<PathBuf>,
    format: FileFormat,
    columns: Option<Vec<String>>,
    separator: Option<char>,
    encoding: Option<TextEncoding>,
    most: Option<usize>,
    task: Span,
}

impl Reading {
    fn of(file: &FilePlan, task: &TaskPlan) -> Self {
        Reading {
            paths: file.paths(),
            format: file.format,
            columns: file.columns.clone(),
            separator: file.separator,
            encoding: file.encoding,
            most: file.most,
            task: task.span,
        }
    }
}

/// What a set takes of a file.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Drawn {
    few: Option<Few>,
    part: Option<Part>,
}

impl Drawn {
    fn of(file: &FilePlan) -> Self {
        Drawn {
            few: file.few,
            part: file.part,
        }
    }
}

/// Reads files of examples for the tasks of a plan.
pub struct Loader {
    encoder: Arc<TextEncoder>,
    backbone: PathBuf,
    vocabulary: usize,
    max_length: usize,
    has_prompts: bool,
    /// Examples by how their file is read, and by what is taken of it.
    read: BTreeMap<(Reading, Drawn), Arc<Examples>>,
}

impl Loader {
    /// A loader with the backbone's tokenizer.
    ///
    /// # Errors
    /// The tokenizer cannot be read.
    pub fn new(plan: &Plan) -> Result<Self, Problem> {
        let backbone = &plan.backbone;
        let vocabulary = backbone.config.vocabulary;
        let encoder = TextEncoder::of(backbone).map_err(|problem| problem.or_at(backbone.span))?;
        Ok(Loader {
            encoder: Arc::new(encoder),
            backbone: backbone.directory.clone(),
            vocabulary,
            max_length: backbone.max_length,
            has_prompts: has_prompts(plan),
            read: BTreeMap::new(),
        })
    }

    /// The tokenizer.
    pub fn encoder(&self) -> &TextEncoder {
        &self.encoder
    }

    /// The examples of every stage.
    ///
    /// # Errors
    /// What [`Examples::read`] reports.
    pub fn stages(&mut self, plan: &Plan) -> Result<Vec<Data>, Problem> {
        for (sets, task) in sets_of_one_file(plan) {
            self.read_sets(&sets, task)?;
        }
        let mut all = Vec::new();
        for stage in &plan.stages {
            let (Some(task), Some(data)) =
                (plan.tasks.get(&stage.task), plan.data.get(&stage.data))
            else {
                return Err(Problem::internal("a stage without its task or data"));
            };
            let train = match &data.train {
                Some(file) => self.file(file, task)?,
                None => Arc::default(),
            };
            let dev = match &data.dev {
                Some(file) => Some(self.file(file, task)?),
                None => None,
            };
            all.push(Data {
                noising: self.noising(task)?,
                writer: self.writer(task)?,
                shares: task.kind.shares(&train.label_counts(task)),
                train,
                dev,
            });
        }
        Ok(all)
    }

    /// The examples of one file.
    ///
    /// # Errors
    /// What [`Examples::read`] reports.
    pub fn file(&mut self, file: &FilePlan, task: &TaskPlan) -> Result<Arc<Examples>, Problem> {
        let key = (Reading::of(file, task), Drawn::of(file));
        if let Some(examples) = self.read.get(&key) {
            return Ok(examples.clone());
        }
        self.read_sets(&[file], task)?;
        let read = self.read.get(&key).cloned();
        read.ok_or_else(|| Problem::internal("a file that is not read"))
    }

    /// Reads a file once for all sets that take examples of it.
    fn read_sets(&mut self, sets: &[&FilePlan], task: &TaskPlan) -> Result<(), Problem> {
        let whole = Examples::read(sets[0], task, &self.encoder)?;
        let places = sets.iter().map(|set| whole.places(set, task));
        let places: Vec<Vec<usize>> = places.collect::<Result<_, _>>()?;
        for (set, examples) in sets.iter().zip(whole.share_out(&places)) {
            self.check_predicted(set, &examples)?;
            let key = (Reading::of(set, task), Drawn::of(set));
            self.read.insert(key, Arc::new(examples));
        }
        Ok(())
    }

    fn check_predicted(&self, file: &FilePlan, examples: &Examples) -> Result<(), Problem> {
        let predicted: usize = examples.iter().map(|example| example.predicted()).sum();
        if predicted == 0 && !self.has_prompts {
            return Err(nothing_to_predict(file));
        }
        Ok(())
    }

    /// Evaluates a graph, in which the deltas of a plan's final stage are, on a file.
    ///
    /// # Errors
    /// What [`Examples::read`] and [`reference`] report; the device fails.
    pub fn evaluate(
        &mut self,
        plan: &Plan,
        graph: &Graph,
        task: &TaskPlan,
        file: &FilePlan,
    ) -> Result<Evaluation, Problem> {
        let examples = self.file(file, task)?;
        let (writer, noising) = (self.writer(task)?, self.noising(task)?);
        let measuring = Measuring {
            noising: noising.as_ref(),
            writer: writer.as_ref(),
            reference: &reference(plan, graph, task, &examples)?,
        };
        evaluate(graph, &examples.unpacked(), task, measuring)
    }

    /// What writes texts for a task's metric; `None` unless the metric is one of texts. It takes the most probable tokens
    /// unless the pipeline says otherwise, whatever `generation_config.json` does for people.
    ///
    /// # Errors
    /// `generation_config.json` cannot be read.
    pub fn writer(&self, task: &TaskPlan) -> Result<Option<Writer>, Problem> {
        if !task.metric.is_of_texts() {
            return Ok(None);
        }
        let mut ends = Defaults::read(&self.backbone)?.ends;
        ends.extend(self.encoder.end_token());
        let decoding = Decoding::of(task.kind.wishes(), ends)?;
        Ok(Some(Writer::new(self.encoder.clone(), decoding)))
    }

    /// What a task hides from the model; `None` for a task that hides nothing.
    ///
    /// # Errors
    /// The tokenizer has no token that stands for what is hidden.
    pub fn noising(&self, task: &TaskPlan) -> Result<Option<Noising>, Problem> {
        let lacks = |what: &str, help: &str| {
            let message = format!("the tokenizer has no {what}");
            Problem::new("delta::data::no_mask", message)
                .at(task.span, "needed by this task")
                .help(help)
        };
        Ok(match task.kind.noise() {
            None => None,
            Some(Noise::Tokens(share)) => {
                let mask_token = self.encoder.mask_token().ok_or_else(|| {
                    let help = "use a backbone whose tokenizer has `[MASK]` or `<mask>`";
                    lacks("mask token", help)
                })?;
                Some(Noising::Tokens(Masking {
                    share,
                    mask_token,
                    vocabulary: self.vocabulary,
                }))
            }
            Some(Noise::Spans { share, length }) => {
                let marks = self.encoder.span_tokens();
                if marks.is_empty() {
                    let help = "use a T5, whose tokenizer has `<extra_id_0>` to `<extra_id_99>`";
                    return Err(lacks("token `<extra_id_0>`", help));
                }
                let longest = (self.max_length as f32 * share / length).round() as usize;
                if longest > marks.len() {
                    let message = format!(
                        "texts of up to {} tokens have up to {longest} spans, and the tokenizer has {} tokens for them",
                        self.max_length,
                        marks.len()
                    );
                    return Err(Problem::new("delta::data::no_mask", message)
                        .at(task.span, "of this task")
                        .help("raise `length`, or lower `mask` or `max_length`"));
                }
                Some(Noising::Spans(Spans {
                    share,
                    length,
                    marks,
                }))
            }
        })
    }
}

/// The sets of a plan that take different examples of the same files for one task.
fn sets_of_one_file(plan: &Plan) -> Vec<(Vec<&FilePlan>, &TaskPlan)> {
    let mut groups: Vec<(Vec<&FilePlan>, &TaskPlan)> = Vec::new();
    for (task, data, _) in uses(plan) {
        for set in [&data.train, &data.dev, &data.test].into_iter().flatten() {
            let is_like = |(sets, of): &&mut (Vec<&FilePlan>, &TaskPlan)| {
                Reading::of(sets[0], of) == Reading::of(set, task)
            };
            match groups.iter_mut().find(is_like) {
                None => groups.push((vec![set], task)),
                Some((sets, _)) if sets.iter().all(|own| Drawn::of(own) != Drawn::of(set)) => {
                    sets.push(set);
                }
                Some(_) => {}
            }
        }
    }
    groups.retain(|(sets, _)| sets.len() > 1);
    groups
}

/// The findings of a check of a plan's data.
#[derive(Default)]
pub struct DataCheck {
    /// The number of rows that were checked.
    pub rows: usize,
    /// The number of training examples of each stage.
    pub examples: Vec<usize>,
    /// Mistakes in the data.
    pub problems: Vec<Problem>,
    /// Warnings about the data.
    pub warnings: Vec<Problem>,
}

/// Checks rows of every file that a plan reads: encoding, width, labels, numbers, texts, and what the tokenizer makes of
/// them; and that there are as many as `few` and the stages need.
pub fn check_data(plan: &Plan, extent: Extent, loader: Option<&Loader>) -> DataCheck {
    let mut check = DataCheck::default();
    let mut seen: BTreeMap<Reading, RowFindings> = BTreeMap::new();
    let encoder = loader.map(Loader::encoder);
    for (task, data, stage) in uses(plan) {
        for (file, trains) in [(&data.train, true), (&data.dev, false), (&data.test, false)] {
            let Some(file) = file else { continue };
            let rows = seen.entry(Reading::of(file, task)).or_insert_with(|| {
                let extent = match draws_few_of(plan, file) {
                    true => Extent {
                        at_each_end: usize::MAX,
                        ..extent
                    },
                    false => extent,
                };
                let mut rows = RowFindings::check(file, task, extent, encoder);
                check.rows += rows.count;
                check.problems.append(&mut rows.problems);
                rows
            });
            check.problems.extend(lacking(plan, file, task, rows));
            if trains {
                rows.warn_of_training(file, task);
                check.examples.push(rows.count_of(file, task));
            }
            check.warnings.append(&mut rows.warnings);
        }
        let rows = |file: &FilePlan| seen.get(&Reading::of(file, task));
        if let (Some(train), Some(dev)) = (&data.train, &data.dev) {
            if let (Some(of_train), Some(of_dev)) = (rows(train), rows(dev)) {
                let overlap = warn_of_overlap(dev, of_dev, train, of_train);
                check.warnings.extend(overlap);
            }
        }
        if let (Some(stage), None) = (stage, &data.dev) {
            check.warnings.push(no_dev(stage));
        }
    }
    if let Some(loader) = loader {
        let noising = uses(plan)
            .into_iter()
            .map(|(task, ..)| loader.noising(task));
        check.problems.extend(noising.filter_map(Result::err));
    }
    check.problems.extend(check_final(plan).err());
    check.problems.dedup();
    if check.problems.is_empty() && check.examples.len() == plan.stages.len() {
        check
            .problems
            .extend(check_steps(plan, &check.examples).err());
        check.warnings.extend(warn_of_warmup(plan, &check.examples));
    }
    check.warnings.dedup();
    check
}

/// What a set lacks of the rows that its task, `few` or its part need.
fn lacking(plan: &Plan, file: &FilePlan, task: &TaskPlan, rows: &RowFindings) -> Vec<Problem> {
    let mut lacking = Vec::new();
    if rows.predict_nothing(task) && !has_prompts(plan) {
        lacking.push(nothing_to_predict(file));
    }
    if let Some(few) = &file.few {
        let problem = check_few(few, task, &rows.labels).err();
        lacking.extend(problem.map(|problem| problem.or_at(file.span)));
    }
    let is_empty = |part: Part| rows.all > 0 && part.of(rows.all).is_empty();
    if file.part.is_some_and(is_empty) {
        lacking.push(empty_part(rows.all).or_at(file.span));
    }
    lacking
}

/// The warning that a stage has no set to measure its quality on.
fn no_dev(stage: &StagePlan) -> Problem {
    let kept = match stage.keep {
        Keep::Best => ", and `keep = best` keeps the last step",
        Keep::Last => "",
    };
    let name = &stage.name;
    let message = format!("stage `{name}` has no `dev` set to measure its quality{kept}");
    let problem = Problem::warning("delta::data::no_dev", message).at(stage.span, "here");
    problem.help(
        "add a file of its own, or hold out a part of the training file: `dev = split(train, 10%)`",
    )
}

/// Whether a plan draws a few examples of each label of this file, all of whose labels count then.
fn draws_few_of(plan: &Plan, of: &FilePlan) -> bool {
    let sets = |data: &DataPlan| [data.train.clone(), data.dev.clone(), data.test.clone()];
    let mut files = plan.data.values().flat_map(sets).flatten();
    files.any(|file| file.few.is_some() && file.paths() == of.paths())
}

/// Whether prompts stand before texts, whose last row predicts the first token.
fn has_prompts(plan: &Plan) -> bool {
    (0..=plan.stages.len()).any(|stage| plan.tokens(stage) > plan.prefix_tokens(stage))
}

/// Looks at the data of a plan, at a thousand rows at each end of its files.
pub fn summarize(plan: &Plan) -> DataSummary {
    let extent = Extent {
        at_each_end: ROWS_AT_EACH_END,
        encoded: usize::MAX,
    };
    let mut found = DataSummary::default();
    let Ok(loader) = Loader::new(plan) else {
        return found;
    };
    let mut known: BTreeMap<Reading, RowFindings> = BTreeMap::new();
    for (task, data, stage) in uses(plan) {
        let sets = [
            ("train", &data.train),
            ("dev", &data.dev),
            ("test", &data.test),
        ];
        for (name, file) in sets {
            let Some(file) = file else { continue };
            let key = Reading::of(file, task);
            let check = || RowFindings::check(file, task, extent, Some(loader.encoder()));
            let rows = known.entry(key).or_insert_with(check);
            let set = (name, rows.summary(file, task));
            if rows.all > 0 && !found.sets.contains(&set) {
                found.sets.push(set);
            }
            if name == "train" && stage.is_some() {
                found.lengths.push(rows.mean_length());
            }
        }
        if data.train.is_none() && stage.is_some() {
            found.lengths.push(None);
        }
    }
    found
}

/// The first example that each task with answers reads from its training file, token by token: the file, and each
/// token with whether it is learned. Nothing of a file that cannot be read: `check` says why.
pub fn first_examples(plan: &Plan) -> Vec<(PathBuf, Vec<(String, bool)>)> {
    let Ok(loader) = Loader::new(plan) else {
        return Vec::new();
    };
    let mut seen: Vec<Reading> = Vec::new();
    let mut shown = Vec::new();
    for (task, data, _) in uses(plan) {
        let file = data.train.as_ref().or(data.dev.as_ref());
        let Some(file) = file.filter(|_| task.kind.has_answers()) else {
            continue;
        };
        let key = Reading::of(file, task);
        if seen.contains(&key) {
            continue;
        }
        seen.push(key);
        if let Ok(first) = Examples::first(file, task, loader.encoder()) {
            let tokens = first.text.tokens.iter().zip(first.learned());
            let tokens = tokens.map(|(token, learned)| (loader.encoder().shown(*token), learned));
            shown.push((file.path.clone(), tokens.collect()));
        }
    }
    shown
}

/// The task and the data of each stage. Without stages, the final task and data.
fn uses(plan: &Plan) -> Vec<(&TaskPlan, &DataPlan, Option<&StagePlan>)> {
    let of_stage = |stage: &'_ StagePlan| {
        let (task, data) = (plan.tasks.get(&stage.task)?, plan.data.get(&stage.data)?);
        Some((task, data))
    };
    match plan.stages.is_empty() {
        false => plan
            .stages
            .iter()
            .filter_map(|stage| of_stage(stage).map(|(task, data)| (task, data, Some(stage))))
            .collect(),
        true => {
            let task = plan.final_task().map(|(_, task)| task);
            let found = task.zip(plan.final_data());
            found
                .into_iter()
                .map(|(task, data)| (task, data, None))
                .collect()
        }
    }
}
