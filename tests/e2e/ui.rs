//! The live page: what it is made of, and what it is told.

use serde_json::Value;

use super::metrics::PORT;
use super::metrics::ask;
use crate::sim::gwlb::Config;
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
