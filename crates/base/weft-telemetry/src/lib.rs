//! Metric registry sharded by worker, access-log formatting, trace export.
