//! Opens a finished run, or a backbone with an adapter that PEFT saved, for prediction.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::tying::has_head_weight;
use super::{FinishedRun, Integrity};
use crate::backbone::family::HeadKind;
use crate::backbone::{
    exists, fetch_weights, head_parameters, locate, own_storage, read_config, read_text,
    Checkpoint, Config, Parameter,
};
use crate::delta::ParameterId;
use crate::diagnostic::{Problem, Span};
use crate::engine::{Device, Precision};
use crate::graph::{Graph, Tensors};
use crate::peft;
use crate::plan::{BackbonePlan, DeltaPlan, Label, Metric, Plan, Task, TaskPlan};
use crate::task::{CausalLm, Classify, Regress, Seq2seq, Several, Tag, Wishes};

/// The longest text that a model reads which no run has set a length for, in tokens.
const LONGEST: usize = 512;

/// A model that is ready to predict.
pub struct Loaded {
    /// Its plan.
    pub plan: Plan,
    /// Its graph, with all deltas and the head in place and nothing trained.
    pub graph: Graph,
    /// The run; `None` for an adapter.
    pub run: Option<FinishedRun>,
}

/// Settings of an adapter's input, which the adapter does not store.
#[derive(Clone, Copy, Default)]
pub struct Reads<'a> {
    /// The columns of texts.
    pub columns: Option<&'a [String]>,
    /// The text before every source.
    pub source_prefix: Option<&'a str>,
}

impl Loaded {
    /// Its task: the last stage's.
    ///
    /// # Errors
    /// The plan has none, which planning does not allow.
    pub fn task(&self) -> Result<&TaskPlan, Problem> {
        let task = self.plan.final_task().map(|(_, task)| task);
        task.ok_or_else(|| Problem::internal("a run without a task"))
    }
}

impl Reads<'_> {
    /// The command-line options that gave these settings.
    fn options(&self) -> impl Iterator<Item = &'static str> {
        let columns = self.columns.map(|_| "--text");
        let prefix = self.source_prefix.map(|_| "--source-prefix");
        columns.into_iter().chain(prefix)
    }
}

/// Opens the directory of a run, or of an adapter that PEFT saved.
///
/// `backbone` overrides the location of the backbone. `reads` has the settings that an adapter does not store.
///
/// # Errors
/// The directory has neither a run nor an adapter; the backbone is not the one that was trained on; tensors do
/// not fit.
pub fn open_run(
    directory: &Path,
    backbone: Option<&str>,
    reads: Reads,
    integrity: Integrity,
    device: Device,
) -> Result<Loaded, Problem> {
    let is_partial = directory
        .extension()
        .is_some_and(|ending| ending == "partial");
    if directory.join("plan.yaml").exists() && !is_partial {
        if let Some(option) = reads.options().next() {
            let message =
                format!("`{option}` applies only to adapters: a run records what it reads");
            return Err(Problem::new("delta::run::reads", message).help("remove the option"));
        }
        open_own(directory, backbone, integrity, device)
    } else if directory.join("adapter_config.json").exists() {
        open_adapter(directory, backbone, reads, device)
    } else if is_language_model(directory)? {
        if backbone.is_some() {
            let message = format!(
                "`{}` is a model itself, and has no backbone",
                directory.display()
            );
            return Err(Problem::new("delta::run::reads", message).help("leave out `--backbone`"));
        }
        open_backbone(directory, reads, device)
    } else {
        if let Some(partial) = unfinished(directory) {
            let message = format!("the run `{}` is unfinished", partial.display());
            return Err(Problem::new("delta::run::not_a_run", message).help(
                "run its `.delta` file again with the same `--out`: it goes on where it stopped",
            ));
        }
        let message = match directory.exists() {
            true => format!("`{}` is neither a run nor an adapter", directory.display()),
            false => format!("there is no `{}`", directory.display()),
        };
        let problem = Problem::new("delta::run::not_a_run", message);
        let below = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut adapters = below
            .map(|entry| entry.path())
            .filter(|path| path.join("adapter_config.json").exists());
        Err(match adapters.next() {
            Some(adapter) => problem.help(format!(
                "name the folder in which PEFT saved the named adapter: `{}`",
                adapter.display()
            )),
            None => problem.help("name a directory with `plan.yaml` (written by a run), `adapter_config.json` (saved by PEFT), or a language model's `config.json`"),
        })
    }
}

