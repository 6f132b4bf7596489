//! A question before it is answered: its body is read within bounds, then it gets one of the places for answers. The places are few,
//! so nobody has one while he is still talking; and who asks much, or slowly, does so at the expense of his own address.

use crate::idle::Requests;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Largest question, bytes. An object has at most 1.5 MiB in etcd; an update carries it twice.
pub(super) const MAX_BODY: usize = 8 << 20;
/// Bodies that are read at once. Further ones wait.
const READING: usize = 64;
/// Questions of one address that are read or answered at once.
const OF_ADDRESS: usize = 16;
/// Time for a body. API servers have it ready.
const BODY: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
/// Questions that are answered at once; further ones wait.
const ANSWERING: usize = 64;
/// Time for a question, from its head to the answer; the API server itself waits no longer than 30 s.
const ANSWER: Duration = Duration::from_secs(25);

/// Who asks, and what else is asked on the connection; in the extensions of every request.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    pub address: IpAddr,
    pub requests: Arc<Requests>,
}

/// The places.
pub(super) struct Intake {
    reading: Semaphore,
    of_addresses: Mutex<HashMap<IpAddr, Weak<Semaphore>>>,
    answering: Semaphore,
}

/// A refusal: the status, and why.
type Refused = (StatusCode, &'static str);

impl Intake {
    pub fn new() -> Arc<Self> {
        let (reading, answering) = (Semaphore::new(READING), Semaphore::new(ANSWERING));
        Arc::new(Self { reading, of_addresses: Mutex::default(), answering })
    }

    /// The places of an address. Those that nobody uses any more are forgotten.
    fn of(&self, address: IpAddr) -> Arc<Semaphore> {
        let mut all = self.of_addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&address).and_then(Weak::upgrade) {
            return known;
        }
        all.retain(|_, places| places.strong_count() > 0);
        let places = Arc::new(Semaphore::new(OF_ADDRESS));
        all.insert(address, Arc::downgrade(&places));
        places
    }

    async fn read(&self, body: Body) -> Result<Bytes, Refused> {
        let closed = |_| (StatusCode::SERVICE_UNAVAILABLE, "the webhook is closing\n");
        let _place = self.reading.acquire().await.map_err(closed)?;
        match timeout(BODY, Limited::new(body, MAX_BODY).collect()).await {
            Ok(Ok(whole)) => Ok(whole.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                Err((StatusCode::PAYLOAD_TOO_LARGE, "the question is larger than 8 MiB\n"))
            }
            Ok(Err(_)) => Err((StatusCode::BAD_REQUEST, "the question broke off\n")),
            Err(_) => Err((StatusCode::REQUEST_TIMEOUT, "the question was not there in time\n")),
        }
    }
}

/// Reads a question, has it answered when there is a place, all of it for a limited time.
pub(super) async fn bounded(State(intake): State<Arc<Intake>>, request: Request, next: Next) -> Response {
    let Some(Asker { address, requests }) = request.extensions().get::<Asker>().cloned() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let answer = async {
        let Ok(_own) = intake.of(address).acquire_owned().await else {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        };
        let (head, body) = request.into_parts();
        let body = match intake.read(body).await {
            Ok(body) => body,
            Err(refused) => return refused.into_response(),
        };
        // From here on the connection is no idle one.
        let _open = requests.begin();
        match intake.answering.acquire().await {
            Ok(_place) => next.run(Request::from_parts(head, Body::from(body))).await,
            Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        }
    };
    match timeout(ANSWER, answer).await {
        Ok(response) => response,
        Err(_) => (StatusCode::GATEWAY_TIMEOUT, "the webhook has no time\n").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::middleware::from_fn_with_state;
    use axum::routing::post;
    use tokio::task::JoinSet;
    use tower::ServiceExt as _;

    fn question(last: u8, body: Body) -> Request {
        let asker = Asker { address: [10, 0, 0, last].into(), requests: Arc::default() };
        axum::http::Request::post("/validate").extension(asker).body(body).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn class_webhooks_are_not_starved_by_unfinished_questions() {
        let echo = |body: Bytes| async move { body };
        let router = Router::new().route("/validate", post(echo)).layer(from_fn_with_state(Intake::new(), bounded));
        // Three pods that begin many questions and end none.
        let mut pods = JoinSet::new();
        for n in 0..600u16 {
            let silent = Body::from_stream(tokio_stream::pending::<Result<Bytes, std::io::Error>>());
            pods.spawn(router.clone().oneshot(question(10 + u8::try_from(n % 3).unwrap(), silent)));
        }
        tokio::task::yield_now().await;
        let begin = tokio::time::Instant::now();
        for _ in 0..100 {
            let answer = router.clone().oneshot(question(1, Body::from("asked"))).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "asked");
        }
        assert_eq!(begin.elapsed(), Duration::ZERO, "the API server waits for nobody");
        let first = pods.join_next().await.unwrap().unwrap().unwrap();
        assert_eq!(first.status(), StatusCode::REQUEST_TIMEOUT);
        assert_eq!(begin.elapsed(), BODY);
        let large = Body::from(vec![0; MAX_BODY + 1]);
        assert_eq!(router.oneshot(question(1, large)).await.unwrap().status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
}
