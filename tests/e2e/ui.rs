//! The live page: what it is made of, what it is told, and what a phone makes of it.

use nix::sys::signal::Signal;
use serde_json::Value;

use super::metrics::PORT;
use super::metrics::ask;
use crate::sim::gwlb::Config;
use crate::support::browser::Browser;
use crate::support::browser::SCREEN;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;

/// What the page's script asks for.
fn data(lab: &Lab) -> Value {
    let answer = ask(lab, "/ui/data");
    assert_eq!((answer.status, answer.field("Content-Type")), (200, Some("application/json")));
    assert!(answer.is_whole(), "{answer:?}");
    serde_json::from_str(&answer.body).expect("JSON")
}

/// The sum of a list of numbers.
fn sum(list: &Value) -> u64 {
    list.as_array().expect("a list").iter().filter_map(Value::as_u64).sum()
}

/// The first of a list of rows in which `key` is `value`, or nothing.
fn row<'a>(rows: &'a Value, key: &str, value: &str) -> &'a Value {
    let found = rows.as_array().expect("a list").iter().find(|row| row[key] == value);
    found.unwrap_or(&Value::Null)
}

/// Sends packets of two endpoints, and one that is none, until all of it is in the data.
fn fill(lab: &Lab) -> Value {
    let injector = &mut lab.injector();
    let mut data = Value::Null;
    wait_until("a point has all of it", || {
        for number in 0..2 {
            injector.exchange(endpoint_id(number), &packets::ping(V4, 1, b"drawn"));
        }
        injector.send_raw(b"short");
        data = self::data(lab);
        let busiest = data["busiest"].as_array().expect("a list");
        busiest.len() == 2
            && busiest.iter().all(|row| sum(&row["bits"]) > 0)
            && sum(&row(&data["drops"], "reason", "short")["per_sec"]) > 0
            && data["hooks"]["last"][1]["result"] == "succeeded"
    });
    data
}

#[test]
fn it_is_one_file_and_asks_nobody_else() {
    let lab = Lab::new(0, Config::default());
    let _engine = Engine::start(&lab, &["--metrics-listen", PORT]);
    let answer = ask(&lab, "/ui");
    assert_eq!((answer.status, answer.is_whole()), (200, true), "{}", answer.head);
    assert_eq!(answer.field("Content-Type"), Some("text/html; charset=utf-8"));
    // A name, not an address: browsers know it.
    let page = answer.body.replace("http://www.w3.org/2000/svg", "");
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"), "{page}");
    for elsewhere in ["://", "src=", "url(", "@import", "import "] {
        assert!(!page.contains(elsewhere), "the page has {elsewhere}");
    }
    let linked = page.split(" href=\"").skip(1).map(|rest| rest.split('"').next());
    assert!(linked.eq([Some("data:,"), Some("/metrics")]), "its links");
    for path in ["/ui/", "/ui/data/"] {
        assert_eq!(ask(&lab, path).status, 404, "{path}");
    }
}

#[test]
fn its_data_are_what_happens() {
    let lab = Lab::new(0, Config::default());
    let _engine = Engine::passthrough(&lab, &["--metrics-listen", PORT, "--workers", "2"]);
    let before = data(&lab);
    assert_eq!((&before["state"], &before["busiest"]), (&"OK".into(), &Value::Array(vec![])));
    let data = fill(&lab);
    assert_eq!((&data["state"], &data["problems"]), (&"OK".into(), &Value::Array(vec![])));
    assert_eq!(data["version"], env!("CARGO_PKG_VERSION"));
    let workers = data["workers"].as_array().expect("a list");
    assert!(workers.len() == 2 && workers.iter().all(|row| row["healthy"] == true), "{data}");
    for direction in ["received", "returned"] {
        let (bits, packets) = (&data[direction]["bits"], &data[direction]["packets"]);
        assert!(sum(packets) > 0 && sum(bits) >= 8 * 20 * sum(packets) / 2, "{direction}: {data}");
    }
    for number in 0..2 {
        let id = format!("vpce-{:017x}", endpoint_id(number));
        let endpoint = row(&data["busiest"], "id", &id);
        assert_eq!((&endpoint["healthy"], &endpoint["flows"]), (&true.into(), &1.into()), "{id}");
        let hook = row(&data["hooks"]["last"], "endpoint", &id);
        assert_eq!((&hook["hook"], &hook["result"]), (&"CREATE".into(), &"succeeded".into()));
    }
    let newest = |list: &Value| list.as_array().and_then(|list| list.last()).cloned();
    assert_eq!(newest(&data["endpoints"]), Some(2.into()));
    assert_eq!(newest(&data["flows"]), Some(2.into()));
}

#[test]
#[ignore = "needs chromium-headless-shell: .ci/run full"]
fn a_phone_draws_it_and_says_when_nobody_answers() {
    let lab = Lab::new(0, Config::default());
    let args = ["--metrics-listen", PORT, "--workers", "2"];
    let mut engine = Engine::passthrough(&lab, &args);
    fill(&lab);
    let mut browser = Browser::start(&lab);
    browser.visit(&format!("http://127.0.0.1:{PORT}/ui"));
    let is = |state: &'static str| {
        move |browser: &mut Browser| {
            browser.evaluate("document.title") == format!("{state} · gwlbtun")
        }
    };
    // Lines with more than one point, by section.
    let lines = "[...document.querySelectorAll('section')].map(section =>
        [...section.querySelectorAll('path')]
            .filter(path => /^M[0-9. ]+L[0-9. L]+$/.test(path.getAttribute('d'))).length)";
    let drawn = serde_json::json!([2, 2, 1, 2, 1, 1, 2, 2]);
    wait_until("it is drawn", || is("OK")(&mut browser) && browser.evaluate(lines) == drawn);
    let text = browser.evaluate("document.body.innerText").to_string();
    for number in 0..2 {
        let id = format!("vpce-{:017x}", endpoint_id(number));
        assert!(text.matches(&id).count() == 2, "{id} with its traffic and its hook in {text}");
    }
    for word in ["short", "CREATE", "succeeded", "from GWLB", env!("CARGO_PKG_VERSION")] {
        assert!(text.contains(word), "{word} in {text}");
    }
    assert!(!text.contains("NaN") && !text.contains("undefined"), "{text}");
    // Where something is wider than the screen, the page is.
    let width = browser.evaluate("Math.max(innerWidth, document.documentElement.scrollWidth)");
    assert_eq!(width, SCREEN.0);
    assert_eq!(browser.complaints(), [""; 0]);

    engine.signal(Signal::SIGKILL);
    engine.wait();
    wait_until("it says that nobody answers", || is("SILENT")(&mut browser));
    let _again = Engine::passthrough(&lab, &args);
    wait_until("it goes on", || is("OK")(&mut browser));
}
