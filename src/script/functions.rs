//! What scripts count, combine and group with.

use rhai::{Array, Dynamic, Engine, ImmutableString, Map};

use super::error::{mistake, Outcome};
use crate::report::Table;
use crate::text::thousands;

pub(super) fn register(engine: &mut Engine) {
    engine
        .register_fn("grid", grid)
        .register_fn("subsets", |items: Array| subsets(&items))
        .register_fn("permutations", |items: Array| permutations(&items))
        .register_fn("sleep", |_: i64| no_sleep())
        .register_fn("sleep", |_: f64| no_sleep())
        .register_fn("pad", pad)
        .register_fn("group", group)
        .register_fn("mean", |values: Array| numbers(&values).map(|v| mean(&v)))
        .register_fn("deviation", |values: Array| {
            numbers(&values).map(|v| deviation(&v))
        })
        .register_fn("median", |values: Array| numbers(&values).map(median))
        .register_fn("percent", |value: f64| format!("{:.1} %", 100.0 * value))
        .register_fn("fixed", |value: f64, digits: i64| {
            format!("{value:.*}", digits.clamp(0, 12) as usize)
        })
        .register_fn("table", |columns: Array, rows: Array| {
            cells(&columns, &rows).map(|cells| text_table(&cells))
        });
}

/// Nothing waits in a script for its own sake.
fn no_sleep() -> Outcome<()> {
    Err(mistake(
        "a script cannot sleep",
        "remove it: `run` waits for its run anyway",
    ))
}

/// A list made longer: rhai's own takes time with the square of the length.
fn pad(list: &mut Array, length: i64, item: Dynamic) -> Outcome<()> {
    let length = usize::try_from(length).unwrap_or(0);
    if length > LONGEST_LIST {
        return Err(mistake(
            format!("a list of {} items is too long", thousands(length)),
            "make it at most 100,000 items long",
        ));
    }
    if length > list.len() {
        list.resize(length, item);
    }
    Ok(())
}

/// Items that a list may have.
pub(super) const LONGEST_LIST: usize = 100_000;

/// Points that a grid may have: each is a pipeline to run.
const MOST_POINTS: usize = 10_000;

/// All combinations of a map of lists, as maps.
fn grid(axes: Map) -> Outcome<Array> {
    let mut points = vec![Map::new()];
    let lengths = axes
        .values()
        .filter_map(|values| values.read_lock::<Array>().map(|list| list.len()));
    let count = lengths.fold(1usize, usize::saturating_mul);
    if count > MOST_POINTS {
        return Err(mistake(
            format!("the grid has {} points", thousands(count)),
            "use a grid of at most 10,000 points",
        ));
    }
    for (key, values) in axes {
        let values = values.into_typed_array::<Dynamic>().map_err(|_| {
            mistake(
                format!("`{key}` of the grid is not a list"),
                "write `grid(#{ lr: [1e-3, 1e-4] })`",
            )
        })?;
        let extended = points.iter().flat_map(|point| {
            values.iter().map(|value| {
                let mut point = point.clone();
                point.insert(key.clone(), value.clone());
                point
            })
        });
        points = extended.collect();
    }
    Ok(points.into_iter().map(Dynamic::from).collect())
}

/// All subsets, the empty one first, each in the list's order.
fn subsets(items: &[Dynamic]) -> Outcome<Array> {
    if items.len() > 12 {
        return Err(mistake(
            format!("a list of {} items has too many subsets", items.len()),
            "use at most 12 items",
        ));
    }
    let subset = |mask: usize| -> Dynamic {
        let chosen = items.iter().enumerate();
        let chosen = chosen.filter(|(place, _)| mask >> place & 1 == 1);
        Dynamic::from(chosen.map(|(_, item)| item.clone()).collect::<Array>())
    };
    Ok((0..1usize << items.len()).map(subset).collect())
}

