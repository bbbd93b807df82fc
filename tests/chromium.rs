//! A real headless Chromium, controlled through the DevTools protocol on two pipes.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{self, Supervised, temp_dir};

/// Chromium reads commands from descriptor 3 and writes answers to descriptor 4.
const WITH_PIPES: &str = r#"commands=$1 answers=$2; shift 2; exec "$@" 3<"$commands" 4>"$answers""#;

const TIME_LIMIT: Duration = Duration::from_secs(60);

/// A browser with one open tab. It ends when this value is dropped or the test process ends.
pub(crate) struct Browser {
    commands: File,
    answers: Receiver<Value>,
    /// What the tab has reported.
    events: Vec<Value>,
    session: String,
    last: u64,
    _process: Supervised,
    _dir: TempDir,
}

impl Browser {
    /// Starts Chromium and opens an empty tab.
    pub(crate) fn start() -> Self {
        let dir = temp_dir("chromium");
        let [commands, answers] = ["commands", "answers"].map(|name| {
            let path = dir.path().join(name);
            process::run(Command::new("mkfifo").arg(&path));
            path.to_str().unwrap().to_owned()
        });
        let program = std::env::var("CHROMIUM").unwrap_or_else(|_| "chromium".to_owned());
        let profile = format!("--user-data-dir={}", dir.path().join("profile").display());
        let args = [
            "-c",
            WITH_PIPES,
            "chromium",
            &commands,
            &answers,
            &program,
            "--headless",
            "--remote-debugging-pipe",
            "--disable-gpu",
            "--disable-background-networking",
            "--hide-scrollbars",
            "--no-first-run",
            // The tests may run as root, and /dev/shm can be small in a container.
            "--no-sandbox",
            "--disable-dev-shm-usage",
            &profile,
        ];
        let log = File::create(dir.path().join("log")).unwrap();
        let process = Supervised::spawn(Path::new("/bin/sh"), args, "KILL", |command| {
            command.env("HOME", dir.path()).stderr(log);
        });
        // Opening a named pipe waits for the other side.
        let commands = OpenOptions::new().write(true).open(commands).unwrap();
        let answers = File::open(answers).unwrap();
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(answers).split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).unwrap();
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            commands,
            answers: receiver,
            events: Vec::new(),
            session: String::new(),
            last: 0,
            _process: process,
            _dir: dir,
        };
        let tab = browser.command("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": tab["targetId"], "flatten": true});
        let attached = browser.command("Target.attachToTarget", attach);
        browser.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Network", "Runtime", "Log"] {
            browser.command(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Sends a command and returns its result.
    pub(crate) fn command(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let mut message = json!({"id": self.last, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        let mut text = serde_json::to_vec(&message).unwrap();
        text.push(0);
        self.commands.write_all(&text).unwrap();
        let deadline = Instant::now() + TIME_LIMIT;
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            let answer = self.answers.recv_timeout(rest);
            let answer = answer.unwrap_or_else(|error| {
                panic!("{method}: {error}: `make test` installs chromium; or set CHROMIUM")
            });
            if answer["id"] == self.last {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
            self.events.push(answer);
        }
    }

    /// The parameters of all events of this name so far.
    pub(crate) fn events(&mut self, method: &str) -> Vec<Value> {
        self.events.extend(self.answers.try_iter());
        let found = self.events.iter().filter(|event| event["method"] == method);
        found.map(|event| event["params"].clone()).collect()
    }

    /// Sets the size of the window, and whether the user prefers a dark page.
    pub(crate) fn view(&mut self, (width, height): (u32, u32), is_dark: bool) {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.command("Emulation.setDeviceMetricsOverride", size);
        let scheme = if is_dark { "dark" } else { "light" };
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        self.command("Emulation.setEmulatedMedia", json!({"features": [feature]}));
    }

    /// Opens a page and waits until it is loaded.
    pub(crate) fn open(&mut self, url: &str) {
        let loaded = self.events("Page.loadEventFired").len();
        let opened = self.command("Page.navigate", json!({"url": url}));
        assert!(opened["errorText"].is_null(), "{opened}");
        let deadline = Instant::now() + TIME_LIMIT;
        while self.events("Page.loadEventFired").len() <= loaded {
            assert!(Instant::now() < deadline, "{url} is not loaded");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The value of a JavaScript expression in the page.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true});
        let answer = self.command("Runtime.evaluate", params);
        assert!(answer["exceptionDetails"].is_null(), "{answer}");
        answer["result"]["value"].clone()
    }

    /// A picture of the window as PNG.
    pub(crate) fn picture(&mut self) -> Vec<u8> {
        let answer = self.command("Page.captureScreenshot", json!({"format": "png"}));
        BASE64_STANDARD
            .decode(answer["data"].as_str().unwrap())
            .unwrap()
    }
}
