//! Data sets, adapters and models of the hub, by a server of our own that answers as the hub does: `HF_ENDPOINT` and `HF_HOME`, which Python's
//! libraries read as well, say where it and its cache are.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use crate::common::place::{Place, PIPELINE};

/// A file that the server cannot give at the moment.
const BUSY: &[u8] = b"busy";

/// Serves the files of one repository, such as `datasets/some/films`, until the test ends. Returns the endpoint.
fn serve(repository: &str, files: Vec<(&'static str, Vec<u8>)>) -> String {
    let folder = format!("/{repository}/resolve/main/");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = answer(stream, &folder, &files);
        }
    });
    endpoint
}

/// Answers one request for a file, or for a range of its bytes.
fn answer(stream: TcpStream, folder: &str, files: &[(&str, Vec<u8>)]) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut range = None;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        let line = line.to_lowercase();
        range = range.or(line
            .strip_prefix("range: bytes=")
            .map(|range| range.trim().to_owned()));
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    let wanted = path.strip_prefix(folder);
    let file = files.iter().find(|(name, _)| Some(*name) == wanted);
    let mut stream = stream;
    if file.is_some_and(|(_, content)| content == BUSY) {
        return stream.write_all(
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
    }
    let Some((_, content)) = file else {
        return stream.write_all(
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
    };
    let (from, to) = match range.as_deref().and_then(|range| range.split_once('-')) {
        Some((from, to)) => (
            from.parse().unwrap_or(0),
            to.parse().unwrap_or(content.len() - 1),
        ),
        None => (0, content.len() - 1),
    };
    let part = &content[from..=to.min(content.len() - 1)];
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{to}/{}\r\nETag: \"e{}\"\r\n\
         X-Repo-Commit: abc\r\nConnection: close\r\n\r\n",
        part.len(),
        content.len(),
        content.len()
    )?;
    stream.write_all(part)
}

#[test]
fn data_sets_of_the_hub_are_downloaded_once() {
    let place = Place::new();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let files = vec![
        (
            "data/train.tsv",
            std::fs::read(place.path("train.tsv")).unwrap(),
        ),
        (
            "rows.parquet",
            std::fs::read(fixture.join("rows.parquet")).unwrap(),
        ),
    ];
    let endpoint = serve("datasets/some/films", files);
    let run = |endpoint: &str, arguments: &[&str]| {
        let mut command = place.command(arguments);
        let command = command.env("HF_HOME", place.path("cache"));
        command.env("HF_ENDPOINT", endpoint).output().unwrap()
    };
    let hub = "tsv(\"hf:some/films/data/train.tsv\")";
    let own = PIPELINE.replace("tsv(\"train.tsv\")", hub);
    assert!(own.contains(hub));
    place.write("small.delta", own.as_bytes());
    let first = run(&endpoint, &["small.delta", "--quiet", "--out", "first"]);
    assert!(
        first.status.success(),
        "{}",
        String::from_utf8_lossy(&first.stderr)
    );
    // The hub is not asked again, and the bits are those of the same file here.
    let none = "http://127.0.0.1:1";
    let second = run(none, &["small.delta", "--quiet", "--out", "second"]);
    assert!(
        second.status.success(),
        "{}",
        String::from_utf8_lossy(&second.stderr)
    );
    place.write("small.delta", PIPELINE.as_bytes());
    place.succeed(&["small.delta", "--quiet", "--out", "here"]);
    let delta = |run: &str| std::fs::read(place.path(run).join("delta.safetensors")).unwrap();
    assert!(delta("first") == delta("second") && delta("first") == delta("here"));
    let manifest = std::fs::read_to_string(place.path("first/manifest.yaml")).unwrap();
    assert!(
        manifest.contains("hf:some/films/data/train.tsv"),
        "{manifest}"
    );
    // Parquet, a file that is not there, and a name without a file.
    for (reader, wanted) in [
        (
            "parquet(\"hf:some/films/rows.parquet\")",
            "the tokens of `hf:some/films/rows.parquet`",
        ),
        (
            "tsv(\"hf:some/films/none.tsv\")",
            "could not be downloaded from the Hub",
        ),
        ("tsv(\"hf:some/films\")", "names no file of a data set"),
        (
            "tsv(\"hf:some/films/../../../train.tsv\")",
            "names no file of a data set",
        ),
    ] {
        place.write(
            "small.delta",
            PIPELINE.replace("tsv(\"train.tsv\")", reader).as_bytes(),
        );
        let output = run(&endpoint, &["check", "small.delta"]);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains(wanted), "{reader}: {message}");
        assert_eq!(
            output.status.success(),
            reader.starts_with("parquet"),
            "{message}"
        );
    }
}

