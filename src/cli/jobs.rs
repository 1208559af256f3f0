//! `deltarun jobs` and `submit`: a script's runs, one by one, for several processes or a cluster.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;

use clap::Args;

use super::arguments::threads;
use super::commands::{interruption, script_out, settings};
use super::Ended;
use crate::diagnostic::{Problem, Problems};
use crate::disk::{self, failed};
use crate::report::Table;
use crate::run::Integrity;
use crate::script::{self, Job, Jobs, Shard};
use crate::terminal::{print, say};
use crate::text::{bytes, counted, thousands};

/// Options of `jobs` and `submit`.
#[derive(Args)]
pub struct ScriptOptions {
    /// A `.rhai` script
    #[arg(value_name = "FILE.rhai")]
    pub file: PathBuf,
    /// Set a param of the script; may be repeated
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    /// The preset of its params
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// Another folder that its additions to pipelines may read from; may be repeated
    #[arg(long, value_name = "DIR")]
    pub allow: Vec<PathBuf>,
    /// The directory of its runs, instead of `runs/FILE`
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The number of threads of a process; `submit` asks Slurm for as many cores
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
}

#[derive(Args)]
pub struct SubmitOptions {
    #[command(flatten)]
    pub script: ScriptOptions,
    /// The number of jobs in the array; as many as there are runs, and at most 16, by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub tasks: Option<u32>,
    /// A further option of every job, as `sbatch` has it, such as `--partition=long`; may be repeated
    #[arg(long = "option", value_name = "OPTION", allow_hyphen_values = true)]
    pub options: Vec<String>,
    /// Submit the jobs with `sbatch`
    #[arg(long)]
    pub now: bool,
}

/// What `--shard` without a value stands for.
pub const SLURM: &str = "slurm";

/// Reads a part such as `2/4`, or that of a task of a Slurm array.
pub fn shard(text: &str) -> Result<Shard, String> {
    if text == SLURM {
        return slurm_shard();
    }
    let parts = text.split_once('/');
    let parts = parts.and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
    let shard = parts.map(|(number, of)| Shard { number, of });
    shard
        .filter(|shard| (1..=shard.of).contains(&shard.number))
        .ok_or_else(|| {
            "write a part such as `2/4`, whose number is from 1 to the number of parts".to_owned()
        })
}

/// The part of this task of a Slurm array, from `SLURM_ARRAY_TASK_ID`, `MIN`, `STEP` and `COUNT`.
fn slurm_shard() -> Result<Shard, String> {
    let task = |part: &str| -> Option<usize> {
        let text = std::env::var(format!("SLURM_ARRAY_TASK_{part}")).ok()?;
        text.parse().ok()
    };
    let shard = || {
        let place = task("ID")?.checked_sub(task("MIN").unwrap_or(0))?;
        let number = place / task("STEP").unwrap_or(1).max(1) + 1;
        let of = task("COUNT")?;
        (number <= of).then_some(Shard { number, of })
    };
    shard().ok_or_else(|| {
        "this is no task of a Slurm array: name a part, such as `--shard 2/4`".to_owned()
    })
}

fn script_options(options: &ScriptOptions) -> Result<script::Options<'static>, Problem> {
    Ok(script::Options {
        set: settings(&options.set)?,
        preset: options.preset.clone(),
        out: script_out(&options.file, options.out.as_deref()),
        allowed: options.allow.clone(),
        integrity: Integrity::Checked,
        is_quiet: true,
        interrupted: interruption(),
    })
}

/// The runs of a script; `None` if the user stopped the reading.
fn read(
    options: &ScriptOptions,
    of_script: &script::Options<'static>,
) -> Result<Option<Jobs>, Problems> {
    let shown = options.file.display();
    if options
        .file
        .extension()
        .is_some_and(|ending| ending == "delta")
    {
        let message = format!("`{shown}` is a pipeline, which is one run and no script of several");
        return Err(Problem::new("delta::cli::pipeline", message)
            .help(format!(
                "run it: `deltarun {shown}`; docs/scripts.md has scripts"
            ))
            .into());
    }
    match script::jobs(&options.file, of_script) {
        Err(_) if of_script.interrupted.load(Ordering::Relaxed) => Ok(None),
        found => found.map(Some),
    }
}

