//! `deltarun init` on files of many kinds: the drafted pipeline has the task that the file is for, and passes `check`.

use std::path::Path;

use crate::common::place::Place;
use serde_json::json;

/// Rows of a made file: `count` lines by their numbers.
fn lines(count: usize, line: impl Fn(usize) -> String) -> String {
    (0..count).map(|number| line(number) + "\n").collect()
}

/// The file's name and content, the backbone, and what the draft says.
fn cases() -> Vec<(&'static str, String, &'static str, Vec<&'static str>)> {
    let mood = |n: usize| ["good", "bad", "fair"][n % 3];
    let text = |n: usize| format!("the film number {n} was rather {}", mood(n));
    vec![
        (
            "reviews.csv",
            format!("id,text,label\n{}", lines(60, |n| format!("{n},\"{}, they say\",{}", text(n), mood(n)))),
            "bert",
            vec!["csv(\"reviews.csv\")", "task classify", "text = text", "label = label", "split(train, 10%)"],
        ),
        (
            "german.csv",
            format!("satz;klasse\n{}", lines(60, |n| format!("{};{}", text(n), n % 3))),
            "bert",
            vec!["separator = \";\"", "text = satz", "label = klasse"],
        ),
        (
            "pairs.tsv",
            format!("premise\thypothesis\tgold label\n{}", lines(60, |n| format!("{}\t{}\t{}", text(n), text(n + 1), mood(n)))),
            "bert",
            vec!["text = [premise, hypothesis]", "label = \"gold label\""],
        ),
        (
            "similar.tsv",
            format!("sentence1\tsentence2\tscore\n{}", lines(60, |n| format!("{}\t{}\t{}.5", text(n), text(n + 1), n % 5))),
            "bert",
            vec!["task regress", "label = score"],
        ),
        (
            "topics.jsonl",
            lines(60, |n| json!({ "body": text(n), "topics": [mood(n), mood(n + 1)] }).to_string()),
            "bert",
            vec!["text = body", "label = topics", "several = on"],
        ),
        (
            "words.jsonl",
            lines(60, |n| json!({ "tokens": ["the", "film", "X"], "ner_tags": ["O", "O", if n % 2 == 0 { "B-FILM" } else { "O" }] }).to_string()),
            "bert",
            vec!["task tag", "tokens = tokens", "tags = ner_tags"],
        ),
        (
            "names.conll",
            lines(60, |n| format!("the O\nfilm O\nX{n} B-FILM\n")),
            "bert",
            vec!["conll(\"names.conll\")", "task tag"],
        ),
        (
            "chat.json",
            json!((0..40).map(|n| json!({ "messages": [{ "role": "user", "content": text(n) }, { "role": "assistant", "content": mood(n) }] })).collect::<Vec<_>>()).to_string(),
            "chat",
            vec!["json(\"chat.json\")", "task instruct", "messages = messages", "ff.{gate,up,down}"],
        ),
        (
            "questions.jsonl",
            lines(40, |n| json!({ "question": text(n), "answer": format!("it was {} as ever", mood(n)) }).to_string()),
            "chat",
            vec!["prompt = question", "answer = answer", "train = [low_rank]"],
        ),
        (
            "plain.jsonl",
            lines(40, |n| json!({ "question": text(n), "answer": format!("it was {} as ever", mood(n)) }).to_string()),
            "llama",
            vec!["template = \"{question}\\n{answer}\"", "answer = answer"],
        ),
        (
            "alpaca.jsonl",
            lines(40, |n| json!({ "instruction": "judge the film", "input": if n < 30 { text(n) } else { String::new() }, "output": mood(n) }).to_string()),
            "llama",
            vec!["template = \"### Instruction:\\n{instruction}\\n\\n### Input:\\n{input}", "answer = output"],
        ),
        (
            "taste.jsonl",
            lines(40, |n| json!({ "prompt": text(n), "chosen": "yes, it was", "rejected": "no idea at all" }).to_string()),
            "chat",
            vec!["task prefer", "chosen = chosen", "loss = dpo"],
        ),
        (
            "summaries.jsonl",
            lines(40, |n| json!({ "article": text(n).repeat(3), "summary": format!("film {n} in short") }).to_string()),
            "t5",
            vec!["task seq2seq", "source = article", "target = summary", "metric = rouge_l"],
        ),
        (
            "share.jsonl",
            lines(40, |n| json!({ "conversations": [{ "from": "human", "value": text(n) }, { "from": "gpt", "value": mood(n) }] }).to_string()),
            "chat",
            vec!["messages = conversations"],
        ),
        (
            "whole.jsonl",
            lines(40, |n| {
                let answer = |a: &str| json!([{ "role": "user", "content": text(n) }, { "role": "assistant", "content": a }]);
                json!({ "prompt": text(n), "chosen": answer("yes"), "rejected": answer("no") }).to_string()
            }),
            "chat",
            vec!["task prefer", "# Not read: `prompt`."],
        ),
        (
            "speech.jsonl",
            lines(60, |n| json!({ "tokens": ["the", "film"], "tags": ["DET", if n % 2 == 0 { "NOUN" } else { "VERB" }] }).to_string()),
            "bert",
            vec!["task tag", "scheme = plain"],
        ),
        (
            "choices.jsonl",
            lines(40, |n| json!({ "question": text(n), "choices": ["good", "bad"], "answer": n % 2 }).to_string()),
            "llama",
            vec!["task choose", "answers = choices", "label = answer"],
        ),
        (
            "titled.csv",
            format!("title,body,label\n{}", lines(60, |n| format!("film {n},{},{}", text(n), mood(n)))),
            "bert",
            vec!["text = [title, body]"],
        ),
        (
            "tagged.tsv",
            lines(60, |n| format!("the\tO\nfilm\tO\nX{n}\tB-FILM\n")),
            "bert",
            vec!["conll(\"tagged.tsv\")", "task tag"],
        ),
        (
            "two_languages.tsv",
            format!("en\tde\n{}", lines(40, |n| format!("the film {n} was good\tder film {n} war gut"))),
            "llama",
            vec!["task seq2seq", "separator = "],
        ),
        (
            "sorted.csv",
            format!("text,label\n{}", lines(2500, |n| format!("{},{}", text(n), if n < 2100 { "neg" } else { "pos" }))),
            "bert",
            vec!["task classify", "label = label"],
        ),
        (
            "train.csv",
            format!("text,label,extra\n{}", lines(60, |n| format!("{},{},{n}", text(n), mood(n)))),
            "bert",
            vec!["has other columns, and is left out", "split(train, 10%)", "# Not read: `extra`."],
        ),
        (
            "lines.csv",
            format!("text\n{}", lines(40, text)),
            "bert",
            vec!["task masked_lm", "train = [low_rank, head]"],
        ),
        (
            "arc.jsonl",
            lines(40, |n| json!({ "id": n, "question": text(n), "choices": { "text": ["one", "two"], "label": ["A", "B"] }, "answerKey": (["A", "B"][n % 2]) }).to_string()),
            "llama",
            vec!["task choose", "prompt = question", "answers = choices", "label = answerKey"],
        ),
        (
            "siqa.jsonl",
            lines(40, |n| json!({ "context": text(n), "question": "why?", "answerA": "one", "answerB": "two", "answerC": "three", "label": (1 + n % 3).to_string() }).to_string()),
            "llama",
            vec!["template = \"{context}\\n{question} {answer}\"", "answers = [answerA, answerB, answerC]", "labels = [\"1\", \"2\", \"3\"]"],
        ),
        (
            "swag.csv",
            format!("startphrase,sent2,ending0,ending1,label\n{}", lines(40, |n| format!("{},and then,one ends,two ends,{}", text(n), n % 2))),
            "llama",
            vec!["prompt = startphrase", "answers = [ending0, ending1]", "# Not read: `sent2`."],
        ),
        (
            "race.jsonl",
            lines(40, |n| json!({ "article": text(n), "question": "why?", "options": ["one", "two"], "answer": (["A", "B"][n % 2]) }).to_string()),
            "llama",
            vec!["template = \"{article}\\n{question} {answer}\"", "labels = [A, B]"],
        ),
        (
            "squad.jsonl",
            lines(40, |n| json!({ "title": (["a", "b"][n % 2]), "context": text(n), "question": "which number?", "answers": { "text": [n.to_string()], "answer_start": [16] } }).to_string()),
            "llama",
            vec!["task instruct", "Answer: {answers.text.0}", "answer = \"answers.text.0\""],
        ),
        (
            "points.csv",
            format!("essay,score\n{}", lines(300, |n| format!("{},{}", text(n), 2 * (n % 60)))),
            "bert",
            vec!["task regress", "label = score"],
        ),
        (
            "numbered.csv",
            format!("text,label\n{}", lines(300, |n| format!("{},{}", text(n), n % 77))),
            "bert",
            vec!["task classify", "label = label"],
        ),
        (
            "entities.jsonl",
            lines(40, |n| json!({ "tokens": ["the", "film"], "pos_tags": ["DT", "NN"], "ner_tags": ["O", (["O", "B-FILM"][n % 2])] }).to_string()),
            "bert",
            vec!["tags = ner_tags"],
        ),
        (
            "list.jsonl",
            json!((0..40).map(|n| json!({ "text": text(n), "label": mood(n) })).collect::<Vec<_>>()).to_string(),
            "bert",
            vec!["train = json(\"list.jsonl\")", "param rank = 16", "lora { rank = rank"],
        ),
        (
            "book.txt",
            lines(40, text),
            "llama",
            vec!["text(\"book.txt\")", "task causal_lm"],
        ),
    ]
}

