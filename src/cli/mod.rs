//! The command line.

mod arguments;
mod commands;
mod eval;
mod generate;
mod init;
mod input;
mod jobs;
mod lines;
mod lists;
mod predict;
mod quickstart;
mod replay;
mod report;
mod results;
mod runs;
mod sweep;
mod table;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::diagnostic::{Problem, Problems};
use crate::ranks::{self, world};
use crate::terminal::{self, print, say};
use crate::text::{did_you_mean, quoted_list};
use arguments::{Arguments, Command, Format};

/// Exit code of a run that Ctrl-C stopped, as shells have it.
const INTERRUPTED: u8 = 130;

/// How a command ended.
enum Ended {
    Done,
    Interrupted,
}

/// Reads the arguments, runs the command, shows what is wrong. 0 when all is well, 1 for a failure, 2
/// for a mistake of the user's, 130 when interrupted.
pub fn main() -> ExitCode {
    if let Some(problem) = std::env::args_os().nth(1).and_then(unknown_command) {
        show(&problem.into(), Format::Text);
        return ExitCode::from(2);
    }
    let arguments = Arguments::parse();
    // A file that grows beyond its limit is then an error like a full disk, and no signal that ends the process.
    #[cfg(unix)]
    // SAFETY: no handler runs; a signal is ignored.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
    let format = arguments.format();
    std::panic::set_hook(Box::new(|_| {}));
    let result = catch_unwind(AssertUnwindSafe(|| dispatch(arguments)));
    let result = result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Problem::internal(text.unwrap_or("no message")).into())
    });
    if result.is_ok() {
        world().leave();
    }
    match result {
        Ok(Ended::Done) => match terminal::lost() {
            None => ExitCode::SUCCESS,
            Some(error) => {
                let message = format!("standard output could not be written: {error}");
                let problem = Problem::failure("delta::cli::output", message)
                    .help("free space on its disk, or write to another one");
                show(&problem.into(), format);
                ExitCode::FAILURE
            }
        },
        Ok(Ended::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(problems) => {
            ranks::let_others_report();
            show(&problems, format);
            if world().size() > 1 {
                world().abort(i32::from(problems.exit_code()));
            }
            ExitCode::from(problems.exit_code())
        }
    }
}

/// A word that is neither a command nor a file.
fn unknown_command(word: OsString) -> Option<Problem> {
    let file = Path::new(&word);
    if Arguments::command().find_subcommand(&word).is_some() || word == "help" {
        return None;
    }
    let is_word =
        |word: &&str| !word.starts_with('-') && file.extension().is_none() && !file.exists();
    let word = file.to_str().filter(is_word)?;
    let commands = Arguments::command();
    let names = commands.get_subcommands().map(|command| command.get_name());
    let names: Vec<&str> = names.collect();
    let message = format!("`{word}` is neither a command nor a file");
    let problem = Problem::new("delta::cli::command", message);
    Some(match did_you_mean(word, names.iter().copied()) {
        _ if word == "run" || word == "train" => {
            problem.help("leave the word out: `deltarun FILE.delta` runs a file")
        }
        Some(near) => problem.help(format!("did you mean `deltarun {near}`?")),
        None => problem.help(format!(
            "name a `.delta` or `.rhai` file, or one of the commands {}",
            quoted_list(names)
        )),
    })
}

/// Writes what is wrong: for people on standard error, for programs on standard output.
fn show(problems: &Problems, format: Format) {
    match format {
        Format::Json => print(&format!("{}\n", problems.to_json())),
        Format::Github => print(&problems.to_github()),
        Format::Text => {
            let text = problems.render(std::io::stderr().is_terminal());
            say(text.trim_end_matches('\n'));
        }
    }
}

fn dispatch(arguments: Arguments) -> Result<Ended, Problems> {
    if let Some(threads) = arguments.threads() {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global();
        pool.map_err(|e| {
            Problem::failure(
                "delta::cli::threads",
                format!("the threads cannot be started: {e}"),
            )
        })?;
    }
    match arguments.command {
        None | Some(Command::Eval(_)) => ranks::join()?,
        Some(_) => ranks::refuse_several()?,
    }
    match arguments.command {
        Some(Command::Quickstart { out, quiet }) => quickstart::quickstart(out, quiet),
        Some(Command::Init(options)) => init::init(&options),
        Some(Command::Import(options)) => init::import_file(&options),
        Some(Command::Methods { name }) => lists::methods(name.as_deref()),
        Some(Command::Tasks { name }) => lists::tasks(name.as_deref()),
        Some(Command::Families) => Ok(lists::list_families()),
        Some(Command::Runs { directory }) => runs::runs(&directory),
        Some(Command::Compare { first, second }) => runs::compare(&first, &second),
        Some(Command::Jobs(options)) => jobs::jobs(&options),
        Some(Command::Submit(options)) => jobs::submit(&options),
        Some(Command::Sweep(options)) => sweep::sweep(&options),
        Some(Command::Check(options)) => commands::check(&options),
        Some(Command::Plan(options)) => commands::plan(&options),
        Some(Command::Profile(options)) => commands::profile(&options),
        Some(Command::Fmt { files, check }) => commands::fmt(&files, check),
        Some(Command::Replay(options)) => replay::replay(&options),
        Some(Command::Eval(options)) => eval::eval(&options),
        Some(Command::Report(options)) => report::report(&options),
        Some(Command::Predict(options)) => predict::predict(&options),
        // Products are shared out to other threads from a thread of the pool alone.
        Some(Command::Generate(options)) => rayon::scope(|_| generate::generate(&options)),
        Some(Command::Chat(options)) => rayon::scope(|_| generate::chat(&options)),
        Some(Command::Combine(options)) => results::combine(&options),
        Some(Command::Export {
            run,
            out,
            backbone,
            integrity,
        }) => results::export(&run, &out, backbone.as_deref(), integrity.integrity()),
        Some(Command::Merge {
            run,
            out,
            kind,
            backbone,
            integrity,
        }) => results::merge(&run, &out, kind, backbone.as_deref(), integrity.integrity()),
        None => match &arguments.run.pipeline.file {
            Some(_) => commands::run(&arguments.run),
            None => {
                let problem = Problem::new(
                    "delta::cli::no_file",
                    "the command line names nothing to run",
                );
                Err(problem.help("name a `.delta` file, as in `deltarun pipelines/quickstart.delta`; `deltarun --help` lists the commands").into())
            }
        },
    }
}
