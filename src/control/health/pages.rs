//! The pages behind the gates, from the one web server that renders them.
//!
//! The server sees two requests at a time; the others wait. Who asks while a page is the newest one
//! shares its answer: a crowd costs one. The server has 2 s for its answer; where it fails, the
//! client hears the bare truth.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time;
use tokio::time::Instant;

use super::Board;
use super::backend::Backend;
use super::gate::now;
use super::http::Reply;
use super::routes::Content;
use crate::log::Log;
use crate::log::LogEvent;
use crate::settings::HealthSettings;
use crate::stats::Page;
use crate::stats::Picture;

/// Requests that the web server sees at a time.
const RELAYED_MAX: usize = 2;

/// Time for the web server's answer.
const RELAY_TIME: Duration = Duration::from_secs(2);

/// The pages, shared by the gates.
pub(super) struct Pages {
    /// How the health page looks, if there is one.
    health: Option<HealthSettings>,
    board: Arc<Board>,
    /// Brings the board up to date.
    refresh: Box<dyn Fn()>,
    backend: RefCell<Option<Rc<Backend>>>,
    backend_started: Cell<Instant>,
    relays: Semaphore,
    /// The last answers of the web server, and what each shows.
    last: RefCell<HashMap<Content, (Shown, Reply)>>,
    log: Log,
}

/// What an answer was rendered from.
#[derive(Clone)]
enum Shown {
    Page(Arc<Page>),
    Picture(Arc<Picture>),
}

impl Shown {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Page(one), Self::Page(other)) => Arc::ptr_eq(one, other),
            (Self::Picture(one), Self::Picture(other)) => Arc::ptr_eq(one, other),
            (Self::Page(_), Self::Picture(_)) | (Self::Picture(_), Self::Page(_)) => false,
        }
    }
}

impl Pages {
    pub(super) fn new(
        health: Option<HealthSettings>,
        board: Arc<Board>,
        refresh: Box<dyn Fn()>,
        log: Log,
    ) -> io::Result<Self> {
        let backend = Backend::start(health, Arc::clone(&board))?;
        Ok(Self {
            health,
            board,
            refresh,
            backend: RefCell::new(Some(Rc::new(backend))),
            backend_started: Cell::new(now()),
            relays: Semaphore::new(RELAYED_MAX),
            last: RefCell::default(),
            log,
        })
    }

    /// Whether the health page says 200 at this moment.
    pub(super) fn is_healthy(&self) -> bool {
        (self.refresh)();
        self.board.page().healthy
    }

    /// A page, from the web server if it answers.
    pub(super) async fn get(&self, content: Content) -> Reply {
        let shown = self.newest(content);
        let relay = async {
            let _turn = self.relays.acquire().await.ok()?;
            if let Some(reply) = self.last_answer(content, &shown) {
                return Some(reply);
            }
            let backend = self.backend.borrow().clone()?;
            let answer = time::timeout(RELAY_TIME, relay(&backend, content)).await;
            let reply = Reply::parse(&answer.ok()?.ok()?)?;
            self.last.borrow_mut().insert(content, (shown.clone(), reply.clone()));
            Some(reply)
        };
        if let Some(reply) = relay.await {
            return reply;
        }
        self.replace_backend();
        let is_well = match shown {
            Shown::Page(page) => content == Content::Health && page.healthy,
            Shown::Picture(_) => false,
        };
        Reply::bare(if is_well { 200 } else { 503 })
    }

    /// What the answer is to be rendered from. Control takes pictures at its own pace.
    fn newest(&self, content: Content) -> Shown {
        match content {
            Content::Health | Content::Metrics(_) => {
                (self.refresh)();
                Shown::Page(self.board.page())
            }
            Content::Picture => Shown::Picture(self.board.picture()),
        }
    }

    /// The answer that shows this, if the web server gave one already.
    fn last_answer(&self, content: Content, newest: &Shown) -> Option<Reply> {
        let last = self.last.borrow();
        let (shown, reply) = last.get(&content)?;
        shown.is(newest).then(|| reply.clone())
    }

    /// Starts another web server in place of one that has ended, once a second at most. One that
    /// is only slow stays: to start threads on a host that is out of them is the end of
    /// `tiny_http`, and of the whole program with it.
    fn replace_backend(&self) {
        if self.backend.borrow().as_ref().is_some_and(|backend| backend.is_alive()) {
            return;
        }
        if now().duration_since(self.backend_started.get()) < Duration::from_secs(1) {
            return;
        }
        self.backend_started.set(now());
        let backend = Backend::start(self.health, Arc::clone(&self.board));
        self.log.event(
            LogEvent::HealthServerRestarted,
            &[],
            format_args!("the health page's server has ended; it is started again"),
        );
        *self.backend.borrow_mut() = backend.ok().map(Rc::new);
    }

    /// Breaks the web server, for a test of what happens then.
    #[cfg(test)]
    pub(super) fn lose_backend(&self) {
        self.backend.borrow_mut().take();
    }
}

/// One request to the web server, and all of its answer.
async fn relay(backend: &Backend, content: Content) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(backend.path()).await?;
    let path = content.inner_path();
    let request = format!("GET {path} HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}
