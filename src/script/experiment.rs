//! Pipelines and runs, as scripts see them.

use std::path::Path;
use std::rc::Rc;

use rhai::{Array, Dynamic, Engine, ImmutableString, Map};

use super::error::{mistake, thrown, Outcome};
use super::functions::number;
use super::rehearsal::unfinished;
use super::runner::Finished;
use super::session::Session;
use crate::diagnostic::{Problem, Problems};
use crate::engine::{measure_rate, Device};
use crate::graph::this_machine;
use crate::graph::{label_order, reordered, Graph, Tensors};
use crate::plan::{Plan, TaskPlan};
use crate::report::{describe, Assumptions};
use crate::run::{
    found_labels, has_same_backbone, head_origins, merge, open_run, summarize, FinishedRun,
    InputSettings, Loaded, Loader, Log, Source,
};

/// A pipeline, not yet read.
#[derive(Clone)]
pub(super) struct Pipeline(pub Source);

/// A run that is complete.
pub(super) type Run = Rc<Finished>;

pub(super) fn register(engine: &mut Engine, session: &Rc<Session>) {
    engine.register_type_with_name::<Pipeline>("Pipeline");
    engine.register_type_with_name::<Run>("Run");
    // What `catch` gives a script.
    engine.register_type_with_name::<Problems>("Problem");
    for name in ["to_string", "to_debug"] {
        engine.register_fn(name, |problems: &mut Problems| {
            let messages = problems
                .problems
                .iter()
                .map(|problem| problem.message.as_str());
            messages.collect::<Vec<_>>().join("; ")
        });
    }
    let own = session.clone();
    engine.register_fn(
        "params",
        move |defaults: Map, presets: Map| -> Outcome<Map> {
            own.params(&defaults, &presets).map_err(thrown)
        },
    );
    let own = session.clone();
    engine.register_fn("params", move |defaults: Map| -> Outcome<Map> {
        own.params(&defaults, &Map::new()).map_err(thrown)
    });
    let own = session.clone();
    engine.register_fn(
        "pipeline",
        move |file: ImmutableString| -> Outcome<Pipeline> {
            own.source(&file).map(Pipeline).map_err(thrown)
        },
    );
    engine.register_fn("set", set);
    engine.register_fn("add", |pipeline: &mut Pipeline, text: ImmutableString| {
        let mut longer = pipeline.clone();
        longer.0.text.push('\n');
        longer.0.text.push_str(&text);
        longer
    });
    let own = session.clone();
    engine.register_fn("plan", move |pipeline: &mut Pipeline| {
        own.work(|| plan(pipeline))
    });
    register_running(engine, session);
    register_results(engine);
}

fn register_running(engine: &mut Engine, session: &Rc<Session>) {
    let own = session.clone();
    engine.register_fn("run", move |pipeline: &mut Pipeline| -> Outcome<Run> {
        let mut runs = run_all(&own, std::slice::from_ref(&pipeline.0))?;
        runs.pop()
            .map(Rc::new)
            .ok_or_else(|| mistake("nothing was run", "report this"))
    });
    let own = session.clone();
    engine.register_fn(
        "run_alone",
        move |pipeline: &mut Pipeline| -> Outcome<Run> {
            own.check_params().map_err(thrown)?;
            let run = own.work(|| own.runner.run_alone(&pipeline.0));
            run.map(Rc::new).map_err(thrown)
        },
    );
    let own = session.clone();
    engine.register_fn(
        "run_seeds",
        move |pipeline: &mut Pipeline, seeds: Array| -> Outcome<Array> {
            let mut seeded = |seed: &Dynamic| -> Outcome<Source> {
                let seed = Map::from([("seed".into(), seed.clone())]);
                Ok(set(pipeline, seed)?.0)
            };
            let sources = seeds.iter().map(&mut seeded).collect::<Outcome<Vec<_>>>()?;
            let runs = run_all(&own, &sources)?;
            Ok(runs
                .into_iter()
                .map(|run| Dynamic::from(Rc::new(run)))
                .collect())
        },
    );
    let own = session.clone();
    engine.register_fn("run_all", move |pipelines: Array| -> Outcome<Array> {
        let source = |pipeline: Dynamic| {
            pipeline
                .try_cast::<Pipeline>()
                .map(|pipeline| pipeline.0)
                .ok_or_else(|| {
                    mistake(
                        "`run_all` needs a list of pipelines",
                        "write `run_all([p, q])`",
                    )
                })
        };
        let sources = pipelines
            .into_iter()
            .map(source)
            .collect::<Outcome<Vec<_>>>()?;
        let runs = run_all(&own, &sources)?;
        Ok(runs
            .into_iter()
            .map(|run| Dynamic::from(Rc::new(run)))
            .collect())
    });
    let own = session.clone();
    engine.register_fn("merge", move |run: &mut Run| {
        own.work(|| merged(run, own.runner.rehearsal.is_some()))
    });
    let own = session.clone();
    engine.register_fn("evaluate", move |run: &mut Run, set: ImmutableString| {
        own.work(|| evaluated(&own, run, &set, || evaluate_on_set(run, &set)))
    });
    let own = session.clone();
    engine.register_fn("evaluate", move |run: &mut Run, other: Pipeline| {
        let what = format!("{} {:?}", other.0.text, other.0.overrides);
        let evaluate = || evaluate_elsewhere(&own, run, &other.0);
        own.work(|| evaluated(&own, run, &what, evaluate))
    });
}

