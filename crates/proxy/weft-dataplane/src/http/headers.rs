//! A request's headers, held by whoever serves the request and by the record of how it was let in. Whoever changes them while
//! the other holds them gets a copy: nearly no request is changed after that.

use http::HeaderMap;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use weft_codec::h1::pool;

/// Headers. Looking costs nothing; a change copies them when they are shared.
#[derive(Debug, Clone, Default)]
pub(crate) struct Headers(Rc<HeaderMap>);

impl Headers {
    /// Takes them out, or a copy when they are shared.
    pub fn take(&mut self) -> HeaderMap {
        match Rc::get_mut(&mut self.0) {
            Some(own) => std::mem::take(own),
            None => (*self.0).clone(),
        }
    }
}

impl From<HeaderMap> for Headers {
    fn from(map: HeaderMap) -> Self {
        Self(Rc::new(map))
    }
}

impl Deref for Headers {
    type Target = HeaderMap;
    fn deref(&self) -> &HeaderMap {
        &self.0
    }
}

impl DerefMut for Headers {
    fn deref_mut(&mut self) -> &mut HeaderMap {
        Rc::make_mut(&mut self.0)
    }
}

impl Drop for Headers {
    fn drop(&mut self) {
        // The last holder lets the memory be used again.
        if let Some(own) = Rc::get_mut(&mut self.0) {
            pool::keep_map(std::mem::take(own));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_change_is_seen_by_its_own_holder_alone() {
        let mut own = Headers::from(HeaderMap::new());
        own.insert("x-a", HeaderValue::from_static("1"));
        let record = own.clone();
        assert!(Rc::ptr_eq(&own.0, &record.0));
        own.insert("x-b", HeaderValue::from_static("2"));
        assert_eq!((own.len(), record.len()), (2, 1));
        assert_eq!(own.take().len(), 2);
        assert!(own.is_empty() && record["x-a"] == "1");
        let mut shared = record.clone();
        assert_eq!(shared.take().len(), 1);
        assert_eq!(record.len(), 1, "what is shared is not taken away");
    }
}
