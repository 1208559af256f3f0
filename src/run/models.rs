//! Opens what no run of ours left: an adapter that PEFT saved, or a model with a head of its own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::load::{InputSettings, Loaded};
use super::tying::has_head_weight;
use crate::backbone::family::HeadKind;
use crate::backbone::{
    fetch_weights, head_parameters, locate, own_storage, read_config, read_text, saved_head,
    Checkpoint, Config, Parameter,
};
use crate::delta::ParameterId;
use crate::diagnostic::{Problem, Span};
use crate::engine::{Device, Precision};
use crate::graph::{Graph, Tensors};
use crate::hub::of_other_tools;
use crate::peft;
use crate::plan::{BackbonePlan, DeltaPlan, Label, Metric, Plan, Task, TaskPlan};
use crate::task::{CausalLm, Classify, Regress, Seq2seq, Several, Tag, Wishes};
use crate::terminal::note;

/// The longest text that a model reads which no run has set a length for, in tokens.
const LONGEST: usize = 512;

/// Opens an adapter that PEFT saved, on the backbone that it names or on another.
pub(super) fn open_adapter(
    directory: &Path,
    backbone: Option<&str>,
    reads: InputSettings,
    device: Device,
) -> Result<Loaded, Problem> {
    let location = match backbone {
        Some(name) => name.to_owned(),
        None => stated_backbone(directory)?,
    };
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
    let task = task_of(imported.head, imported.outputs, (&base, &config), reads)?;
    let has_tokenizer = directory.join("tokenizer.json").exists();
    let tokenizer = has_tokenizer.then(|| directory.to_owned());
    let plan = plan_of(location, base, tokenizer, config, task, imported.deltas);
    let mut graph = Graph::load(&plan, device)?;
    let tensors = of_head_where_missing(imported.tensors, &graph);
    let given: BTreeSet<String> = tensors.keys().cloned().collect();
    graph.set(tensors)?;
    graph.adopt_heads();
    graph.activate(&plan, 0)?;
    check_head(&graph, &plan, |_, id| given.contains(&id.to_string()))?;
    note_own_run(directory, &plan);
    Ok(Loaded {
        plan,
        graph,
        run: None,
    })
}

fn stated_backbone(directory: &Path) -> Result<String, Problem> {
    let settings = peft::read_settings(directory)?;
    let stated = settings
        .get("base_model_name_or_path")
        .and_then(Value::as_str);
    let stated = stated.map(str::to_owned);
    let stated = stated.ok_or_else(|| {
        let message = "the adapter does not name its backbone";
        Problem::new("delta::run::no_backbone", message).help("name it with `--backbone DIR`")
    })?;
    Ok(match of_other_tools(&stated) {
        Some(in_hub) if !Path::new(&stated).exists() => in_hub,
        _ => stated,
    })
}

/// Says what PEFT's format cannot hold of the run that wrote an adapter.
fn note_own_run(directory: &Path, plan: &Plan) {
    let run = directory
        .parent()
        .filter(|run| run.join("plan.yaml").exists());
    let has_labels = plan
        .final_task()
        .is_some_and(|(_, task)| !task.kind.labels().is_empty());
    if let Some(run) = run.filter(|_| has_labels) {
        note(&format!(
            "an adapter has no labels of its own, and this one is read with its backbone's; name the run itself, `{}`, to have its labels",
            run.display()
        ));
    }
}

/// Opens a model that answers by itself: one that writes, or one with a head for labels.
///
/// # Errors
/// The model has no head that answers; its checkpoint lacks a part of the head; or [`Graph::load`] fails.
pub(super) fn open_model(
    location: &str,
    directory: &Path,
    reads: InputSettings,
    device: Device,
) -> Result<Loaded, Problem> {
    let mut config = read_config(directory)?;
    let heads = &config.family().heads;
    let writes = heads.causal_lm.is_some() || heads.seq2seq.is_some();
    let head = match saved_head(directory, &config) {
        Some(HeadKind::LanguageModel) | None if writes => HeadKind::LanguageModel,
        Some(kind) if kind != HeadKind::LanguageModel => kind,
        _ => {
            let message = format!(
                "the model `{location}` has no head that answers: it neither writes nor has labels"
            );
            return Err(Problem::new("delta::run::no_head", message)
                .help("name a run, an adapter, a language model, or a model that was saved from `AutoModelForSequenceClassification` or `AutoModelForTokenClassification`; to train this one, make it the `backbone` of a `.delta` file"));
        }
    };
    fetch_weights(location)?;
    if head == HeadKind::LanguageModel {
        config.has_head_weight = has_head_weight(&config, directory)?;
    }
    let task = task_of(head, None, (directory, &config), reads)?;
    let plan = plan_of(
        location.to_owned(),
        directory.to_owned(),
        None,
        config,
        task,
        Vec::new(),
    );
    let mut graph = Graph::load(&plan, device)?;
    graph.activate(&plan, 0)?;
    if head != HeadKind::LanguageModel {
        check_head(&graph, &plan, |_, _| false)?;
    }
    Ok(Loaded {
        plan,
        graph,
        run: None,
    })
}