/// The result of an evaluation: a made-up one for a run that is not finished, while the script is only read.
fn evaluated(
    session: &Session,
    run: &Run,
    what: &str,
    evaluate: impl FnOnce() -> Outcome<f64>,
) -> Outcome<f64> {
    match (run.made_up, &session.runner.rehearsal) {
        (Some(value), _) => Ok(value),
        (None, Some(rehearsal)) => rehearsal.evaluated(&run.directory, what, evaluate),
        (None, None) => evaluate(),
    }
}

/// Runs pipelines, after a look at what was set from outside.
fn run_all(session: &Session, sources: &[Source]) -> Outcome<Vec<Finished>> {
    session.check_params().map_err(thrown)?;
    session
        .work(|| session.runner.run_all(sources))
        .map_err(thrown)
}

/// The same pipeline with these params.
fn set(pipeline: &mut Pipeline, params: Map) -> Outcome<Pipeline> {
    let mut set = pipeline.clone();
    for (key, value) in params {
        let is_plain = value.is_int() || value.is_float() || value.is_string() || value.is_bool();
        if !is_plain {
            return Err(mistake(
                format!("the param `{key}` is {}", value.type_name()),
                "use a number, a string or a boolean",
            ));
        }
        // Rust writes the shortest digits that read as the same number.
        let text = match value.as_float() {
            Ok(number) => number.to_string(),
            Err(_) => value.to_string(),
        };
        set.0.overrides.insert(key.to_string(), text);
    }
    Ok(set)
}

/// What a pipeline would train: `trained` and `total` parameters and `memory` in bytes of the last
/// stage, and the `text` of `deltarun plan`.
fn plan(pipeline: &mut Pipeline) -> Outcome<Map> {
    let plan = pipeline.0.plan().map_err(thrown)?;
    let threads = rayon::current_num_threads();
    let assumptions = Assumptions {
        data: &summarize(&plan),
        threads,
        processes: 1,
    };
    let found = [head_origins(&plan), found_labels(&plan)].concat();
    let text = describe(&plan, &found, &assumptions, measure_rate);
    let mut map = Map::new();
    map.insert("name".into(), plan.name.clone().into());
    map.insert("text".into(), text.into());
    if let Some(last) = plan.stages.len().checked_sub(1) {
        let cost = plan.cost(last, plan.backbone.max_length, &this_machine(threads));
        map.insert("trained".into(), (cost.trained as i64).into());
        map.insert("total".into(), (cost.total as i64).into());
        map.insert("memory".into(), (cost.memory as i64).into());
    }
    Ok(map)
}

/// A figure of a run, or the mistake of a script that wants one which the run does not have.
fn or_mistake(figure: Option<f64>, message: &str, help: &str) -> Outcome<f64> {
    figure.ok_or_else(|| mistake(message, help))
}

