//! JSON of every kind, good and bad: as a push's body, beside its message, and as its data.
//!
//! The files are those of JSONTestSuite, which is other people's and not kept here. `.ci/run` fetches it.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::push::Served;
use crate::support::origin::{Origin, cacheable};
use crate::support::setting;

/// One file of the suite.
struct Case {
    /// Starts with what a parser must do: `y_` accept, `n_` reject, `i_` either.
    name: String,
    text: Vec<u8>,
}

/// The suite in the folder that `CDNWARM_JSON_PARSING` names: a file for each case, as its authors publish it, or all in
/// one `cases.tsv` of name, verdict, encoding (`b64`, or `repeat` and a number) and base64.
fn cases() -> Vec<Case> {
    let folder = setting("CDNWARM_JSON_PARSING").expect("CDNWARM_JSON_PARSING names a folder");
    let folder = Path::new(&folder);
    if let Ok(table) = std::fs::read_to_string(folder.join("cases.tsv")) {
        let rows = table.lines().filter(|line| !line.starts_with("# "));
        return rows.map(case_of_row).collect();
    }
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let name = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
    files.map(|path| Case { name: name(&path), text: std::fs::read(&path).unwrap() }).collect()
}

fn case_of_row(row: &str) -> Case {
    let [name, _, encoding, text] = row.split('\t').collect::<Vec<_>>()[..] else { panic!("{row}") };
    let times = encoding.strip_prefix("repeat ").map_or(1, |times| times.parse().unwrap());
    Case { name: name.to_owned(), text: BASE64_STANDARD.decode(text).unwrap().repeat(times) }
}

#[tokio::test]
#[ignore = "needs the files of JSONTestSuite, which `.ci/run` fetches: CDNWARM_JSON_PARSING names their folder"]
async fn json_of_every_kind_is_read_as_rfc_8259_says() {
    let cases = cases();
    let count = |prefix| cases.iter().filter(|case| case.name.starts_with(prefix)).count();
    let counts = [count("y_"), count("n_"), count("i_")];
    assert!(counts[0] >= 95 && counts[1] >= 187 && counts[2] >= 35, "{counts:?}");
    assert_eq!(counts.iter().sum::<usize>(), cases.len());

    let origin = Origin::start(&["example.com".to_owned()], |_| cacheable()).await;
    let served = Served::before(&origin, &[]).await;
    let data = BASE64_STANDARD.encode("https://example.com/");
    let mut accepted = 0;
    for Case { name, text } in &cases {
        // No file is an envelope, and none is a URL.
        let answer = served.post(text.clone()).await;
        assert!([400, 413].contains(&answer), "{name} as the body: {answer}");
        let as_data = format!(r#"{{"message":{{"data":"{}"}}}}"#, BASE64_STANDARD.encode(text));
        let answer = served.post(as_data).await;
        assert!([400, 413].contains(&answer), "{name} as data: {answer}");
        assert_eq!(origin.asked().len(), 0, "{name}");

        // A field that nobody knows is still JSON.
        let beside = [format!(r#"{{"message":{{"data":"{data}"}},"x":"#).as_bytes(), text, b"}"].concat();
        let answer = served.post(beside).await;
        let fine = match &name[..2] {
            "y_" => answer == 204,
            "n_" => answer == 400,
            _ => [204, 400].contains(&answer),
        };
        assert!(fine, "{name} in a field: {answer}");
        assert_eq!(origin.asked().len(), usize::from(answer == 204), "{name}");
        accepted += usize::from(answer == 204);

        assert_eq!(served.push_url("https://example.com/next").await, 204, "after {name}");
        origin.forget();
    }
    println!(
        "{counts:?} files to accept, to reject, or either, three times each; {accepted} accepted in a field"
    );
}
