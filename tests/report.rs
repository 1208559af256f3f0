//! `deltarun report`: the page of a run has the figures of `eval`, for labels and wrong answers as well.

use crate::common::place::{Place, PIPELINE};
use serde_json::Value;

/// The page that a run's report writes.
fn page(place: &Place, arguments: &[&str], file: &str) -> String {
    place.succeed(&[&["report"], arguments].concat());
    let page = std::fs::read_to_string(place.path(file)).unwrap();
    assert!(page.ends_with("</body></html>\n"));
    page
}

/// The number of rows of the table that has a header.
fn rows_under(page: &str, header: &str) -> usize {
    let table = page.split("<table>").find(|table| table.contains(header));
    table.map_or(0, |table| table.matches("<tr>").count() - 1)
}

#[test]
fn a_page_has_curves_labels_and_wrong_answers() {
    let place = Place::new();
    // A set that is a part of a file has the rows of that part.
    for dev in ["tsv(\"dev.tsv\")", "split(train, 20%)"] {
        let text = PIPELINE.replace("tsv(\"dev.tsv\")", dev);
        place.write("small.delta", text.as_bytes());
        place.succeed(&["small.delta", "--quiet", "--out", "run"]);
        let page = page(&place, &["run"], "run/report.html");
        assert_eq!(
            page.matches("<svg").count(),
            4,
            "loss, accuracy, rate, norm"
        );
        let eval = place.succeed(&["eval", "run", "--format", "json"]);
        let eval: Value = serde_json::from_str(&eval).unwrap();
        let count = |row: usize, column: usize| eval["confusion"][row][column].as_u64().unwrap();
        for row in 0..2 {
            let cells = format!("<td>{}</td><td>{}</td>", count(row, 0), count(row, 1));
            assert!(page.contains(&cells), "{cells}");
        }
        let wrong = (count(0, 1) + count(1, 0)) as usize;
        assert!(
            wrong > 0 && page.contains(&format!("<h2>{wrong} wrong answer")),
            "{dev}"
        );
        assert_eq!(rows_under(&page, "<th>predicted</th>"), wrong);
        assert!(page.contains("pipeline small"));
        std::fs::remove_dir_all(place.path("run")).unwrap();
    }
}

#[test]
fn a_page_of_texts_has_metrics_and_no_labels() {
    let place = Place::of_tasks();
    let text = "pipeline ask\nbackbone \"llama\" { max_length = 40 }\n\
                data { train = jsonl(\"rows.jsonl\"), dev = jsonl(\"rows.jsonl\") }\n\
                task instruct { prompt = text, answer = label }\n\
                reparam low = lora on **.q\n\
                stage tune { train = [low], steps = 4, optimizer = adamw { lr = 1e-3 } }\n";
    place.write("ask.delta", text.as_bytes());
    place.succeed(&["ask.delta", "--quiet"]);
    let page = page(&place, &["runs/ask", "--out", "ask.html"], "ask.html");
    assert!(page.contains("<td>perplexity</td>"), "{page}");
    assert!(!page.contains("wrong answer"));
    assert!(!place.path("runs/ask/report.html").exists());
    // A run is as it was, whatever page lies beside its files.
    place.succeed(&["report", "runs/ask"]);
    place.succeed(&["eval", "runs/ask"]);
    place.succeed(&["replay", "runs/ask"]);
    let said = place.fail(2, &["report", "llama", "--text", "text"]);
    assert!(said.contains("not a finished run"), "{said}");
}

/// A label is the same one with white space around it, and a curve without a scale is left out of the page.
#[test]
fn a_page_leaves_out_what_it_cannot_show() {
    let place = Place::new();
    place.succeed(&["small.delta", "--quiet"]);
    let rows = std::fs::read_to_string(place.path("dev.tsv")).unwrap();
    place.write(
        "padded.tsv",
        rows.replace("positive\n", "positive \n").as_bytes(),
    );
    let wrong = |data: &str| {
        let page = page(
            &place,
            &["runs/small", "--data", data],
            "runs/small/report.html",
        );
        rows_under(&page, "<th>predicted</th>")
    };
    assert_eq!(wrong("padded.tsv"), wrong("dev.tsv"));

    place.write(
        "huge.csv",
        b"text,score\na fine film,3e9\na dull film,-3e9\n",
    );
    let text = "pipeline huge\nbackbone \"backbone\" { max_length = 16 }\n\
                data { train = csv(\"huge.csv\") }\ntask regress { text = text, label = score }\n\
                reparam low = lora on **.q\n\
                stage tune { train = [low, head], steps = 3, optimizer = adamw { lr = 1e-3 } }\n";
    place.write("huge.delta", text.as_bytes());
    place.succeed(&["huge.delta", "--quiet"]);
    let page = page(&place, &["runs/huge"], "runs/huge/report.html");
    assert!(page.contains("Loss: a point is beyond") && page.contains("<svg"));
}