/// The embedded backbones.
fn backbone(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    let path = match name {
        "bert" => root.join("quickstart/backbone"),
        other => root.join("architectures").join(other),
    };
    path.display().to_string()
}

/// A folder with the embedded Llama, with a chat template.
fn with_chat(place: &Place) {
    let llama = backbone("llama");
    std::fs::create_dir(place.path("chat_model")).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let copy = place.path("chat_model").join(file);
        std::fs::copy(Path::new(&llama).join(file), copy).unwrap();
    }
    let template = "{% for m in messages %}{{ m.role }} {{ m.content }} {{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant {% endif %}";
    let config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, "eos_token": "[SEP]" });
    place.write(
        "chat_model/tokenizer_config.json",
        config.to_string().as_bytes(),
    );
}

#[test]
fn files_of_many_kinds_get_a_pipeline_that_passes_the_check() {
    let place = Place::new();
    with_chat(&place);
    // As competitions have it: a test file without labels beside the training file.
    place.write("test.csv", b"text\na film\n");
    for (file, content, model, expected) in cases() {
        place.write(file, content.as_bytes());
        let model = match model {
            "chat" => "chat_model".to_owned(),
            other => backbone(other),
        };
        let said = place.succeed(&["init", file, "--backbone", &model]);
        let name = format!("{}.delta", file.split('.').next().unwrap());
        assert!(said.contains(&format!("wrote {name}")), "{said}");
        let draft = std::fs::read_to_string(place.path(&name)).unwrap();
        for part in expected {
            assert!(draft.contains(part), "{file}: no {part} in\n{draft}");
        }
        place.succeed(&["check", &name]);
        place.succeed(&["fmt", "--check", &name]);
    }
    // A draft runs.
    let text = std::fs::read_to_string(place.path("reviews.delta")).unwrap();
    place.write(
        "reviews.delta",
        text.replace("epochs = 20", "epochs = 2").as_bytes(),
    );
    place.succeed(&["reviews.delta", "--quiet"]);
    // Without a backbone, it names one of the hub.
    place.succeed(&["init", "reviews.csv", "--out", "other.delta"]);
    let other = std::fs::read_to_string(place.path("other.delta")).unwrap();
    assert!(other.contains("\"hf:distilbert/"), "{other}");
    // Without one, choices are for a decoder; a column whose name is a setting of the task is no more read for that.
    let choice = |n| json!({ "question": format!("which of {n}?"), "choices": ["one", "two"], "answer": n % 2, "label": "easy" });
    place.write(
        "quiz.jsonl",
        lines(40, |n| choice(n).to_string()).as_bytes(),
    );
    place.succeed(&["init", "quiz.jsonl"]);
    let quiz = std::fs::read_to_string(place.path("quiz.delta")).unwrap();
    assert!(
        quiz.contains("task choose") && quiz.contains("ff.{gate,up,down}"),
        "{quiz}"
    );
    assert!(quiz.contains("# Not read: `label`."), "{quiz}");
    // A list with the mark of UTF-8 before it, as editors of Windows write it.
    let marked = format!(
        "\u{feff}[{}]",
        vec!["{\"text\": \"a\", \"label\": \"b\"}"; 20].join(",")
    );
    place.write("marked.json", marked.as_bytes());
    place.succeed(&["init", "marked.json"]);
    // An instruction without an input is none without a text.
    let alpaca = place.run(&["check", "alpaca.delta"]);
    let said = String::from_utf8(alpaca.stderr).unwrap();
    assert!(
        alpaca.status.success() && !said.contains("empty_text"),
        "{said}"
    );
    // A contest's test set has no labels.
    let rows = |label: &str| {
        format!(
            "text,label\n{}",
            lines(20, |n| format!(
                "the film {n},{}",
                if label.is_empty() {
                    ["good", "bad"][n % 2]
                } else {
                    label
                }
            ))
        )
    };
    std::fs::create_dir(place.path("contest")).unwrap();
    place.write("contest/train.csv", rows("").as_bytes());
    place.write("contest/test.csv", rows("-1").as_bytes());
    place.succeed(&["init", "contest/train.csv", "--out", "contest.delta"]);
    let contest = std::fs::read_to_string(place.path("contest.delta")).unwrap();
    assert!(
        contest.contains("has no labels, and is left out") && !contest.contains("test ="),
        "{contest}"
    );
    // Encodings are drafted; a broken letter among others is none.
    let utf16 = "text,label\nbar,good\nfoo,bad\nbar,good\nfoo,bad\n".encode_utf16();
    let utf16: Vec<u8> = std::iter::once(0xfeff)
        .chain(utf16)
        .flat_map(u16::to_le_bytes)
        .collect();
    let broken = [
        b"text,label\n",
        "caf\u{e9},good\nbar,bad\n".repeat(9).as_bytes(),
        b"\xff,good\n",
    ]
    .concat();
    for (bytes, name, reader) in [
        (
            utf16.as_slice(),
            "wide",
            "csv(\"coded.csv\", encoding = \"utf-16\")",
        ),
        (
            b"text,label\n\x93caf\xe9\x94,good\nbar,bad\nbar,good\nbar,bad\n",
            "windows",
            "csv(\"coded.csv\", encoding = \"cp1252\")",
        ),
    ] {
        place.write("coded.csv", bytes);
        let out = format!("{name}.delta");
        place.succeed(&["init", "coded.csv", "--out", &out]);
        let draft = std::fs::read_to_string(place.path(&out)).unwrap();
        assert!(
            draft.contains(reader) && draft.contains("# The file is not UTF-8"),
            "{draft}"
        );
    }
    place.write("coded.csv", &broken);
    let error = place.fail(2, &["init", "coded.csv", "--out", "broken.delta"]);
    assert!(error.contains("line 20: the text is not UTF-8"), "{error}");
    // A pipeline elsewhere has whole paths.
    std::fs::create_dir(place.path("below")).unwrap();
    let model = backbone("bert");
    place.succeed(&[
        "init",
        "reviews.csv",
        "--backbone",
        &model,
        "--out",
        "below/x.delta",
    ]);
    place.succeed(&["check", "below/x.delta"]);
}

