//! Reports, as scripts write them.

use std::rc::Rc;

use rhai::{Array, Dynamic, Engine, ImmutableString, Map};

use super::error::{mistake, thrown, Outcome};
use super::experiment::{has_ending, pair};
use super::functions::cells;
use super::session::Session;
use crate::disk;
use crate::report::{plot, Page, Series};
use crate::terminal::print;

pub(super) fn register(engine: &mut Engine, session: &Rc<Session>) {
    engine.register_type_with_name::<Page>("Page");
    engine.register_fn("page", |title: ImmutableString| Page::new(&title));
    engine.register_fn("heading", |page: &mut Page, text: ImmutableString| {
        page.heading(&text)
    });
    engine.register_fn("text", |page: &mut Page, text: ImmutableString| {
        page.paragraph(&text)
    });
    engine.register_fn("verbatim", |page: &mut Page, text: ImmutableString| {
        page.verbatim(&text)
    });
    engine.register_fn(
        "table",
        |page: &mut Page, columns: Array, rows: Array| -> Outcome<()> {
            page.table(&cells(&columns, &rows)?);
            Ok(())
        },
    );
    engine.register_fn(
        "plot",
        |page: &mut Page, settings: Map, series: Array| -> Outcome<()> {
            picture(page, &settings, &series)
        },
    );
    let own = session.clone();
    engine.register_fn(
        "save",
        move |page: &mut Page, file: ImmutableString| -> Outcome<String> {
            if !has_ending(&file, "html") {
                let message = format!("`{file}` does not end in `.html`");
                return Err(mistake(message, "write `page.save(\"report.html\")`"));
            }
            let path = own.output(&file).map_err(thrown)?;
            if own.runner.rehearsal.is_some() {
                return Ok(path.display().to_string());
            }
            let write = || {
                std::fs::create_dir_all(disk::parent(&path))?;
                disk::replace(&path, page.to_string().as_bytes())
            };
            write().map_err(|e| thrown(disk::failed("written", &path, &e)))?;
            print(&format!("{}\n", path.display()));
            Ok(path.display().to_string())
        },
    );
}

/// `#{ title, x, y, log }` and a list of `#{ name, points }`.
fn picture(page: &mut Page, settings: &Map, series: &[Dynamic]) -> Outcome<()> {
    let text = |key: &str| {
        settings
            .get(key)
            .map(Dynamic::to_string)
            .unwrap_or_default()
    };
    let is_log = settings
        .get("log")
        .is_some_and(|log| log.as_bool() == Ok(true));
    let curve = |entry: &Dynamic| -> Outcome<Series> {
        let entry = entry.read_lock::<Map>();
        let found = entry
            .as_ref()
            .and_then(|map| Some((map.get("name")?, map.get("points")?)));
        let Some((name, points)) = found else {
            return Err(mistake(
                "a curve needs a `name` and `points`",
                "write `#{ name: \"lora\", points: run.curve }`",
            ));
        };
        let points = points
            .read_lock::<Array>()
            .ok_or_else(|| mistake("`points` is not a list", "write `[[step, value], …]`"))?;
        let points = points.iter().map(pair).collect::<Outcome<Vec<_>>>()?;
        Ok((name.to_string(), points))
    };
    let series = series.iter().map(curve).collect::<Outcome<Vec<_>>>()?;
    let svg = plot(&text("title"), [&text("x"), &text("y")], is_log, &series)
        .map_err(|message| mistake(message, "give every curve finite points"))?;
    page.picture(&svg);
    Ok(())
}
