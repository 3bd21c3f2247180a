//! Which path of which port gets what.
//!
//! The health port gives its page to everybody, as the reference program does. The metrics port is
//! for people and their tools, and says so where they ask for something that is not there.

use std::fmt;

use super::http::RequestHead;
use crate::stats::Exposition;

/// A port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Site {
    /// `-p`: any path gets the health page.
    Health,
    /// `--metrics-listen`.
    Metrics,
}

/// What a request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// A page of the web server.
    Content(Content),
    /// The live page, which never changes: its script asks for [`Content::Picture`].
    LivePage,
    /// Whether the control thread answers.
    Live,
    /// Whether the health page is 200.
    Ready,
    /// Nothing is there.
    Missing,
}

/// What the web server renders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Content {
    /// The health page.
    Health,
    /// The metrics.
    Metrics(Exposition),
    /// What the live page draws.
    Picture,
}

impl Site {
    /// What there is, for who asks for something else.
    pub(super) const MISSING: &str = "not found; there are /metrics, /ui, /livez and /readyz";

    /// What a request gets.
    pub(super) fn route(self, head: &RequestHead) -> Route {
        match (self, head.path.as_str()) {
            (Self::Health, _) => Route::Content(Content::Health),
            (Self::Metrics, "/metrics") => {
                Route::Content(Content::Metrics(Exposition::wanted_by(&head.accept)))
            }
            (Self::Metrics, "/ui") => Route::LivePage,
            (Self::Metrics, "/ui/data") => Route::Content(Content::Picture),
            (Self::Metrics, "/livez") => Route::Live,
            (Self::Metrics, "/readyz") => Route::Ready,
            (Self::Metrics, _) => Route::Missing,
        }
    }
}

impl fmt::Display for Site {
    /// What a client of it is there for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Health => "health check",
            Self::Metrics => "metrics",
        })
    }
}

impl Content {
    const ALL: [Self; 4] = [
        Self::Health,
        Self::Metrics(Exposition::PrometheusText),
        Self::Metrics(Exposition::OpenMetrics),
        Self::Picture,
    ];

    /// By which path the web server knows it.
    pub(super) const fn inner_path(self) -> &'static str {
        match self {
            Self::Health => "/",
            Self::Metrics(Exposition::PrometheusText) => "/metrics/text",
            Self::Metrics(Exposition::OpenMetrics) => "/metrics/open",
            Self::Picture => "/picture",
        }
    }

    /// What the web server knows by this path.
    pub(super) fn at_inner_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|content| content.inner_path() == path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(path: &str) -> RequestHead {
        RequestHead { path: path.to_owned(), ..RequestHead::default() }
    }

    #[test]
    fn the_health_port_has_one_page_and_the_metrics_port_is_exact() {
        let text = Content::Metrics(Exposition::PrometheusText);
        for (path, route) in [
            ("/metrics", Route::Content(text)),
            ("/livez", Route::Live),
            ("/readyz", Route::Ready),
            ("/ui", Route::LivePage),
            ("/ui/data", Route::Content(Content::Picture)),
            ("/ui/", Route::Missing),
            ("/picture", Route::Missing),
            ("/", Route::Missing),
            ("/metrics/", Route::Missing),
            ("/metrics/text", Route::Missing),
            ("", Route::Missing),
        ] {
            assert_eq!(Site::Metrics.route(&head(path)), route, "{path}");
            assert_eq!(Site::Health.route(&head(path)), Route::Content(Content::Health), "{path}");
        }
    }

    #[test]
    fn the_web_server_finds_all_there_is() {
        for content in Content::ALL {
            assert_eq!(Content::at_inner_path(content.inner_path()), Some(content));
        }
        assert_eq!(Content::at_inner_path("/metrics"), None);
    }
}
