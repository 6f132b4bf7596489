//! A site of the world outside: the same pages over HTTP and HTTPS, or over HTTPS alone, as most sites do it today.

use crate::serve;
use anyhow::Context as _;
use axum::Router;
use axum::extract::{Request, State};
use axum::response::{Html, IntoResponse as _, Redirect, Response};
use clap::Args as ClapArgs;
use http::header::HOST;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(ClapArgs)]
pub struct Args {
    /// HOST=TITLE of a page; may be repeated; other hosts have the first one's
    #[arg(long, required = true)]
    page: Vec<String>,
    /// Plain HTTP leads to HTTPS
    #[arg(long)]
    https_only: bool,
    /// Folder with tls.crt and tls.key
    #[arg(long, default_value = "/etc/outside")]
    tls: PathBuf,
}

struct Site {
    titles: BTreeMap<String, String>,
    first: String,
    to_https: bool,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut titles = BTreeMap::new();
    let mut first = String::new();
    for page in &args.page {
        let (host, title) = page.split_once('=').with_context(|| format!("--page {page}: expected HOST=TITLE"))?;
        if first.is_empty() {
            first = title.to_string();
        }
        titles.insert(host.to_string(), title.to_string());
    }
    let plain = Site { titles: titles.clone(), first: first.clone(), to_https: args.https_only };
    let secure = Site { titles, first, to_https: false };
    let listen = serve::Listen { port: Some(80) };
    tokio::try_join!(serve::http(listen, 80, router(plain)), serve::https(&args.tls, 443, router(secure)))?;
    Ok(())
}

fn router(site: Site) -> Router {
    Router::new().fallback(page).with_state(Arc::new(site))
}

async fn page(State(site): State<Arc<Site>>, request: Request) -> Response {
    let of_header = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let host = request.uri().authority().map(|authority| authority.as_str()).or(of_header).unwrap_or_default();
    let host = host.split(':').next().unwrap_or_default().to_string();
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    println!("{} {host}{path} {:?}", request.method(), request.version());
    if site.to_https {
        return (http::StatusCode::MOVED_PERMANENTLY, Redirect::permanent(&format!("https://{host}{path}")))
            .into_response();
    }
    let title = site.titles.get(&host).unwrap_or(&site.first);
    Html(format!(
        "<!DOCTYPE html>\n<html>\n<head><title>{title}</title></head>\n<body><h1>{title}</h1></body>\n</html>\n"
    ))
    .into_response()
}