/// All orders, that of the list first.
fn permutations(items: &[Dynamic]) -> Outcome<Array> {
    if items.len() > 7 {
        return Err(mistake(
            format!("a list of {} items has too many permutations", items.len()),
            "use at most 7 items",
        ));
    }
    fn orders(items: &[Dynamic]) -> Vec<Array> {
        if items.is_empty() {
            return vec![Array::new()];
        }
        let mut all = Vec::new();
        for first in 0..items.len() {
            let mut rest = items.to_vec();
            let head = rest.remove(first);
            for mut order in orders(&rest) {
                order.insert(0, head.clone());
                all.push(order);
            }
        }
        all
    }
    Ok(orders(items).into_iter().map(Dynamic::from).collect())
}

/// Rows that agree in the `keys`, as one: with the `mean`, `deviation` and number `n` of their values.
fn group(rows: Array, keys: Array, value: ImmutableString) -> Outcome<Array> {
    let keys: Vec<String> = keys.iter().map(Dynamic::to_string).collect();
    let mut groups: Vec<(Map, Vec<f64>)> = Vec::new();
    for row in rows {
        let row = row.try_cast::<Map>().ok_or_else(|| no_rows("group"))?;
        let field = |key: &str| {
            row.get(key).cloned().ok_or_else(|| {
                mistake(
                    format!("a row has no `{key}`"),
                    "use rows that all have the keys and the value",
                )
            })
        };
        let mut own = Map::new();
        for key in &keys {
            own.insert(key.as_str().into(), field(key)?);
        }
        let number = number(&field(&value)?)?;
        let is_same = |map: &Map| map.iter().all(|(k, v)| v.to_string() == own[k].to_string());
        match groups.iter_mut().find(|(map, _)| is_same(map)) {
            Some((_, values)) => values.push(number),
            None => groups.push((own, vec![number])),
        }
    }
    let rows = groups.into_iter().map(|(mut row, values)| {
        row.insert("mean".into(), mean(&values).into());
        row.insert("deviation".into(), deviation(&values).into());
        row.insert("n".into(), (values.len() as i64).into());
        Dynamic::from(row)
    });
    Ok(rows.collect())
}

fn no_rows(function: &str) -> Box<rhai::EvalAltResult> {
    mistake(
        format!("`{function}` needs a list of rows"),
        "write each row as a map: `[#{ method: \"lora\", accuracy: 0.9 }]`",
    )
}

/// A number of either kind.
pub(super) fn number(value: &Dynamic) -> Outcome<f64> {
    let whole = value.as_int().map(|number| number as f64);
    value
        .as_float()
        .or(whole)
        .map_err(|kind| mistake(format!("expected a number, found {kind}"), "use a number"))
}

fn numbers(values: &[Dynamic]) -> Outcome<Vec<f64>> {
    values.iter().map(number).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Of the sample; 0 where there is one value.
fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => (values[count / 2 - 1] + values[count / 2]) / 2.0,
    }
}

/// The cells of a table, its header first.
pub(super) fn cells(columns: &[Dynamic], rows: &[Dynamic]) -> Outcome<Vec<Vec<String>>> {
    let columns: Vec<String> = columns.iter().map(Dynamic::to_string).collect();
    let mut cells = vec![columns.clone()];
    for row in rows {
        let row = row.read_lock::<Map>().ok_or_else(|| no_rows("table"))?;
        let cell = |column: &String| match row.get(column.as_str()) {
            Some(value) => Ok(text(value)),
            None => Err(mistake(
                format!("a row has no `{column}`"),
                "use columns that all rows have",
            )),
        };
        cells.push(columns.iter().map(cell).collect::<Outcome<_>>()?);
    }
    Ok(cells)
}

/// A value as people read it.
fn text(value: &Dynamic) -> String {
    match value.as_float() {
        Ok(number) if number != 0.0 && number.abs() < 1e-2 => format!("{number:.1e}"),
        Ok(number) => format!("{number:.3}"),
        Err(_) => value.to_string(),
    }
}

fn text_table(cells: &[Vec<String>]) -> String {
    let mut table = Table::new(cells[0].iter().map(String::as_str));
    cells[1..].iter().for_each(|row| table.row(row.clone()));
    table.to_string()
}
