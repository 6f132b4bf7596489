//! Workers, listeners, connections and requests: the life of a request.