/// `deltarun jobs`
pub(super) fn jobs(options: &ScriptOptions) -> Result<Ended, Problems> {
    let Some(found) = read(options, &script_options(options)?)? else {
        return Ok(Ended::Interrupted);
    };
    let mut table = Table::new(["run", "params", "steps", "estimate", "memory", "state"]);
    for (number, job) in found.known.iter().enumerate() {
        table.row([
            format!("{} {}", number + 1, job.name),
            script::shown(&job.params),
            thousands(job.steps),
            time(job.seconds),
            bytes(job.memory),
            if job.is_finished { "finished" } else { "open" }.to_owned(),
        ]);
    }
    let open = found.known.iter().filter(|job| !job.is_finished);
    let (count, seconds) = open.fold((0, 0.0), |(count, sum), job| (count + 1, sum + job.seconds));
    print(&format!(
        "{table}\n  {} of {} open: about {} of one process\n{}",
        count,
        counted(found.known.len(), "run"),
        time(seconds),
        if found.has_more {
            "  further runs depend on their results\n"
        } else {
            ""
        },
    ));
    Ok(Ended::Done)
}

/// Runs a part of a script's runs, and says what is left.
pub(super) fn run_shard(
    path: &Path,
    options: &script::Options<'static>,
    shard: Shard,
) -> Result<script::ScriptEnd, Problems> {
    let (ended, own, all) = script::run_shard(path, options, shard)?;
    if ended == script::ScriptEnd::Complete && !options.is_quiet {
        let (part, all) = (shard.number, counted(all, "run"));
        say(&format!("part {part} of {}: {own} of {all}", shard.of));
    }
    Ok(ended)
}

/// Seconds as people say them.
fn time(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 90.0 => format!("{seconds:.0} s"),
        seconds if seconds < 5400.0 => format!("{:.0} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}

/// The most jobs of an array unless the user asks for more.
const MOST_TASKS: usize = 16;

/// `deltarun submit`
pub(super) fn submit(options: &SubmitOptions) -> Result<Ended, Problems> {
    let of_script = script_options(&options.script)?;
    let Some(found) = read(&options.script, &of_script)? else {
        return Ok(Ended::Interrupted);
    };
    let tasks = match options.tasks {
        Some(tasks) => tasks as usize,
        None => found.level.len().clamp(1, MOST_TASKS),
    };
    let files = Files {
        options: &options.script,
        further: &options.options,
        out: &of_script.out,
    };
    let array = files.array(&found, tasks)?;
    let report = files.report(&found)?;
    std::fs::create_dir_all(&of_script.out).map_err(|e| failed("made", &of_script.out, &e))?;
    let write = |name: &str, text: &str| -> Result<PathBuf, Problem> {
        let path = of_script.out.join(name);
        disk::replace(&path, text.as_bytes()).map_err(|e| failed("written", &path, &e))?;
        Ok(path)
    };
    let (array, report) = (
        write("array.sbatch", &array)?,
        write("report.sbatch", &report)?,
    );
    if !options.now {
        let [first, last] = [&array, &report].map(|path| quoted(&path.to_string_lossy()));
        print(&format!(
            "{}\n{}\n  id=$(sbatch --parsable {first}) && sbatch --dependency=afterany:${{id%%;*}} {last}\n",
            array.display(),
            report.display()
        ));
        return Ok(Ended::Done);
    }
    let id = sbatch(&["--parsable".as_ref(), array.as_os_str()])?;
    // A cluster's name may follow the number.
    let id = id.split(';').next().unwrap_or_default().to_owned();
    let dependency = format!("--dependency=afterany:{id}");
    let last = sbatch(&[
        "--parsable".as_ref(),
        dependency.as_ref(),
        report.as_os_str(),
    ])?;
    print(&format!(
        "array {id} of {}, then job {last}\n",
        counted(tasks, "task")
    ));
    Ok(Ended::Done)
}

/// Runs `sbatch`, and returns what it says.
fn sbatch(arguments: &[&std::ffi::OsStr]) -> Result<String, Problem> {
    let refused = |reason: String| {
        Problem::failure("delta::cli::sbatch", format!("`sbatch` failed: {reason}"))
            .help("run it yourself: without `--now`, `deltarun submit` shows the command")
    };
    let output = Command::new("sbatch").args(arguments).output();
    let output = output.map_err(|e| refused(e.to_string()))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(refused(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )),
    }
}

/// The files for Slurm.
struct Files<'a> {
    options: &'a ScriptOptions,
    further: &'a [String],
    out: &'a Path,
}