fn register_results(engine: &mut Engine) {
    engine
        .register_get("name", |run: &mut Run| run.plan.name.clone())
        .register_get("directory", |run: &mut Run| {
            run.directory.display().to_string()
        })
        .register_get("metric", |run: &mut Run| {
            run.summary.metric.name().to_owned()
        })
        .register_get("less_is_better", |run: &mut Run| {
            run.summary.metric.less_is_better()
        })
        .register_get("value", |run: &mut Run| {
            let help = "add `dev = ...` to the pipeline's data set";
            or_mistake(run.summary.value(), "the run has no dev set", help)
        })
        .register_get("test", |run: &mut Run| {
            let test = run.summary.test.as_ref();
            let test = test.map(|test| test.get(run.summary.metric));
            let help = "add `test = ...` to the pipeline's data set";
            or_mistake(test, "the run has no test set", help)
        })
        .register_get("majority", |run: &mut Run| {
            let help = "use it of tasks whose rows have one label each";
            or_mistake(run.summary.majority, "the run's task has no majority", help)
        })
        .register_get("trained", |run: &mut Run| {
            last_stage(run, |stage| stage.trained as i64)
        })
        .register_get("steps", |run: &mut Run| {
            last_stage(run, |stage| stage.steps as i64)
        })
        .register_get("seconds", |run: &mut Run| {
            run.summary
                .stages
                .iter()
                .map(|stage| stage.seconds)
                .sum::<f64>()
        })
        .register_get("peak_memory", |run: &mut Run| {
            run.summary
                .peak_memory
                .map_or(f64::NAN, |bytes| bytes as f64 / 1048576.0)
        })
        .register_get("stages", stages)
        .register_get("params", |run: &mut Run| -> Map {
            let overrides = run.source.overrides.iter();
            overrides
                .map(|(key, value)| (key.as_str().into(), value.clone().into()))
                .collect()
        })
        .register_get("curve", |run: &mut Run| {
            let metric = run.summary.metric.name();
            points(run, |line| line["dev"][metric].as_f64())
        })
        .register_get("losses", |run: &mut Run| {
            points(run, |line| line["loss"].as_f64())
        })
        .register_get("step_seconds", |run: &mut Run| -> Outcome<f64> {
            let mut seconds = Vec::new();
            for point in points(run, |line| {
                line["lr"].as_f64().and(line["seconds"].as_f64())
            })? {
                let pair = point.into_typed_array::<f64>().unwrap_or_default();
                seconds.extend(pair.last());
            }
            seconds.sort_by(f64::total_cmp);
            Ok(seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN))
        });
}

fn last_stage(run: &Run, get: impl Fn(&crate::train::StageResult) -> i64) -> i64 {
    run.summary.stages.last().map_or(0, get)
}

fn stages(run: &mut Run) -> Array {
    let stage = |stage: &crate::train::StageResult| {
        let value = stage.dev.as_ref().map(|dev| dev.get(run.summary.metric));
        let mut map = Map::new();
        map.insert("name".into(), stage.stage.clone().into());
        map.insert("value".into(), value.unwrap_or(f64::NAN).into());
        map.insert("trained".into(), (stage.trained as i64).into());
        map.insert("steps".into(), (stage.steps as i64).into());
        map.insert("seconds".into(), stage.seconds.into());
        Dynamic::from(map)
    };
    run.summary.stages.iter().map(stage).collect()
}

/// `[step, value]` of every line of the last stage's log that has such a value.
fn points(run: &Run, value: impl Fn(&serde_json::Value) -> Option<f64>) -> Outcome<Array> {
    if let Some(value) = run.made_up {
        let point = vec![Dynamic::from(1.0), Dynamic::from(value)];
        return Ok(vec![Dynamic::from(point)]);
    }
    let text = finished(run)
        .and_then(|finished| finished.text(Log::FILE))
        .map_err(thrown)?;
    let last = run.summary.stages.last().map(|stage| stage.stage.as_str());
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let of_last = lines.filter(|line| line["stage"].as_str() == last);
    let points = of_last.filter_map(|line| {
        let (step, value) = (line["step"].as_f64()?, value(&line)?);
        Some(Dynamic::from(vec![
            Dynamic::from(step),
            Dynamic::from(value),
        ]))
    });
    Ok(points.collect())
}

/// The files of a run.
fn finished(run: &Run) -> Result<FinishedRun, Problem> {
    FinishedRun::open(&run.directory, run.source.integrity)
}

/// The run folded into its backbone, beside it: a backbone for other pipelines.
fn merged(run: &mut Run, is_read_only: bool) -> Outcome<String> {
    let out = run.directory.join("merged");
    if is_read_only && !out.exists() {
        return Err(thrown(unfinished()));
    }
    let fold = || -> Result<(), Problem> {
        let loaded: Loaded = open_run(
            &run.directory,
            None,
            InputSettings::default(),
            run.source.integrity,
            Device::Cpu,
        )?;
        merge(&loaded.plan, &loaded.graph, &out)
    };
    if !out.exists() {
        match fold() {
            // Another process that shares the runs merged it meanwhile.
            Err(_) if out.exists() => {}
            folded => folded.map_err(thrown)?,
        }
    }
    let out = out.canonicalize().unwrap_or(out);
    Ok(out.display().to_string())
}

