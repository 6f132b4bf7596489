//! An external authorizer, over HTTP and gRPC: lets through what says `x-ext-authz: allow`, or comes from an account that it
//! was told of, and logs what it was asked.

use crate::serve;
use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use clap::Args as ClapArgs;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response as Answer, Status};
use weft_proto::envoy::config::core::v3::{HeaderValue as Header, HeaderValueOption};
use weft_proto::envoy::service::auth::v3 as auth;
use weft_proto::envoy::r#type::v3::HttpStatus;
use weft_proto::google::rpc;

/// The header that decides.
const CHECK: &str = "x-ext-authz";
const RESULT: &str = "x-ext-authz-check-result";
const RECEIVED: &str = "x-ext-authz-check-received";
const OVERRIDE: &str = "x-ext-authz-additional-header-override";
const DENIED: &str = "denied by ext_authz for not found header `x-ext-authz: allow` in the request";
/// gRPC status PERMISSION_DENIED.
const PERMISSION_DENIED: i32 = 7;

#[derive(ClapArgs)]
pub struct Args {
    /// Port of the HTTP authorizer
    #[arg(long, alias = "http", default_value_t = 8000)]
    http_port: u16,
    /// Port of the gRPC authorizer
    #[arg(long, alias = "grpc", default_value_t = 9000)]
    grpc_port: u16,
    /// Service account (`NAMESPACE/sa/NAME` ends its SPIFFE id) whose requests over gRPC pass without the header
    #[arg(long, default_value = "")]
    allow_service_account: String,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let http = serve::bind(args.http_port).await?;
    println!("Starting HTTP server at [::]:{}", args.http_port);
    let grpc = serve::bind(args.grpc_port).await?;
    println!("Starting gRPC server at [::]:{}", args.grpc_port);
    let service = auth::authorization_server::AuthorizationServer::new(Grpc { account: args.allow_service_account });
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(grpc)));
    serve::serve(http, Router::new().fallback(check)).await
}

async fn check(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let asked = format!("{method} {}{}, headers: {headers:?}", text("host"), uri.path());
    let allowed = text(CHECK) == "allow";
    println!("[HTTP][{}]: {asked}", if allowed { "allowed" } else { "denied" });
    let body = if allowed { Body::empty() } else { Body::from(DENIED) };
    let mut response = body.into_response();
    *response.status_mut() = if allowed { StatusCode::OK } else { StatusCode::FORBIDDEN };
    let result = if allowed { "allowed" } else { "denied" };
    let told = [(RESULT, result), (RECEIVED, asked.as_str()), (OVERRIDE, text(OVERRIDE))];
    for (name, value) in told {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

struct Grpc {
    account: String,
}

#[tonic::async_trait]
impl auth::authorization_server::Authorization for Grpc {
    async fn check(&self, request: Request<auth::CheckRequest>) -> Result<Answer<auth::CheckResponse>, Status> {
        let attributes = request.into_inner().attributes.unwrap_or_default();
        let principal = attributes.source.as_ref().map(|s| s.principal.clone()).unwrap_or_default();
        let http = attributes.request.as_ref().and_then(|r| r.http.clone()).unwrap_or_default();
        let by_account = !self.account.is_empty() && principal.ends_with(&self.account);
        let allowed = by_account || http.headers.get(CHECK).is_some_and(|value| value == "allow");
        let result = if allowed { "allowed" } else { "denied" };
        println!("[gRPCv3][{result}]: {}{}, attributes: {attributes:?}", http.host, http.path);
        let header = |key: &str, value: &str| HeaderValueOption {
            header: Some(Header { key: key.into(), value: value.into(), ..Default::default() }),
            ..Default::default()
        };
        let headers = vec![header(RESULT, result), header(OVERRIDE, "grpc-additional-header-override-value")];
        let (code, http_response) = if allowed {
            let ok = auth::OkHttpResponse { headers, ..Default::default() };
            (0, auth::check_response::HttpResponse::OkResponse(ok))
        } else {
            let status = Some(HttpStatus { code: i32::from(StatusCode::FORBIDDEN.as_u16()) });
            let denied = auth::DeniedHttpResponse { status, body: DENIED.into(), headers };
            (PERMISSION_DENIED, auth::check_response::HttpResponse::DeniedResponse(denied))
        };
        Ok(Answer::new(auth::CheckResponse {
            status: Some(rpc::Status { code, ..Default::default() }),
            http_response: Some(http_response),
            ..Default::default()
        }))
    }
}