/// The directory of a run that has not ended, if this is its name.
fn unfinished(directory: &Path) -> Option<PathBuf> {
    let name = directory.file_name()?.to_str()?;
    let partial = directory.with_file_name(format!("{name}.partial"));
    let has_plan =
        |place: &PathBuf| place.join("plan.yaml").exists() || place.join("manifest.yaml").exists();
    [partial, directory.to_owned()].into_iter().find(|place| {
        place.extension().is_some_and(|ending| ending == "partial") && has_plan(place)
    })
}

fn open_own(
    directory: &Path,
    backbone: Option<&str>,
    integrity: Integrity,
    device: Device,
) -> Result<Loaded, Problem> {
    let run = FinishedRun::open(directory, integrity)?;
    let mut plan = run.plan()?;
    // Predict in f32, so that results do not depend on the processor.
    plan.backbone.precision = Precision::F32;
    if let Some(name) = backbone {
        plan.backbone.directory = locate(name, Path::new(""))?;
    }
    fetch_weights(backbone.unwrap_or(&plan.backbone.location))?;
    read_config(&plan.backbone.directory).map_err(|problem| match backbone {
        None => problem
            .help("name the place that it has moved to: `--backbone DIRECTORY`, or a GGUF file"),
        Some(_) => problem,
    })?;
    run.check_backbone(&plan.backbone)?;
    let stored = run.tensors()?;
    let mut tensors = Tensors::new();
    for name in stored.names() {
        tensors.insert(name.to_owned(), stored.read(name)?);
    }
    let mut graph = Graph::load(&plan, device)?;
    graph.set(tensors)?;
    graph.adopt_heads();
    graph.activate(&plan, plan.stages.len())?;
    let run = Some(run);
    Ok(Loaded { plan, graph, run })
}

fn open_adapter(
    directory: &Path,
    backbone: Option<&str>,
    reads: Reads,
    device: Device,
) -> Result<Loaded, Problem> {
    let stated = || -> Option<String> {
        let text = std::fs::read_to_string(directory.join("adapter_config.json")).ok()?;
        let json: serde_json::Value = serde_json::from_str(&text).ok()?;
        json["base_model_name_or_path"].as_str().map(str::to_owned)
    };
    let location = backbone.map(str::to_owned).or_else(stated).ok_or_else(|| {
        Problem::new(
            "delta::run::no_backbone",
            "the adapter does not name its backbone",
        )
        .help("name it with `--backbone DIR`")
    })?;
    let base = locate(&location, Path::new(""))?;
    if backbone.is_none() && !base.exists() {
        let message =
            format!("the adapter names the backbone `{location}`, which is not a directory here");
        let help = "name its directory with `--backbone DIR`, or the model on the Hub with `--backbone hf:organisation/name`";
        return Err(Problem::new("delta::run::no_backbone", message).help(help));
    }
    fetch_weights(&location)?;
    let mut config = read_config(&base)?;
    if peft::is_language_model(directory) {
        config.has_head_weight = has_head_weight(&config, &base)?;
    }
    let imported = peft::import(directory, &config)?;
    config.has_head_weight = imported.has_head_weight;
    let usual: &[&str] = match (imported.head, config.decoder_layers) {
        (HeadKind::LanguageModel, Some(_)) => &["source", "target"],
        (HeadKind::Tag, _) => &["tokens"],
        _ => &["text"],
    };
    let usual = || usual.iter().map(|name| (*name).to_owned()).collect();
    let columns = reads.columns.map_or_else(usual, <[String]>::to_vec);
    let mut task = match imported.head {
        HeadKind::LanguageModel => language_model_task(columns, &config)?,
        kind => {
            let outputs = imported.outputs;
            let outputs = outputs.or_else(|| stored_outputs(&base, &config, kind));
            let outputs = outputs.ok_or_else(|| {
                Problem::new(
                    "delta::run::no_head",
                    "neither the adapter (`modules_to_save`) nor the backbone has a classification head",
                )
                .help("save the adapter with `task_type=\"SEQ_CLS\"`, `\"TOKEN_CLS\"` for labels of words, or `\"CAUSAL_LM\"` for a model that writes")
            })?;
            let labels = labels_of(&base, outputs);
            match kind {
                HeadKind::Tag => tag_task(labels, columns),
                _ => classify_task(labels, columns, has_several_labels(&base)),
            }
        }
    };
    set_prefix(&mut task, reads)?;
    let tokenizer = directory
        .join("tokenizer.json")
        .exists()
        .then(|| directory.to_owned());
    let plan = plan_of(location, base, tokenizer, config, task, imported.deltas);
    let mut graph = Graph::load(&plan, device)?;
    let tensors = of_head_where_missing(imported.tensors, &graph);
    let given: BTreeSet<String> = tensors.keys().cloned().collect();
    graph.set(tensors)?;
    graph.adopt_heads();
    graph.activate(&plan, 0)?;
    check_head(&graph, &plan, &given)?;
    Ok(Loaded {
        plan,
        graph,
        run: None,
    })
}