/// The metric of a run on its own `train`, `dev` or `test` set.
fn evaluate_on_set(run: &Run, set: &str) -> Outcome<f64> {
    let data = run.plan.final_data();
    let file = match (set, data) {
        ("train", Some(data)) => data.train.as_ref(),
        ("dev", Some(data)) => data.dev.as_ref(),
        ("test", Some(data)) => data.test.as_ref(),
        _ => None,
    };
    let file = file.ok_or_else(|| {
        mistake(
            format!("the run has no `{set}` set"),
            "use \"train\", \"dev\" or \"test\", whichever the run's `data` block has",
        )
    })?;
    let loaded: Loaded = open_run(
        &run.directory,
        None,
        InputSettings::default(),
        run.source.integrity,
        Device::Cpu,
    )
    .map_err(thrown)?;
    score(&loaded.plan, &loaded.graph, file).map_err(thrown)
}

fn score(plan: &Plan, graph: &Graph, file: &crate::plan::FilePlan) -> Result<f64, Problem> {
    let task = final_task(plan)?;
    let found = Loader::new(plan)?.evaluate(plan, graph, task, file)?;
    Ok(found.get(task.metric))
}

fn final_task(plan: &Plan) -> Result<&TaskPlan, Problem> {
    let task = plan.final_task().map(|(_, task)| task);
    task.ok_or_else(|| Problem::internal("a plan without a task"))
}

/// The metric of a run's deltas on another pipeline's task and dev set: transfer.
fn evaluate_elsewhere(session: &Session, run: &Run, other: &Source) -> Outcome<f64> {
    let mut plan = other.plan().map_err(thrown)?;
    let file = plan.final_data().and_then(|data| data.dev.clone());
    let file = file.ok_or_else(|| {
        mistake(
            format!("`{}` has no dev set", other.name),
            "add one to its `data` block",
        )
    })?;
    let mut transfer = || -> Result<f64, Problem> {
        if !has_same_backbone(&plan, &run.plan)? {
            let message = format!(
                "`{}` and `{}` have different backbones",
                run.plan.name, plan.name
            );
            return Err(Problem::new("delta::script::transfer", message)
                .help("transfer deltas between tasks on the same backbone"));
        }
        let (Some((name, asked)), Some((trained, own))) =
            (plan.final_task(), run.plan.final_task())
        else {
            return Err(Problem::internal("a plan without a task"));
        };
        let order = match label_order(&asked.kind, &own.kind) {
            Some(order) => order,
            None => {
                let message = format!(
                    "`{}` and `{}` have different tasks or labels",
                    other.name, run.plan.name
                );
                return Err(Problem::new("delta::script::transfer", message)
                    .help("evaluate on a task with the same labels, in any order"));
            }
        };
        let asked = asked.clone();
        let (name, trained) = (name.to_owned(), format!("{trained}."));
        plan.deltas = run
            .plan
            .active(run.plan.stages.len())
            .into_iter()
            .cloned()
            .collect();
        plan.stages = Vec::new();
        plan.tasks = [(name.clone(), asked.clone())].into();
        let room = plan.backbone.config.limit().saturating_sub(plan.tokens(0));
        plan.backbone.max_length = plan.backbone.max_length.min(room);
        let mut graph = Graph::load_beside(&plan, Device::Cpu, &session.runner.shared.backbones)?;
        let stored = finished(run)?.tensors()?;
        let known = graph.tensors();
        let mut tensors = Tensors::new();
        for key in stored.names() {
            // The head's parameters are named after its task.
            let of_head = key.strip_prefix(&trained);
            let renamed = of_head.map_or(key.to_owned(), |path| format!("{name}.{path}"));
            let (mut values, shape) = stored.read(key)?;
            if of_head.is_some_and(|path| graph.is_output(&asked, path)) && !order.is_empty() {
                values = reordered(&values, &order);
            }
            if known
                .get(&renamed)
                .is_some_and(|(_, known)| *known == shape)
            {
                tensors.insert(renamed, (values, shape));
            }
        }
        graph.set(tensors)?;
        graph.adopt_heads();
        graph.activate(&plan, 0)?;
        score(&plan, &graph, &file)
    };
    transfer().map_err(thrown)
}

/// A path that a script's function was given, for its extension alone.
pub(super) fn has_ending(file: &str, ending: &str) -> bool {
    Path::new(file)
        .extension()
        .is_some_and(|found| found == ending)
}

/// A pair of numbers out of a list of two.
pub(super) fn pair(point: &Dynamic) -> Outcome<(f64, f64)> {
    let list = point.read_lock::<Array>();
    match list.as_deref().map(Vec::as_slice) {
        Some([x, y]) => Ok((number(x)?, number(y)?)),
        _ => Err(mistake(
            "a point must be a list of two numbers",
            "write `[step, value]`",
        )),
    }
}