/// Checks that the adapter or the backbone has each weight of the head: transformers draws one that both lack anew
/// whenever it loads the model.
fn check_head(
    graph: &Graph,
    plan: &Plan,
    is_given: impl Fn(&Parameter, &ParameterId) -> bool,
) -> Result<(), Problem> {
    let Ok(file) = Checkpoint::open_directory(&plan.backbone.directory) else {
        return Ok(());
    };
    let prefix = plan.name_prefix();
    let is_drawn = |parameter: &Parameter, id: &ParameterId| {
        !parameter.is_bias() && !is_given(parameter, id) && file.find(parameter, prefix).is_none()
    };
    let heads = graph.head_ids();
    let Some((drawn, _)) = heads.iter().find(|(parameter, id)| is_drawn(parameter, id)) else {
        return Ok(());
    };
    let name = &drawn.source.name;
    let message = format!("neither the adapter nor the backbone has the head's `{name}`, which transformers draws anew each time");
    let module = name.split('.').next().unwrap_or_default();
    Err(Problem::new("delta::run::no_head", message).help(format!(
        "train and save it with the adapter: `modules_to_save=[\"{module}\", ...]`"
    )))
}

/// The task that a head answers. `outputs` is the number of its outputs, if an adapter has it.
fn task_of(
    head: HeadKind,
    outputs: Option<usize>,
    (base, config): (&Path, &Config),
    reads: InputSettings,
) -> Result<TaskPlan, Problem> {
    let columns = |usual: &str| match reads.columns {
        Some(columns) => columns.to_vec(),
        None => vec![usual.to_owned()],
    };
    let label = |usual: &str| reads.label.unwrap_or(usual).to_owned();
    let outputs = || {
        let outputs = outputs.or_else(|| stored_outputs(base, config, head));
        outputs.ok_or_else(|| {
            let message = "neither the adapter (`modules_to_save`) nor the backbone has a classification head";
            Problem::new("delta::run::no_head", message)
                .help("save the adapter with `task_type=\"SEQ_CLS\"`, `\"TOKEN_CLS\"` for labels of words, or `\"CAUSAL_LM\"` for a model that writes")
        })
    };
    let kind = match head {
        HeadKind::LanguageModel => language_model_task(reads, config)?,
        HeadKind::Tag => {
            let labels = labels_of(base, outputs()?);
            Tag::with_labels(columns("tokens"), label("tags"), labels).into()
        }
        HeadKind::Classify => {
            let labels = labels_of(base, outputs()?);
            classify_task(labels, columns("text"), label("label"), stated(base))
        }
    };
    let mut task = TaskPlan {
        has_found_labels: false,
        metric: match head {
            HeadKind::LanguageModel => Metric::Loss,
            _ => kind.measures()[0],
        },
        kind,
        span: Span::default(),
    };
    if let Some(prefix) = reads.source_prefix {
        if !task.kind.set_source_prefix(prefix) {
            let message = "`--source-prefix` applies only to sequence-to-sequence adapters";
            return Err(Problem::new("delta::run::reads", message).help("remove the option"));
        }
    }
    Ok(task)
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
fn language_model_task(reads: InputSettings, config: &Config) -> Result<Task, Problem> {
    let wrong = |message: &str, help: &str| {
        Err(Problem::new("delta::run::columns", message.to_owned()).help(help))
    };
    let usual = match config.decoder_layers {
        Some(_) => "source",
        None => "text",
    };
    let usual = [usual.to_owned()];
    match (config.decoder_layers, reads.columns.unwrap_or(&usual)) {
        (None, _) if reads.label.is_some() => wrong(
            "a language model has no labels: it predicts the text itself",
            "leave out `--label`, and name the column of the text with `--text COLUMN`",
        ),
        (None, [text]) => Ok(CausalLm {
            text: vec![text.clone()],
        }
        .into()),
        (None, _) => wrong(
            "a language model reads one column",
            "name it with `--text COLUMN`",
        ),
        (Some(_), [source, target @ ..]) if target.len() < 2 => Ok(Seq2seq {
            text: vec![source.clone()],
            label: match target {
                [target] => target.clone(),
                _ => reads.label.unwrap_or("target").to_owned(),
            },
            prefix: String::new(),
            separator: None,
            generate: Wishes::default(),
        }
        .into()),
        (Some(_), _) => wrong(
            "a sequence-to-sequence model reads one column of sources and one of targets",
            "name them with `--text SOURCE --label TARGET`",
        ),
    }
}

/// What a backbone's `config.json` says; nothing if it cannot be read.
fn stated(backbone: &Path) -> Value {
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

/// A classification, or a regression if there is only one output. `config` is the backbone's `config.json`.
fn classify_task(labels: Vec<Label>, text: Vec<String>, label: String, config: Value) -> Task {
    let cloze = None;
    if labels.len() == 1 {
        return Regress { text, label, cloze }.into();
    }
    let has_several = config["problem_type"] == "multi_label_classification";
    Classify {
        text,
        label,
        labels,
        cloze,
        several: has_several.then_some(Several::List),
        weights: None,
        smoothing: 0.0,
    }
    .into()
}
