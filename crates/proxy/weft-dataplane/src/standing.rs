//! Whether an open connection may stay: its filter chain is still there, and the chain's authorization, as it is now, lets it
//! in. Asked again after each change of the configuration, so that policies bind connections that are open already. What an
//! authorizer outside the proxy said once stands.

use crate::chain::{ChainRuntime, ChainSlot};
use std::borrow::Cow;
use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;
use tokio::time::Instant;

/// Why a connection must end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// Its filter chain is gone, and so is the time left to its connections.
    Removed,
    /// Authorization now says no; the details word.
    Denied(String),
}

impl End {
    /// As access logs have it.
    pub fn details(self) -> Cow<'static, str> {
        match self {
            End::Removed => Cow::Borrowed("filter_chain_removed"),
            End::Denied(details) => Cow::Owned(details),
        }
    }
}

/// The permission of an open connection.
#[derive(Debug)]
pub(crate) struct Standing {
    pub slot: Rc<ChainSlot>,
    /// The chain that let it in last; `None` = to be asked.
    judged: RefCell<Option<Rc<ChainRuntime>>>,
}

impl Standing {
    /// Of a connection that `judged` let in.
    pub fn new(slot: &Rc<ChainSlot>, judged: Option<Rc<ChainRuntime>>) -> Self {
        Self { slot: slot.clone(), judged: RefCell::new(judged) }
    }

    /// The chain is another than the one that let it in.
    pub fn is_in_question(&self) -> bool {
        !self.judged.borrow().as_ref().is_some_and(|judged| self.slot.is_current(judged))
    }

    /// Why the connection must end now, if it must. `denied` asks a chain, and returns its details word when it says no; a
    /// chain that has let the connection in is not asked twice.
    pub fn now(&self, denied: impl Fn(&ChainRuntime) -> Option<String>) -> Option<End> {
        if let Some(ends_at) = self.slot.ends_at() {
            return (Instant::now() >= ends_at).then_some(End::Removed);
        }
        if !self.is_in_question() {
            return None;
        }
        let current = self.slot.current();
        if let Some(details) = denied(&current) {
            return Some(End::Denied(details));
        }
        self.judged.replace(Some(current));
        None
    }

    /// Returns when the connection must end.
    pub async fn ended(&self, denied: impl Fn(&ChainRuntime) -> Option<String>) -> End {
        loop {
            // Listens before it looks: a change between the two would otherwise be missed.
            let mut changed = pin!(self.slot.changed.notified());
            changed.as_mut().enable();
            if let Some(end) = self.now(&denied) {
                return end;
            }
            match self.slot.ends_at() {
                Some(ends_at) => tokio::time::sleep_until(ends_at).await,
                None => changed.await,
            }
        }
    }
}
