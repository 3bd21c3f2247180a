//! A phone's browser: headless Chromium with the screen of a phone, asked over a pipe by the
//! `DevTools` protocol, messages of which are JSON and end with a zero byte.

use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Write as _;
use std::process::Child;
use std::process::ChildStdin;
use std::process::ChildStdout;
use std::process::Stdio;

use serde_json::Value;
use serde_json::json;

use super::lab::Lab;

/// Width and height of the screen, in the pixels of CSS.
pub(crate) const SCREEN: (u32, u32) = (390, 844);

/// Standard input and output become the pipe, whose numbers are fixed.
const SCRIPT: &str = "exec chromium-headless-shell --no-sandbox --disable-gpu \
                      --user-data-dir=\"$1\" --remote-debugging-pipe 3<&0 4>&1 >/dev/null 2>&1";

/// A browser with one page; ended on drop.
#[derive(Debug)]
pub(crate) struct Browser {
    child: Child,
    requests: ChildStdin,
    messages: BufReader<ChildStdout>,
    session: Option<String>,
    sent: u64,
    complaints: Vec<String>,
}

impl Browser {
    /// Starts it in the target's namespace.
    pub(crate) fn start(lab: &Lab) -> Self {
        let folder = lab.scratch.file("browser").display().to_string();
        let mut child = lab
            .topology
            .target()
            .command("timeout")
            .args(["-k", "5", "300", "sh", "-c", SCRIPT, "sh", &folder])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("ip netns exec");
        let requests = child.stdin.take().expect("a pipe");
        let messages = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut browser =
            Self { child, requests, messages, session: None, sent: 0, complaints: Vec::new() };
        let page = browser.ask("Target.createTarget", &json!({ "url": "about:blank" }));
        let target = json!({ "targetId": page["targetId"], "flatten": true });
        let attached = browser.ask("Target.attachToTarget", &target);
        browser.session = attached["sessionId"].as_str().map(ToOwned::to_owned);
        assert!(browser.session.is_some(), "{attached}");
        for domain in ["Runtime.enable", "Log.enable"] {
            browser.ask(domain, &json!({}));
        }
        let (width, height) = SCREEN;
        let screen =
            json!({ "width": width, "height": height, "deviceScaleFactor": 2, "mobile": true });
        browser.ask("Emulation.setDeviceMetricsOverride", &screen);
        browser
    }

    /// Goes to a page.
    pub(crate) fn visit(&mut self, url: &str) {
        let answer = self.ask("Page.navigate", &json!({ "url": url }));
        assert_eq!(answer["errorText"], Value::Null, "{url}");
    }

    /// The value of an expression in the page.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let request = json!({ "expression": expression, "returnByValue": true });
        let answer = self.ask("Runtime.evaluate", &request);
        assert_eq!(answer["exceptionDetails"], Value::Null, "{expression}");
        answer["result"]["value"].clone()
    }

    /// What the console has said until the last answer: errors, warnings, exceptions.
    pub(crate) fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// Sends a request and waits for the answer to it.
    fn ask(&mut self, method: &str, params: &Value) -> Value {
        self.sent += 1;
        let mut request = json!({ "id": self.sent, "method": method, "params": params });
        if let Some(session) = &self.session {
            request["sessionId"] = session.as_str().into();
        }
        write!(self.requests, "{request}\0").expect("chromium-headless-shell reads");
        loop {
            let mut bytes = Vec::new();
            self.messages.read_until(0, &mut bytes).expect("a pipe can be read");
            assert_eq!(bytes.pop(), Some(0), "chromium-headless-shell has ended, or is missing");
            let message: Value = serde_json::from_slice(&bytes).expect("JSON");
            match message["method"].as_str() {
                None if message["id"] == self.sent => {
                    assert_eq!(message["error"], Value::Null, "{request}");
                    return message["result"].clone();
                }
                Some("Log.entryAdded" | "Runtime.consoleAPICalled" | "Runtime.exceptionThrown") => {
                    self.complaints.push(message["params"].to_string());
                }
                // Events of no interest.
                Some(_) | None => {}
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = write!(self.requests, "{}\0", json!({ "id": 0, "method": "Browser.close" }));
        let _ = self.child.wait();
    }
}
