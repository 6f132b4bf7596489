//! Who may have Secrets: an account gets those of its namespace by SDS only when the API server would let it list them itself
//! (SubjectAccessReview). Answers are kept for a while, refusals for a shorter one; what cannot be asked is refused, unless
//! an older answer allows it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout};
use weft_store::ApiClient;
use weft_xds_server::SecretAccess;

/// How long a yes is believed.
const YES: Duration = Duration::from_secs(60);
/// How long a no is believed: who grants the right does not want to wait.
const NO: Duration = Duration::from_secs(5);
/// How long an older yes is believed once more when there is no answer.
const AGAIN: Duration = Duration::from_secs(5);
/// Time for an answer: the proxy's configuration waits for it.
const ANSWER: Duration = Duration::from_secs(5);
/// Answers kept.
const MAX_ANSWERS: usize = 10_000;

/// Until when an answer is believed, and what it was.
type Answer = (Instant, bool);
type Answers = Mutex<HashMap<(String, String), Answer>>;

/// Asks `client`'s API server.
pub(crate) fn by_review(client: ApiClient) -> SecretAccess {
    by(client, Arc::default())
}

fn by(client: ApiClient, answers: Arc<Answers>) -> SecretAccess {
    Arc::new(move |namespace, account| {
        let (client, answers) = (client.clone(), answers.clone());
        Box::pin(async move {
            let who = (namespace, account);
            let known = known(&answers, &who);
            if let Some((until, allowed)) = known
                && Instant::now() < until
            {
                return allowed;
            }
            let asked = timeout(ANSWER, client.may_access((&who.0, &who.1), "list", "secrets", &who.0)).await;
            let why = match asked {
                Ok(Ok(allowed)) => {
                    remember(&answers, who, allowed, if allowed { YES } else { NO });
                    return allowed;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {ANSWER:?}"),
            };
            tracing::warn!("whether {}/{} may list secrets cannot be told: {why}", who.0, who.1);
            let allowed = known.is_some_and(|(_, allowed)| allowed);
            if allowed {
                // Not with every push anew: each would wait.
                remember(&answers, who, allowed, AGAIN);
            }
            allowed
        })
    })
}

fn known(answers: &Answers, who: &(String, String)) -> Option<Answer> {
    answers.lock().unwrap_or_else(PoisonError::into_inner).get(who).copied()
}

fn remember(answers: &Answers, who: (String, String), allowed: bool, time: Duration) {
    let now = Instant::now();
    let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
    if answers.len() >= MAX_ANSWERS {
        answers.retain(|_, (until, _)| now < *until);
    }
    // When all are fresh, the newcomer is asked about again next time.
    if answers.len() < MAX_ANSWERS {
        answers.insert(who, (now + time, allowed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// An API server that takes questions and says nothing must not hold up every push to every gateway.
    #[tokio::test(start_paused = true)]
    async fn silence_is_waited_for_once_and_not_long() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = ApiClient::connect(&format!("http://{}", listener.local_addr().unwrap()), None).unwrap();
        let answers: Arc<Answers> = Arc::default();
        let access = by(client, answers.clone());
        let ask = |account: &str| access("n".into(), account.into());
        let who = |account: &str| ("n".to_string(), account.to_string());
        remember(&answers, who("yes"), true, Duration::ZERO);
        remember(&answers, who("no"), false, Duration::ZERO);
        for (account, allowed) in [("no", false), ("stranger", false), ("yes", true)] {
            let begun = Instant::now();
            assert_eq!(ask(account).await, allowed, "{account}");
            assert!(begun.elapsed() <= ANSWER * 2, "{account}: {:?}", begun.elapsed());
        }
        let begun = Instant::now();
        assert!(ask("yes").await && begun.elapsed().is_zero(), "it is not asked again at once");
        tokio::time::advance(AGAIN).await;
        assert!(ask("yes").await && !begun.elapsed().is_zero(), "but soon");
    }
}
