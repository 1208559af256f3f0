//! A report as one HTML page that needs nothing else: texts, tables, plots.

use std::fmt::Write as _;

/// A page under way.
#[derive(Clone, Debug)]
pub struct Page {
    title: String,
    body: String,
}

const STYLE: &str = "\
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}\
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem}\
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.3rem .8rem;text-align:right;border-bottom:1px solid #d5d9de}\
th:first-child,td:first-child{text-align:left}th{border-bottom:2px solid #8a929b}\
pre{background:#f4f6f8;padding:1rem;overflow-x:auto;font-size:13px}svg{max-width:100%;height:auto}";

impl Page {
    /// An empty page.
    pub fn new(title: &str) -> Self {
        Page {
            title: title.to_owned(),
            body: String::new(),
        }
    }

    /// Adds a heading.
    pub fn heading(&mut self, text: &str) {
        let _ = writeln!(self.body, "<h2>{}</h2>", escaped(text));
    }

    /// Adds a paragraph.
    pub fn paragraph(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p>{}</p>", escaped(text));
    }

    /// Adds text as it is, such as a plan.
    pub fn verbatim(&mut self, text: &str) {
        let _ = writeln!(self.body, "<pre>{}</pre>", escaped(text));
    }

    /// Adds a table, its header first.
    pub fn table(&mut self, rows: &[Vec<String>]) {
        self.body.push_str("<table>\n");
        for (index, row) in rows.iter().enumerate() {
            let tag = if index == 0 { "th" } else { "td" };
            let cells = row
                .iter()
                .map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell)));
            let _ = writeln!(self.body, "<tr>{}</tr>", cells.collect::<String>());
        }
        self.body.push_str("</table>\n");
    }

    /// Adds a picture that [`plot`](super::plot) drew.
    pub fn picture(&mut self, svg: &str) {
        let _ = writeln!(self.body, "<figure>{svg}</figure>");
    }
}

impl std::fmt::Display for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (title, body) = (escaped(&self.title), &self.body);
        write!(
            f,
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\">\
             <title>{title}</title><style>{STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n{body}</body></html>\n"
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
