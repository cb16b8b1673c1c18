//! Which pages there are, for whom, and what they answer.

use std::sync::Arc;

use http::request::Parts;
use http::{Method, StatusCode};

use super::query::Query;
use super::reply::{Answer, RECORDS, document, json, not_allowed, records, reply, text};
use super::stream::{self, Wanted};
use super::{Audience, View, guard, logging, negotiate, profiles};
use crate::telemetry::log::LogControl;

const GET: &[Method] = &[Method::GET];
const POST: &[Method] = &[Method::POST];
const BOTH: &[Method] = &[Method::GET, Method::POST];
/// For root on this node.
const OPERATOR: &[Audience] = &[Audience::Operator];
/// For istioctl as well.
const LOCAL: &[Audience] = &[Audience::Operator, Audience::Istioctl];

/// A page. What it does is in [`page`].
struct Page {
    path: &'static str,
    methods: &'static [Method],
    audience: &'static [Audience],
    about: &'static str,
}

const fn new(
    path: &'static str,
    methods: &'static [Method],
    audience: &'static [Audience],
    about: &'static str,
) -> Page {
    Page { path, methods, audience, about }
}

const PAGES: &[Page] = &[
    new("/", GET, LOCAL, "this list"),
    new("/config_dump", GET, LOCAL, "what istioctl ztunnel-config shows, JSON"),
    new(
        "/logging",
        POST,
        LOCAL,
        "what is logged; ?level=LEVEL or ?level=TARGET:LEVEL changes it, ?reset undoes that",
    ),
    new("/healthz/ready", GET, &[Audience::Operator, Audience::Kubelet], "200, or 500 with what is pending"),
    new("/metrics", GET, &[Audience::Operator, Audience::Scraper], "metrics, Prometheus text or OpenMetrics"),
    new("/stats/prometheus", GET, &[Audience::Operator, Audience::Scraper], "the same"),
    new(
        "/flows",
        GET,
        OPERATOR,
        "flow records, a JSON object a line; ?since= follow last= from= to= verdict= policy= after= open=",
    ),
    new("/explain", GET, OPERATOR, "why a connection is or is not allowed, JSON; ?from=WHO&to=WHERE"),
    new("/dump", GET, OPERATOR, "all that the agent knows, JSON"),
    new("/log", BOTH, OPERATOR, "the log's filter, JSON; POST ?filter=FILTER or ?reset changes it"),
    new(
        "/debug/pprof/profile",
        GET,
        OPERATOR,
        "where processor time goes; ?seconds=10&frequency=100&format=pprof|folded",
    ),
    new(
        "/debug/pprof/heap",
        GET,
        OPERATOR,
        "where memory goes; ?seconds=10 of watching (none with --follow-heap), format=pprof|folded",
    ),
    new("/quitquitquit", POST, OPERATOR, "stop as on SIGTERM: no new tunnels, open ones may end"),
];

/// The answer to a request of `audience`.
pub(super) async fn answer(view: Arc<dyn View>, request: &Parts, audience: Audience) -> Answer {
    if audience == Audience::Istioctl
        && let Err(why) = guard::check(request)
    {
        return text(StatusCode::FORBIDDEN, format!("{why}\n"));
    }
    let path = request.uri.path();
    let Some(found) = PAGES.iter().find(|page| page.path == path && page.audience.contains(&audience)) else {
        let elsewhere = PAGES.iter().any(|page| page.path == path) && audience == Audience::Istioctl;
        let hint =
            if elsewhere { "this page is on the agent's unix socket only\n" } else { "no such page\n" };
        return text(StatusCode::NOT_FOUND, hint);
    };
    if !found.methods.contains(&request.method) {
        return not_allowed(found.methods);
    }
    page(view, request, audience).await
}

async fn page(view: Arc<dyn View>, request: &Parts, audience: Audience) -> Answer {
    let (headers, query) = (&request.headers, request.uri.query());
    let gzip = negotiate::gzip(headers);
    match request.uri.path() {
        "/" => text(StatusCode::OK, list(audience)),
        "/config_dump" => large(view, "application/json", gzip, |view| view.config_dump()).await,
        "/dump" => large(view, "application/json", gzip, |view| view.dump()).await,
        "/metrics" | "/stats/prometheus" => {
            let format = negotiate::format(headers);
            large(view, format.content_type(), gzip, move |view| view.metrics(format)).await
        }
        "/logging" => match logging::answer(view.log(), query) {
            Ok(state) => text(StatusCode::OK, state),
            Err(why) => text(StatusCode::BAD_REQUEST, why),
        },
        "/log" => json(log(view.log(), &request.method, query)),
        "/flows" => match Wanted::read(query) {
            Ok(wanted) if wanted.is_open() => match stream::open(&*view, &wanted) {
                Ok(lines) => reply(StatusCode::OK, RECORDS, lines),
                Err(why) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
            },
            Ok(wanted) => records(stream::records(view, wanted)),
            Err(why) => json(Err(why)),
        },
        "/explain" => json(explain(&*view, query)),
        "/debug/pprof/profile" => profiles::cpu(query).await,
        "/debug/pprof/heap" => profiles::heap(query).await,
        "/quitquitquit" => {
            view.quit();
            text(StatusCode::OK, "stopping: no new tunnels, and open ones may end (--drain)\n")
        }
        _ => ready(&view.pending()),
    }
}

/// Documents of thousands of rows are made where they hold up no connection.
async fn large(
    view: Arc<dyn View>,
    kind: &'static str,
    gzip: bool,
    make: impl FnOnce(&dyn View) -> String + Send + 'static,
) -> Answer {
    let made = tokio::task::spawn_blocking(move || document(kind, make(&*view), gzip)).await;
    made.unwrap_or_else(|error| text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")))
}

fn list(audience: Audience) -> String {
    let mut list = "culvert agent\n\n".to_owned();
    for page in PAGES.iter().filter(|page| page.audience.contains(&audience)) {
        let methods = page.methods.iter().map(Method::as_str).collect::<Vec<_>>().join("|");
        list.push_str(&format!("{methods:<8} {:<21} {}\n", page.path, page.about));
    }
    list
}

fn ready(pending: &[String]) -> Answer {
    if pending.is_empty() {
        text(StatusCode::OK, "ready\n")
    } else {
        let why = format!("not ready, pending: {}\n", pending.join(", "));
        text(StatusCode::INTERNAL_SERVER_ERROR, why)
    }
}

fn explain(view: &dyn View, query: Option<&str>) -> Result<String, String> {
    let query = Query::parse(query, &["from", "to"])?;
    view.explain(query.get("from").unwrap_or(""), query.get("to").unwrap_or(""))
}

fn log(control: &LogControl, method: &Method, query: Option<&str>) -> Result<String, String> {
    let query = Query::parse(query, &["filter", "reset"])?;
    let state = match (method == Method::POST, query.get("filter"), query.get("reset")) {
        (false, None, None) => control.state(),
        (true, Some(filter), None) => control.set(filter)?,
        (true, None, Some(_)) => control.reset()?,
        _ => return Err("GET /log shows; POST /log?filter=FILTER or /log?reset changes".to_owned()),
    };
    serde_json::to_string(&state).map(|text| text + "\n").map_err(|error| error.to_string())
}