/// Checks that the adapter or the backbone has each weight of the head: PEFT draws one that both lack anew whenever it loads
/// the adapter.
fn check_head(graph: &Graph, plan: &Plan, given: &BTreeSet<String>) -> Result<(), Problem> {
    let Ok(file) = Checkpoint::open_directory(&plan.backbone.directory) else {
        return Ok(());
    };
    let prefix = plan.name_prefix();
    let is_drawn = |parameter: &Parameter, id: &ParameterId| {
        !parameter.is_bias()
            && !given.contains(&id.to_string())
            && file.find(parameter, prefix).is_none()
    };
    let heads = graph.head_ids();
    let Some((drawn, _)) = heads.iter().find(|(parameter, id)| is_drawn(parameter, id)) else {
        return Ok(());
    };
    let name = &drawn.source.name;
    let message = format!("neither the adapter nor the backbone has the head's `{name}`, which PEFT draws anew each time");
    let module = name.split('.').next().unwrap_or_default();
    Err(Problem::new("delta::run::no_head", message).help(format!(
        "train and save it with the adapter: `modules_to_save=[\"{module}\", ...]`"
    )))
}

/// Whether a directory has a model that writes text.
fn is_language_model(directory: &Path) -> Result<bool, Problem> {
    if !exists(&directory.join("config.json")) {
        return Ok(false);
    }
    let config = read_config(directory)?;
    let heads = &config.family().heads;
    Ok(heads.causal_lm.is_some() || heads.seq2seq.is_some())
}

/// Opens a language model on its own.
fn open_backbone(directory: &Path, reads: Reads, device: Device) -> Result<Loaded, Problem> {
    let mut config = read_config(directory)?;
    config.has_head_weight = has_head_weight(&config, directory)?;
    let usual: &[&str] = match config.decoder_layers {
        Some(_) => &["source", "target"],
        None => &["text"],
    };
    let usual = || usual.iter().map(|name| (*name).to_owned()).collect();
    let columns = reads.columns.map_or_else(usual, <[String]>::to_vec);
    let mut task = language_model_task(columns, &config)?;
    set_prefix(&mut task, reads)?;
    let location = directory.display().to_string();
    let plan = plan_of(
        location,
        directory.to_owned(),
        None,
        config,
        task,
        Vec::new(),
    );
    let mut graph = Graph::load(&plan, device)?;
    graph.activate(&plan, 0)?;
    Ok(Loaded {
        plan,
        graph,
        run: None,
    })
}

fn set_prefix(task: &mut TaskPlan, reads: Reads) -> Result<(), Problem> {
    if let Some(prefix) = reads.source_prefix {
        if !task.kind.set_source_prefix(prefix) {
            let message = "`--source-prefix` applies only to sequence-to-sequence adapters";
            return Err(Problem::new("delta::run::reads", message).help("remove the option"));
        }
    }
    Ok(())
}

/// A plan without stages.
fn plan_of(
    location: String,
    directory: PathBuf,
    tokenizer: Option<PathBuf>,
    config: Config,
    task: TaskPlan,
    deltas: Vec<DeltaPlan>,
) -> Plan {
    let storage = own_storage(&directory).unwrap_or_default();
    let mut plan = Plan {
        name: "adapter".to_owned(),
        seed: 0,
        params: Default::default(),
        backbone: BackbonePlan {
            location,
            directory,
            tokenizer,
            max_length: config.longest().min(LONGEST),
            config,
            random: false,
            precision: Precision::F32,
            storage,
            span: Span::default(),
        },
        data: Default::default(),
        tasks: [("task".to_owned(), task)].into(),
        deltas,
        stages: Vec::new(),
    };
    let room = plan.backbone.config.limit() - plan.tokens(0);
    plan.backbone.max_length = plan.backbone.max_length.min(room);
    plan
}

