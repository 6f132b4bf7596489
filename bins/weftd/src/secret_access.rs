//! Who may have Secrets: an account gets those of its namespace by SDS only when the API server would let it list them itself
//! (SubjectAccessReview). Answers are kept for a while, refusals for a shorter one; what cannot be asked is refused, unless
//! an older answer allows it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use weft_store::ApiClient;
use weft_xds_server::SecretAccess;

/// How long a yes is believed.
const YES: Duration = Duration::from_secs(60);
/// How long a no is believed: who grants the right does not want to wait.
const NO: Duration = Duration::from_secs(5);
/// Answers kept.
const MAX_ANSWERS: usize = 10_000;

type Answers = Mutex<HashMap<(String, String), (Instant, bool)>>;

/// Asks `client`'s API server.
pub(crate) fn by_review(client: ApiClient) -> SecretAccess {
    let answers: Arc<Answers> = Arc::default();
    Arc::new(move |namespace, account| {
        let (client, answers) = (client.clone(), answers.clone());
        Box::pin(async move {
            let who = (namespace, account);
            let known = known(&answers, &who);
            if let Some((at, allowed)) = known
                && at.elapsed() < if allowed { YES } else { NO }
            {
                return allowed;
            }
            match client.may_access((&who.0, &who.1), "list", "secrets", &who.0).await {
                Ok(allowed) => {
                    remember(&answers, who, allowed);
                    allowed
                }
                Err(error) => {
                    tracing::warn!("whether {}/{} may list secrets cannot be told: {error}", who.0, who.1);
                    known.is_some_and(|(_, allowed)| allowed)
                }
            }
        })
    })
}

fn known(answers: &Answers, who: &(String, String)) -> Option<(Instant, bool)> {
    answers.lock().unwrap_or_else(PoisonError::into_inner).get(who).copied()
}

fn remember(answers: &Answers, who: (String, String), allowed: bool) {
    let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
    if answers.len() >= MAX_ANSWERS {
        answers.retain(|_, (at, _)| at.elapsed() < YES);
    }
    // When all are fresh, the newcomer is asked about again next time.
    if answers.len() < MAX_ANSWERS {
        answers.insert(who, (Instant::now(), allowed));
    }
}