/// `predict` gets an adapter, or a model with a head, from the hub; both answer as the same files here.
#[test]
fn adapters_and_models_of_the_hub_answer() {
    let place = Place::new();
    place.succeed(&["small.delta", "--quiet"]);
    place.succeed(&["merge", "runs/small", "merged"]);
    let backbone = place.path("backbone").display().to_string();
    place.write("rows.jsonl", b"{\"text\": \"a fine film\"}\n");
    const MODEL: &[&str] = &["config.json", "model.safetensors", "tokenizer.json"];
    const ADAPTER: &[&str] = &["adapter_config.json", "adapter_model.safetensors"];
    for (own, files, backbone) in [
        ("merged", MODEL, None),
        ("runs/small/peft", ADAPTER, Some(backbone.as_str())),
    ] {
        let read = |name: &&'static str| {
            let bytes = std::fs::read(place.path(own).join(name)).unwrap();
            (*name, bytes)
        };
        let endpoint = serve("some/model", files.iter().map(read).collect());
        let predict = |name: &str| {
            let mut command = place.command(&["predict", name, "--input", "rows.jsonl"]);
            command.env("HF_ENDPOINT", &endpoint);
            command.env(
                "HF_HOME",
                place.path(&format!("cache {own}").replace('/', " ")),
            );
            command.args(backbone.iter().flat_map(|place| ["--backbone", place]));
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{name}: {said}");
            String::from_utf8(output.stdout).unwrap()
        };
        let here = predict(own);
        assert!(here.contains("\"label\""), "{here}");
        assert_eq!(predict("hf:some/model"), here);
    }
}

/// A file that the hub does not give now is not one that a repository does not have. A model that is whole in the cache
/// needs no hub.
#[test]
fn a_hub_that_is_busy_is_no_answer() {
    let place = Place::new();
    let model = place.path("backbone");
    let read = |name: &'static str| (name, std::fs::read(model.join(name)).unwrap());
    let files = ["config.json", "model.safetensors", "tokenizer.json"].map(read);
    let busy = [("tokenizer_config.json", BUSY.to_vec())];
    let own = PIPELINE.replace("\"backbone\"", "\"hf:some/model\"");
    assert!(own.contains("hf:some/model"));
    place.write("small.delta", own.as_bytes());
    let run = |endpoint: &str, out: &str| {
        let mut command = place.command(&["small.delta", "--quiet", "--out", out]);
        let command = command.env("HF_HOME", place.path("cache"));
        let output = command.env("HF_ENDPOINT", endpoint).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let (code, said) = run(
        &serve("some/model", files.iter().chain(&busy).cloned().collect()),
        "first",
    );
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("503"), "{said}");
    let (code, said) = run(&serve("some/model", files.to_vec()), "second");
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run("http://127.0.0.1:1", "third");
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("does not say whether `hf:some/model` has `tokenizer_config.json`"),
        "{said}"
    );
}

/// An adapter names its model as Python's libraries do, and the model is got from there.
#[test]
fn the_model_that_an_adapter_names_is_in_the_hub() {
    let place = Place::new();
    place.succeed(&["small.delta", "--quiet"]);
    let config = place.path("runs/small/peft/adapter_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["base_model_name_or_path"] = "some/model".into();
    std::fs::write(&config, json.to_string()).unwrap();
    place.write("rows.jsonl", b"{\"text\": \"a fine film\"}\n");
    let model = place.path("backbone");
    let read = |name: &'static str| (name, std::fs::read(model.join(name)).unwrap());
    let files = ["config.json", "model.safetensors", "tokenizer.json"].map(read);
    let mut command = place.command(&["predict", "runs/small/peft", "--input", "rows.jsonl"]);
    let command = command.env("HF_HOME", place.path("cache"));
    let command = command.env("HF_ENDPOINT", serve("some/model", files.to_vec()));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let here = place.succeed(&[
        "predict",
        "runs/small/peft",
        "--input",
        "rows.jsonl",
        "--backbone",
        "backbone",
    ]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), here);
}
