//! Parquet: a table of typed columns, as the Hugging Face hub has data sets.

use std::fs::File;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row as Record};
use parquet::schema::types::Type;
use serde_json::{json, Map, Value};

use super::json_lines::values;
use super::table::{at_line, places, unreadable, Numbered, Wanted};
use crate::diagnostic::Problem;
use crate::hub::local;
use crate::plan::FilePlan;

/// Calls `each` with the wanted values of each row. A column of a kind of numbers that stand for names (`ClassLabel` of
/// the library `datasets`) has the names.
///
/// # Errors
/// The file is missing, is no Parquet file, or lacks a column.
pub(super) fn parquet(
    file: &FilePlan,
    wanted: &[Wanted],
    each: &mut dyn FnMut(Result<Numbered, Problem>) -> bool,
) -> Result<(), Problem> {
    let wrong = |e: &dyn std::fmt::Display| wrong(file, e);
    let reader = open(file)?;
    places(file, &names(&reader), wanted)?;
    let metadata = reader.metadata().file_metadata();
    let schema = metadata.schema_descr().root_schema();
    let own = metadata.key_value_metadata().into_iter().flatten();
    let own = own.filter(|pair| pair.key == "huggingface");
    let features = own.filter_map(|pair| serde_json::from_str::<Value>(pair.value.as_ref()?).ok());
    let features = features.map(|json| json["info"]["features"].clone()).next();
    let features = features.unwrap_or_default();
    let is_wanted =
        |column: &&std::sync::Arc<Type>| wanted.iter().any(|wanted| wanted.name == column.name());
    let fields = schema
        .get_fields()
        .iter()
        .filter(is_wanted)
        .cloned()
        .collect();
    let projection = Type::group_type_builder(schema.name())
        .with_fields(fields)
        .build();
    let projection = projection.map_err(|e| wrong(&e))?;
    let rows = reader
        .get_row_iter(Some(projection))
        .map_err(|e| wrong(&e))?;
    for (number, row) in (1..).zip(rows) {
        // The reader does not go on behind what it cannot read, and would say so for ever.
        let row = match row {
            Ok(row) => values(file, number, &object(&row, &features), wanted),
            Err(e) => {
                each(Err(wrong(&e)));
                break;
            }
        };
        if !each(row) {
            break;
        }
    }
    Ok(())
}

/// The names of a file's columns.
///
/// # Errors
/// The file is missing, or is no Parquet file.
pub(super) fn parquet_columns(file: &FilePlan) -> Result<Vec<String>, Problem> {
    Ok(names(&open(file)?))
}

fn open(file: &FilePlan) -> Result<SerializedFileReader<File>, Problem> {
    let path = local(&file.path).map_err(|problem| problem.at(file.span, "named here"))?;
    let opened = File::open(path).map_err(|e| unreadable(file, &e))?;
    SerializedFileReader::new(opened).map_err(|e| wrong(file, &e))
}

fn names(reader: &SerializedFileReader<File>) -> Vec<String> {
    let schema = reader.metadata().file_metadata().schema_descr();
    let columns = schema.root_schema().get_fields().iter();
    columns.map(|column| column.name().to_owned()).collect()
}

fn wrong(file: &FilePlan, e: &dyn std::fmt::Display) -> Problem {
    let message = format!("the file cannot be read as Parquet: {e}");
    at_line("delta::data::parquet", file, 0, message)
        .at(file.span, "this file")
        .help("download it again; or write it anew in Python: `pandas.read_parquet(FILE).to_parquet(NEW, compression=\"snappy\")`")
}

/// A row as JSON.
fn object(row: &Record, features: &Value) -> Map<String, Value> {
    let columns = row.get_column_iter();
    columns
        .map(|(name, field)| (name.clone(), value(field, &features[name.as_str()])))
        .collect()
}

/// A value as JSON. `feature` is what `datasets` says of its column.
fn value(field: &Field, feature: &Value) -> Value {
    let number = |number: i64| match usize::try_from(number)
        .ok()
        .and_then(|n| feature["names"].get(n))
    {
        Some(name) if feature["_type"] == "ClassLabel" => name.clone(),
        _ => json!(number),
    };
    match field {
        Field::Null => Value::Null,
        Field::Bool(own) => json!(own),
        Field::Byte(own) => number(i64::from(*own)),
        Field::Short(own) => number(i64::from(*own)),
        Field::Int(own) => number(i64::from(*own)),
        Field::Long(own) => number(*own),
        Field::UByte(own) => number(i64::from(*own)),
        Field::UShort(own) => number(i64::from(*own)),
        Field::UInt(own) => number(i64::from(*own)),
        Field::ULong(own) => json!(own),
        Field::Float16(own) => json!(own.to_f32()),
        Field::Float(own) => json!(own),
        Field::Double(own) => json!(own),
        Field::Str(own) => json!(own),
        Field::Bytes(own) => match own.as_utf8() {
            Ok(text) => json!(text),
            Err(_) => Value::Null,
        },
        Field::ListInternal(list) => {
            let of_item = match feature {
                // Older versions of `datasets` write a list with the feature of its items.
                Value::Array(items) => items.first().cloned().unwrap_or_default(),
                other => other["feature"].clone(),
            };
            list.elements()
                .iter()
                .map(|item| value(item, &of_item))
                .collect()
        }
        Field::Group(row) => Value::Object(object(row, feature)),
        Field::MapInternal(map) => {
            let text = |key: &Field| match value(key, &Value::Null) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            let pairs = map.entries().iter();
            let pairs = pairs.map(|(key, own)| (text(key), value(own, &Value::Null)));
            Value::Object(pairs.collect())
        }
        other => json!(other.to_string()),
    }
}