#[test]
fn what_cannot_be_drafted_is_said() {
    let place = Place::new();
    place.write(
        "chat.jsonl",
        lines(9, |_| {
            json!({ "prompt": "a film", "answer": "it is good enough" }).to_string()
        })
        .as_bytes(),
    );
    place.write("numbers.csv", b"a,b\n1,2\n3,4\n");
    place.write("data.xyz", b"a");
    place.write(
        "nohead.csv",
        b"a film that was rather good,positive\nanother film that was bad,negative\n",
    );
    let row =
        |n: usize| format!("the film {n} was good,the house {n} was large,the street {n} was long");
    place.write(
        "unnamed.csv",
        format!("a,b,c\n{}", lines(40, row)).as_bytes(),
    );
    let talk = |_| {
        json!({ "messages": [{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b" }] }).to_string()
    };
    place.write("talk.jsonl", lines(9, talk).as_bytes());
    let verdict = |n: usize| {
        json!({ "prompt": "a film", "completion": "b", "label": n.is_multiple_of(2) }).to_string()
    };
    place.write("kto.jsonl", lines(9, verdict).as_bytes());
    let llama = backbone("llama");
    place.write("small.delta", b"");
    let bert = backbone("bert");
    for (arguments, wanted) in [
        (&["init", "none.csv"][..], "`none.csv` cannot be read"),
        (&["init", "data.xyz"], "does not say its format"),
        (&["init", "kto.jsonl"], "a verdict each (KTO)"),
        (&["init", "backbone"], "`backbone` is a directory"),
        (&["init", "nohead.csv"], "its first line is no header"),
        (&["init", "unnamed.csv"], "fit no task"),
        (
            &["init", "talk.jsonl", "--backbone", &llama],
            "has no chat template",
        ),
        (
            &["init", "numbers.csv"],
            "its columns `a` and `b` fit no task",
        ),
        (
            &["init", "chat.jsonl", "--backbone", &bert],
            "which a backbone of the family bert does not learn",
        ),
        (
            &["init", "chat.jsonl", "--out", "small.delta"],
            "is there already",
        ),
        (&["methods", "lorra"], "did you mean `lora`?"),
        (&["tasks", "clasify"], "did you mean `classify`?"),
    ] {
        let error = place.fail(2, arguments);
        assert!(error.contains(wanted), "{arguments:?}: {error}");
    }
}

/// The lists come from what reads the language: every method, task and family has its line, and a default its value.
#[test]
fn what_the_language_knows_is_listed() {
    let place = Place::new();
    let has_line = |list: &str, name: &str| {
        list.lines()
            .any(|line| line.split_whitespace().next() == Some(name))
    };
    let methods = place.succeed(&["methods"]);
    for (name, _) in deltarun::delta::Method::ALL {
        assert!(has_line(&methods, name), "{name}: {methods}");
        place.succeed(&["methods", name]);
    }
    let lora = place.succeed(&["methods", "lora"]);
    assert!(
        lora.contains("reparam NAME = lora { … } on SELECTOR"),
        "{lora}"
    );
    assert!(
        lora.lines().any(|line| line == "rank                8"),
        "{lora}"
    );
    let tasks = place.succeed(&["tasks"]);
    for name in deltarun::task::Task::NAMES {
        assert!(has_line(&tasks, name), "{name}: {tasks}");
        place.succeed(&["tasks", name]);
    }
    let families = place.succeed(&["families"]);
    assert!(families.contains("gemma3_text"), "{families}");
    assert_eq!(
        families.lines().count(),
        deltarun::backbone::family::families().len() + 1
    );
}

/// Two runs that differ in a rate: both are listed, and the comparison names the rate and both results.
#[test]
fn runs_are_listed_and_compared() {
    let place = Place::new();
    place.succeed(&["small.delta", "--quiet", "--out", "runs/one"]);
    let text = std::fs::read_to_string(place.path("small.delta")).unwrap();
    place.write(
        "other.delta",
        text.replace("lr = 1e-3", "lr = 2e-3").as_bytes(),
    );
    place.succeed(&["other.delta", "--quiet", "--out", "runs/two"]);
    std::fs::create_dir(place.path("runs/none")).unwrap();
    let listed = place.succeed(&["runs"]);
    assert_eq!(listed.lines().count(), 3, "{listed}");
    for name in ["runs/one", "runs/two"] {
        let line = listed.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(
            line.contains("accuracy 0.") && line.contains("(dev)"),
            "{line}"
        );
    }
    let compared = place.succeed(&["compare", "runs/one", "runs/two"]);
    let rate = compared.lines().find(|line| line.contains("lr")).unwrap();
    assert!(
        rate.contains("0.001") && rate.contains("0.002"),
        "{compared}"
    );
    assert!(
        compared.starts_with("1 difference in plans and data"),
        "{compared}"
    );
    assert!(
        compared.lines().any(|line| line.starts_with("dev loss")),
        "{compared}"
    );
    // The same file of data, a row shorter.
    let rows = std::fs::read_to_string(place.path("train.tsv")).unwrap();
    let fewer = rows.trim_end().rsplit_once('\n').unwrap().0;
    place.write("train.tsv", fewer.as_bytes());
    place.succeed(&["small.delta", "--quiet", "--out", "runs/fewer"]);
    let compared = place.succeed(&["compare", "runs/one", "runs/fewer"]);
    assert!(
        compared.contains("train.tsv  SHA-256 ") && compared.starts_with("1 difference"),
        "{compared}"
    );
    let same = place.succeed(&["compare", "runs/one", "runs/one"]);
    assert!(
        same.starts_with("the plans and the data are the same"),
        "{same}"
    );
    let error = place.fail(2, &["runs", "elsewhere"]);
    assert!(
        error.contains("there is no directory `elsewhere`"),
        "{error}"
    );
}