/// The number of outputs of the head in a backbone's checkpoint, if there is one.
fn stored_outputs(backbone: &Path, config: &Config, kind: HeadKind) -> Option<usize> {
    let family = config.family();
    let file = Checkpoint::open_directory(backbone).ok()?;
    let weight = head_parameters(config, family.heads.of(kind)?, 1)
        .into_iter()
        .rfind(|parameter| !parameter.is_bias())?;
    let name = file.find(&weight, &family.base_model_prefix)?;
    file.shape(&name)?.first().copied()
}

/// Renames an adapter's tensors for a module that the backbone lacks (BERT's pooler), because such a module belongs to
/// the head.
fn of_head_where_missing(tensors: Tensors, graph: &Graph) -> Tensors {
    let renamed = |key: String| match key.strip_prefix("unfrozen.") {
        Some(path) if graph.tensor(&key).is_none() => format!("task.{path}"),
        _ => key,
    };
    tensors
        .into_iter()
        .map(|(key, tensor)| (renamed(key), tensor))
        .collect()
}

/// A task that predicts each token of a text from those before it. If there is an encoder, that text is the second of
/// two.
fn language_model_task(text: Vec<String>, config: &Config) -> Result<TaskPlan, Problem> {
    let wrong = |message: &str, help: &str| {
        Err(Problem::new("delta::run::columns", message.to_owned()).help(help))
    };
    let kind = match (config.decoder_layers, text.as_slice()) {
        (None, [_]) => Task::from(CausalLm { text }),
        (Some(_), [source, target]) => Task::from(Seq2seq {
            text: vec![source.clone()],
            label: target.clone(),
            prefix: String::new(),
            separator: None,
            generate: Wishes::default(),
        }),
        (None, _) => {
            return wrong(
                "a language model reads one column",
                "name it with `--text COLUMN`",
            )
        }
        (Some(_), _) => {
            return wrong(
                "a sequence-to-sequence model reads two columns",
                "name them with `--text SOURCE,TARGET`",
            )
        }
    };
    Ok(TaskPlan {
        has_found_labels: false,
        kind,
        metric: Metric::Loss,
        span: Span::default(),
    })
}

/// What a backbone's `config.json` says; nothing if it cannot be read.
fn stated(backbone: &Path) -> serde_json::Value {
    read_text(&backbone.join("config.json"))
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default()
}

/// The labels that the backbone's `config.json` names, or `LABEL_0` and so on.
fn labels_of(backbone: &Path, outputs: usize) -> Vec<Label> {
    let json = stated(backbone);
    let named = json["id2label"]
        .as_object()
        .filter(|names| names.len() == outputs);
    let name = |number: usize| {
        let stored = named
            .and_then(|names| names.get(&number.to_string()))
            .and_then(|name| name.as_str());
        stored.map_or_else(|| format!("LABEL_{number}"), str::to_owned)
    };
    let label = |number: usize| Label {
        value: number.to_string(),
        name: name(number),
    };
    (0..outputs).map(label).collect()
}

/// Whether the backbone's `config.json` says that a text has several labels.
fn has_several_labels(backbone: &Path) -> bool {
    stated(backbone)["problem_type"] == "multi_label_classification"
}

/// A label for each word. The labels make spans if their names are those of spans.
fn tag_task(labels: Vec<Label>, tokens: Vec<String>) -> TaskPlan {
    let kind = Task::from(Tag::with_labels(tokens, "tags".to_owned(), labels));
    TaskPlan {
        has_found_labels: false,
        metric: kind.measures()[0],
        kind,
        span: Span::default(),
    }
}

/// A classification, or a regression if there is only one output.
fn classify_task(labels: Vec<Label>, text: Vec<String>, has_several: bool) -> TaskPlan {
    let label = "label".to_owned();
    let cloze = None;
    let (kind, metric) = match labels.len() {
        1 => (Task::from(Regress { text, label, cloze }), Metric::Pearson),
        _ => {
            let task = Classify {
                text,
                label,
                labels,
                cloze,
                several: has_several.then_some(Several::List),
                weights: None,
                smoothing: 0.0,
            };
            let task = Task::from(task);
            let metric = task.measures()[0];
            (task, metric)
        }
    };
    TaskPlan {
        has_found_labels: false,
        kind,
        metric,
        span: Span::default(),
    }
}