impl Files<'_> {
    /// The file of the array. Each task of it runs one part.
    fn array(&self, jobs: &Jobs, tasks: usize) -> Result<String, Problem> {
        let mut parts = vec![0.0; tasks];
        for (number, job) in jobs.level.iter().enumerate() {
            parts[number % tasks] += seconds_left(job);
        }
        let longest = parts.into_iter().fold(0.0, f64::max);
        let array = format!("#SBATCH --array=0-{}\n#SBATCH --requeue\n", tasks - 1);
        let head = self.head(&array, &jobs.known, longest, "%A_%a")?;
        Ok(format!("{head}exec {} --shard\n", self.command()?))
    }

    /// The file of the job that runs the script itself: what depends on results or was left over, and its pages.
    fn report(&self, jobs: &Jobs) -> Result<String, Problem> {
        // Nothing is known of runs that depend on results: we take as much time for them as for the others.
        let seconds = jobs.known.iter().map(|job| job.seconds).sum();
        let head = self.head("", &jobs.known, seconds, "%j")?;
        Ok(format!("{head}exec {}\n", self.command()?))
    }

    /// The lines for Slurm, for jobs that take these seconds.
    fn head(&self, array: &str, jobs: &[Job], seconds: f64, log: &str) -> Result<String, Problem> {
        let here = std::env::current_dir().map_err(Problem::internal)?;
        let threads = rayon::current_num_threads();
        // A run may take half of what is free.
        let memory = jobs.iter().map(|job| job.memory).max().unwrap_or(0);
        let mebibytes = (2 * memory + (256 << 20)) >> 20;
        // Estimates of time are rough.
        let minutes = 10 + (3.0 * seconds / 60.0).ceil() as usize;
        let stem = self.options.file.file_stem().unwrap_or_default();
        let further = self
            .further
            .iter()
            .map(|option| format!("#SBATCH {option}\n"));
        // Slurm reads `%` as the beginning of a name of its own.
        let out = here.join(self.out).display().to_string().replace('%', "%%");
        Ok(format!(
            "#!/bin/sh\n#SBATCH --job-name=\"{}\"\n{array}#SBATCH --cpus-per-task={threads}\n#SBATCH --mem={mebibytes}M\n\
             #SBATCH --time={minutes}\n#SBATCH --chdir=\"{}\"\n#SBATCH --output=\"{out}/slurm-{log}.txt\"\n{}",
            stem.to_string_lossy(),
            here.display(),
            further.collect::<String>(),
        ))
    }

    /// The command that runs the script.
    fn command(&self) -> Result<String, Problem> {
        let program = std::env::current_exe().map_err(Problem::internal)?;
        let ScriptOptions {
            file,
            set,
            preset,
            allow,
            ..
        } = self.options;
        let path = |path: &Path| quoted(&path.to_string_lossy());
        let mut words = vec![path(&program), path(file)];
        words.extend(set.iter().map(|set| format!("--set {}", quoted(set))));
        words.extend(
            preset
                .iter()
                .map(|name| format!("--preset {}", quoted(name))),
        );
        words.extend(
            allow
                .iter()
                .map(|folder| format!("--allow {}", path(folder))),
        );
        words.push(format!("--out {}", path(self.out)));
        words.push("--threads \"${SLURM_CPUS_PER_TASK:-1}\"".to_owned());
        Ok(words.join(" "))
    }
}

/// The estimated time that a run still takes, in seconds.
fn seconds_left(job: &Job) -> f64 {
    match job.is_finished {
        true => 0.0,
        false => job.seconds,
    }
}

/// A word for a shell.
fn quoted(text: &str) -> String {
    let is_plain = |symbol: char| symbol.is_ascii_alphanumeric() || "-_./=,:+".contains(symbol);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}
